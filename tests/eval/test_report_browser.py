"""The report in a real browser: wide and narrow, light and dark, by keyboard, on paper, and with hostile text."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval.evaluations import evaluate

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
PHONE = {"width": 390, "height": 844}
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">" + "x" * 900
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose conversations are all hostile."""
    root = tmp_path_factory.mktemp("evaluation")
    plain = evaluate(root / "plain")
    evil = {c.id: replace(c, prompt=[SCRIPT], response_a=[SCRIPT], response_b=[SCRIPT]) for c in plain.held_out}
    return evaluate(root / "evil", conversations=evil).folder / "report.html"


@pytest.fixture
def page(report: Path, browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """The report, loaded; at the end the browser has complained of nothing and asked for nothing else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url == report.as_uri() or complaints.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert complaints == []


def test_text_of_conversations_is_never_code(page: "playwright.Page") -> None:
    first = page.locator("#worst details").first
    first.locator("summary").click()
    playwright.expect(first.locator(".text").first).to_contain_text("<script>document.title")
    assert page.title() == "run: evaluation" and page.locator("img, script").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [390, 1280])
def test_every_chart_is_drawn_and_seen(page: "playwright.Page", scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    marks = page.evaluate(
        """() => [...document.querySelectorAll("svg .dot, svg .curve")].map(mark => {
            const box = mark.getBoundingClientRect(), style = getComputedStyle(mark)
            const paint = style.fill === "none" ? style.stroke : style.fill
            return [box.width, box.height, paint, getComputedStyle(mark.closest(".card")).backgroundColor]
        })"""
    )
    assert len(marks) > 200
    for across, up, paint, background in marks:
        assert across > 1 and up > 1 and paint not in ("none", background)
    ends = page.evaluate(
        """() => [...document.querySelectorAll(".forest .dot, .strip .dot")].map(dot => {
            const box = dot.getBoundingClientRect(), card = dot.closest(".card").getBoundingClientRect()
            return card.left <= box.left && box.right <= card.right
        })"""
    )
    assert ends and all(ends), "intervals stay within their card"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_phone_does_not_scroll_sideways(page: "playwright.Page", scheme: str) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("document.querySelector('#judges .scroll').scrollWidth") > PHONE["width"], "tables do, inside"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_stands_out_from_its_background(page: "playwright.Page", scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    ratios = page.evaluate(
        """() => {
            const parts = colour => colour.match(/[\\d.]+/g).map(Number)
            const light = colour => {
                const linear = x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4
                const [r, g, b] = parts(colour).map(x => linear(x / 255))
                return .2126 * r + .7152 * g + .0722 * b
            }
            const behind = element => {
                const colour = getComputedStyle(element).backgroundColor
                return parts(colour).at(3) === 0 ? behind(element.parentElement) : colour
            }
            const texts = "h1, h2, p, td, th, small, a, .flag, summary, dt, .value, .strip span"
            return [...document.querySelectorAll(texts)].map(element => {
                const [x, y] = [light(getComputedStyle(element).color), light(behind(element))]
                return [(Math.max(x, y) + .05) / (Math.min(x, y) + .05), element.outerHTML.slice(0, 80)]
            })
        }"""
    )
    assert ratios and min(ratio for ratio, _ in ratios) >= 4.5, min(ratios)


def test_keys_reach_tables_and_conversations(page: "playwright.Page") -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_url("**#judges")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.closest('section')?.id + ' ' + document.activeElement.tagName")
        )
        if reached[-1] == "worst SUMMARY":
            break
    assert reached[-1] == "worst SUMMARY" and "judges DIV" in reached and "slices DIV" in reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#worst details").first).to_have_attribute("open", "")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "text", "long texts scroll by key"


def test_links_to_artefacts_open_them(page: "playwright.Page") -> None:
    page.get_by_role("link", name="exports/run/w8a8").first.click()
    playwright.expect(page.locator("[id='exports/run/w8a8']")).to_be_visible()


def test_paper_shows_what_is_folded_on_the_screen(page: "playwright.Page", tmp_path: Path) -> None:
    assert not page.locator("#worst .text").first.is_visible()
    printed = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('#worst .text').getBoundingClientRect().height") > 0
    assert not page.get_by_role("navigation").is_visible()


def test_regions_and_figures_have_names_of_their_own(page: "playwright.Page") -> None:
    for element in page.locator("svg[role=img], [role=region], nav, section").all()[:200]:
        assert element.evaluate(
            """e => e.getAttribute("aria-label") || e.querySelector(":scope > title")?.textContent
                || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent"""
        )
