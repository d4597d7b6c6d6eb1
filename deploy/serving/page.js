"use strict";
const FIELDS = ["prompt", "response_a", "response_b"];
const NAMES = [["a", "A"], ["tie", "Tie"], ["b", "B"]];
const $ = (selector, within = document) => within.querySelector(selector);
const EXAMPLES = JSON.parse($("#examples").textContent);
const percent = (share) => `${Math.round(100 * share)}%`;
let served = null, judged = null;
const labels = () => NAMES.filter(([label]) => served.labels.includes(label));

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function fill(className, share) {
  const bar = make("span", `fill ${className}`);
  bar.style.setProperty("--share", `${100 * share}%`);
  return bar;
}

// Turns.

function addTurn(texts = ["", "", ""]) {
  const turn = $("#turn").content.cloneNode(true).firstElementChild;
  FIELDS.forEach((field, i) => { $(`[data-field=${field}]`, turn).value = texts[i]; });
  $(".remove", turn).addEventListener("click", () => {
    const next = turn.nextElementSibling ?? turn.previousElementSibling;
    turn.remove();
    number();
    $("textarea", next).focus();
  });
  $("#turns").append(turn);
  number();
  return turn;
}

function number() {
  const turns = [...$("#turns").children];
  turns.forEach((turn, i) => {
    $(".name", turn).textContent = turns.length > 1 ? `Turn ${i + 1}` : "Conversation";
    $(".remove", turn).hidden = turns.length === 1;
    $(".remove", turn).setAttribute("aria-label", `Remove turn ${i + 1}`);
  });
  compareWithJudged();
}

function load(turns) {
  $("#turns").replaceChildren();
  turns.forEach((texts) => addTurn(texts));
}

function texts(field) {
  return [...document.querySelectorAll(`[data-field=${field}]`)].map((area) => area.value);
}

function conversation() {
  return Object.fromEntries(FIELDS.map((field) => [field, texts(field)]));
}

function compareWithJudged() {
  const changed = judged !== null && JSON.stringify(conversation()) !== judged;
  $("#changed").hidden = !changed;
  $("#result").classList.toggle("stale", changed);
}

// Asking.

async function ask(path, options = {}) {
  const key = $("#key input").value;
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  const body = await response.json();
  if (response.status === 401) $("#key").hidden = false;
  if (!response.ok) throw Object.assign(new Error(body.detail ?? response.statusText), body);
  return body;
}

async function judge() {
  const button = $("#judge");
  if (button.getAttribute("aria-disabled") === "true") return;
  const asked = conversation();
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Judging …";
  $("#error").hidden = true;
  try {
    served ??= await ask("/v1/model");
    const answer = await ask("/v1/judge", { method: "POST", body: JSON.stringify({ conversations: [asked] }) });
    judged = JSON.stringify(asked);
    show(answer);
  } catch (error) {
    complain(error);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = "Judge";
  }
}

const TITLES = { 401: "A key is needed.", 413: "Too much text.", 422: "This cannot be judged.", 500: "The judge failed.", 503: "Not now." };

function complain(error) {
  const notice = $("#error");
  const title = TITLES[error.status] ?? error.title ?? "The server cannot be reached.";
  notice.replaceChildren(make("b", "", `${title} `), make("span", "", error.status ? error.message : "Is it still running?"));
  if (error.errors?.length > 1) {
    const list = make("ul");
    list.append(...error.errors.map((each) => make("li", "", `${each.at}: ${each.problem}`)));
    notice.append(list);
  }
  if (error.request_id) notice.append(make("div", "soft", `Request ${error.request_id}`));
  notice.hidden = false;
  if (error.status === 401) $("#key input").focus();
}

// Showing.

const SENTENCES = { a: "People would prefer A", b: "People would prefer B", tie: "People would prefer neither" };
const CLOSE = 0.1;

function show(answer) {
  const result = answer.results[0];
  const [first, second] = Object.values(result.probabilities).sort((x, y) => y - x);
  $("#verdict").replaceChildren(make("span", `dot ${result.verdict}`), SENTENCES[result.verdict]);
  $("#lead").textContent = `${first - second < CLOSE ? "A close call: " : ""}${percent(first)} against ${percent(second)}.`
    + (result.set ? ` To be right ${percent(served.coverage)} of the time, the judge would say: ${named(result.set)}.` : "");
  $("#chances").replaceChildren(...labels().map(([label, name]) => {
    const row = make("div"), track = make("dd", "track");
    track.setAttribute("aria-hidden", "true");
    track.append(fill(label, result.probabilities[label]));
    row.append(make("dt", "", name === "Tie" ? "Tie" : `${name} is better`), track, make("dd", "value", percent(result.probabilities[label])));
    return row;
  }));
  showOrders(result);
  const budget = served.max_tokens;
  $("#result .meter").replaceChildren(fill("", result.prompt_tokens / budget));
  $("#tokens").textContent = `${result.prompt_tokens} of ${budget} tokens in each order, instructions included.`
    + (result.truncated ? "" : " Nothing was left out.");
  $("#truncated").hidden = !result.truncated;
  $("#result pre").textContent = JSON.stringify(answer, null, 2);
  $("#result").hidden = false;
  compareWithJudged();
  $("#verdict").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("#result").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

function named(set) {
  const names = set.map((label) => (label === "tie" ? "neither" : label.toUpperCase()));
  return set.length === served.labels.length ? "I cannot tell" : names.join(" or ");
}

function showOrders(result) {
  $("#flips").textContent = result.flips
    ? "Yes: the verdict flips. The result above is the mean of both orders, which favours neither side."
    : "No: the verdict is the same in both orders. The result above is their mean.";
  $("#orders thead .tie").closest("th").hidden = !served.labels.includes("tie");
  $("#orders tbody").replaceChildren(...[["ab", "A"], ["ba", "B"]].map(([order, first]) => {
    const chances = result.by_order[order];
    const row = make("tr"), name = make("th", "", first), bar = make("td", "bar"), stack = make("div", "stack");
    name.scope = "row";
    bar.setAttribute("aria-hidden", "true");
    stack.append(...labels().map(([label]) => fill(label, chances[label])));
    bar.append(stack);
    row.append(name, bar, ...labels().map(([label]) => make("td", "", percent(chances[label]))));
    return row;
  }));
}

// The beginning.

async function wake() {
  const { state } = await (await fetch("/health")).json();
  $("#loading").hidden = state === "ready";
  $("#loading").textContent = `The judge is ${state}${state === "loading" ? "; this takes a minute or two" : ""}.`;
  if (state !== "ready") setTimeout(wake, 2000);
}

async function introduce() {
  served = await ask("/v1/model");
  $("#model").textContent = `${served.model.split("@")[0]}, prompts of up to ${served.max_tokens} tokens`;
}

$(".examples").append(...Object.entries(EXAMPLES).map(([name, turns]) => {
  const button = make("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => load(turns));
  return button;
}));
$("#add").addEventListener("click", () => $("textarea", addTurn()).focus());
$("#exchange").addEventListener("click", () => {
  const [as, bs] = [texts("response_a"), texts("response_b")];
  const put = (field, values) => document.querySelectorAll(`[data-field=${field}]`).forEach((area, i) => { area.value = values[i]; });
  put("response_a", bs);
  put("response_b", as);
  compareWithJudged();
});
$("#form").addEventListener("input", compareWithJudged);
$("#form").addEventListener("submit", (event) => { event.preventDefault(); judge(); });
$("#form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); judge(); }
});
addTurn();
wake().catch(complain);
introduce().catch((error) => { if (error.status !== 401) complain(error); });
