"""The page in a real browser: what is seen, with keys alone, on a phone, and with text that would be code."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from deploy.serving.page import FOLDER, page_and_policy
from tests.serving import Server, serving
from tests.tiny_exports import tiny_export

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
pytestmark = pytest.mark.long
PHONE = {"width": 360, "height": 740}
EXAMPLES = json.loads((FOLDER / "examples.json").read_text())
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    export = tiny_export(tmp_path_factory.mktemp("exports") / "tiny" / "w8a8")
    with serving(export, tmp_path_factory.mktemp("root")) as running:
        yield running


@pytest.fixture
def page(server: Server, browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """The page, loaded; at the end the browser has complained of nothing and asked nobody else."""
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith((server.url, "data:")) or complaints.append(request.url))
    page.goto(server.url)
    playwright.expect(page.locator("#model")).to_contain_text("tiny/w8a8, prompts of up to 256 tokens")
    yield page
    page.close()
    assert complaints == []


def fill(page: "playwright.Page", prompt: str, a: str, b: str) -> None:
    for label, text in (("Prompt", prompt), ("Response A", a), ("Response B", b)):
        page.get_by_label(label, exact=True).last.fill(text)


@pytest.mark.timeout(300)
class TestPage:
    def test_an_example_is_judged(self, page: "playwright.Page", server: Server) -> None:
        page.get_by_role("button", name="A close call").click()
        page.get_by_role("button", name="Judge").click()
        result = page.get_by_role("region", name="People would prefer")
        playwright.expect(result).to_be_visible()
        shown = [int(text.rstrip("%")) for text in page.locator("#chances .value").all_text_contents()]
        pair = {
            field: page.locator(f"[data-field={field}]").input_value()
            for field in ("prompt", "response_a", "response_b")
        }
        (answer,) = server.judge(pair)
        assert shown == [round(100 * answer["probabilities"][label]) for label in ("a", "tie", "b")]
        rows = page.locator("#orders tbody tr").all_inner_texts()
        for text, order in zip(rows, ("ab", "ba"), strict=True):
            numbers = [int(n) for n in re.findall(r"(\d+)%", text)]
            assert numbers == [round(100 * answer["by_order"][order][label]) for label in ("a", "tie", "b")]
        assert page.locator("#flips").inner_text().startswith("Yes" if answer["flips"] else "No")
        playwright.expect(page.locator("#tokens")).to_contain_text(f"{answer['prompt_tokens']} of 256 tokens")
        playwright.expect(page.locator("#tokens")).to_contain_text("Nothing was left out")

    def test_each_example_comes_into_the_form_by_its_button(self, page: "playwright.Page") -> None:
        group = page.get_by_role("group", name="Examples")
        assert group.get_by_role("button").all_text_contents() == [*EXAMPLES]
        for name, turns in EXAMPLES.items():
            group.get_by_role("button", name=name).focus()
            page.keyboard.press("Enter")
            fields = [page.get_by_label(label, exact=True).all() for label in ("Prompt", "Response A", "Response B")]
            assert [[area.input_value() for area in turn] for turn in zip(*fields, strict=True)] == turns

    def test_text_is_never_code(self, page: "playwright.Page") -> None:
        fill(page, SCRIPT, SCRIPT, "<b>bold</b>")
        page.get_by_role("button", name="Judge").click()
        playwright.expect(page.locator("#result")).to_be_visible()
        assert page.title() == "Preference judge" and page.locator("#result img, #result b b").count() == 0

    def test_keys_alone_are_enough(self, page: "playwright.Page") -> None:
        def tab_to(role: str, name: str) -> None:
            wanted = page.get_by_role(role, name=name, exact=True)  # type: ignore[arg-type]
            for _ in range(20):
                if wanted.evaluate("element => element === document.activeElement"):
                    return
                page.keyboard.press("Tab")
            raise AssertionError(f"{name} was not reached")

        for name in ("Prompt", "Response A", "Response B"):
            tab_to("textbox", name)
            page.keyboard.type(f"This is the {name}.")
        tab_to("button", "Judge")
        page.keyboard.press("Enter")
        heading = page.locator("#verdict")
        playwright.expect(heading).to_be_focused()
        first = page.locator("#chances .value").all_text_contents()
        page.get_by_label("Response A").focus()
        page.keyboard.type(" Now it says more.")
        playwright.expect(page.get_by_text("Changed since.")).to_be_visible()
        page.keyboard.press("Control+Enter")
        playwright.expect(page.get_by_text("Changed since.")).to_be_hidden()
        assert page.locator("#chances .value").all_text_contents() != first

    def test_turns_come_and_go_and_sides_change_places(self, page: "playwright.Page") -> None:
        fill(page, "one", "first a", "first b")
        page.get_by_role("button", name="Add a turn").click()
        playwright.expect(page.get_by_label("Prompt", exact=True).last).to_be_focused()
        fill(page, "two", "second a", "second b")
        page.get_by_role("button", name="Exchange A and B").click()
        assert [area.input_value() for area in page.get_by_label("Response A").all()] == ["first b", "second b"]
        page.get_by_role("button", name="Judge").click()
        playwright.expect(page.locator("#result")).to_be_visible()
        page.get_by_role("button", name="Remove turn 1").click()
        assert page.get_by_label("Prompt", exact=True).input_value() == "two"
        assert page.get_by_role("button", name="Remove").count() == 0, "one turn stays"

    def test_what_was_shortened_is_told(self, page: "playwright.Page") -> None:
        fill(page, "Why?", "because " * 400, "so")
        page.get_by_role("button", name="Judge").click()
        playwright.expect(page.get_by_text("Shortened.")).to_be_visible()

    def test_every_field_has_a_name_of_its_own(self, page: "playwright.Page") -> None:
        for field in page.locator("textarea:visible, input:visible, button:visible").all():
            assert field.evaluate("f => f.labels?.length || f.getAttribute('aria-label') || f.textContent.trim()")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_a_phone_does_not_scroll_sideways(self, page: "playwright.Page", scheme: Literal["light", "dark"]) -> None:
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        page.emulate_media(color_scheme=scheme)
        page.get_by_role("button", name="Code, two turns").click()
        fill(page, "x" * 300, "y" * 300, "z")
        page.get_by_role("button", name="Judge").click()
        playwright.expect(page.locator("#result")).to_be_visible()
        page.get_by_text("The answer as JSON").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.timeout(300)
def test_errors_are_shown_in_words(server: Server, browser: "playwright.Browser") -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_role("button", name="Judge").click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("the prompt is empty")
    page.context.set_offline(True)
    page.get_by_role("button", name="Judge").click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.close()


@pytest.mark.timeout(300)
def test_the_key_is_asked_for(browser: "playwright.Browser", tmp_path: Path) -> None:
    export = tiny_export(tmp_path / "tiny" / "w8a8")
    key = {"environment": {"JUDGE_KEY": "open sesame"}}
    with serving(export, tmp_path / "root", "serve.api_key_variable=JUDGE_KEY", **key) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_role("button", name="A close call").click()
        page.get_by_role("button", name="Judge").click()
        field = page.get_by_label("API key of this server")
        playwright.expect(field).to_be_focused()
        field.fill("open sesame")
        field.press("Enter")
        playwright.expect(page.locator("#result")).to_be_visible()
        playwright.expect(page.get_by_role("alert")).to_be_hidden()
        page.close()


def test_the_policy_lets_only_the_pages_own_code_run(server: Server) -> None:
    page, policy = page_and_policy()
    assert server.get("/").headers["content-security-policy"] == policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    script = page.partition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not re.findall(r"https?://|innerHTML|\son\w+=|\sstyle=|<link rel=.stylesheet|<script src", page)
