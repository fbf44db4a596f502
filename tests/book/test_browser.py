"""The built book in a real browser: every page whole, offline, accessible, and fit for a phone."""

import json
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from hialign.report.claims.ledger import load_claims
from hialign.study.study import load_study

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
# One page of each kind, for what takes a second a page
KINDS = ["index", "experiments", "methodology", "appendix-d", "execution", "references", "search"]
KINDS += [
    "claims",
    "where",
    "patching",
    "runs/random-llama-mid",
    "runs/train-random-llama-all",
    "source/report.score_tables",
]


def pages_of(smoke: Path) -> list[str]:
    html = smoke / "html"
    found = [p.relative_to(html) for p in html.rglob("*.html")]
    return sorted(str(p)[: -len(".html")] for p in found)


@pytest.fixture
def visit(smoke: Path, chromium: Any) -> Any:
    """Opens a page of the book and keeps what went wrong on it and what it asked for."""
    opened = []

    def open_page(
        name: str, size: dict[str, int] = WIDE, mode: str = "light", place: str = ""
    ) -> Any:
        page = chromium.new_page(viewport=size, color_scheme=mode)
        page.wrong, page.asked = [], []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("requestfailed", lambda request: page.wrong.append(f"failed: {request.url}"))
        page.on(
            "console",
            lambda message: (
                page.wrong.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(f"file://{smoke}/html/{name}.html{place}")
        page.wait_for_load_state("load")
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()


def test_every_page_is_whole_light_offline_and_fits_a_phone(
    smoke: Path, visit: Callable[..., Any]
) -> None:
    names = pages_of(smoke)
    assert len(names) > 20
    for name in names:
        page = visit(name)
        assert page.wrong == [], name
        assert [u for u in page.asked if not u.startswith(("file:", "data:"))] == [], name
        assert page.locator("h1").count() >= 1, name
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == [], name
        text = page.inner_text("body")
        assert "Traceback" not in text, name
        assert "{{" not in text, name
        files = {unquote(urlsplit(url).path) for url in page.asked if url.startswith("file:")}
        weight = sum(Path(file).stat().st_size for file in files if "/data/" not in file)
        assert weight < 2_000_000, (name, weight)
        page.set_viewport_size(NARROW)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.close()


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.targets += [v for k in ("href", "src") if (v := known.get(k))]
        self.names |= {v for k in ("id", "name") if (v := known.get(k))}


def test_every_link_and_picture_resolves(smoke: Path) -> None:
    html = smoke / "html"
    read = {}
    for path in html.rglob("*.html"):
        read[path] = Links()
        read[path].feed(path.read_text())
    assert sum(len(links.targets) for links in read.values()) > 1000
    for path, links in read.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or target in ("#", "") or target.startswith("javascript:"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert file.is_file(), (path.name, target)
            if parts.fragment and file.suffix == ".html":
                assert unquote(parts.fragment) in read[file].names, (path.name, target)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_axe_finds_nothing_serious(visit: Callable[..., Any], name: str, mode: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = visit(name, mode=mode)
    page.wait_for_timeout(300)  # colours fade in
    found = Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in serious] == []


def test_every_figure_has_alternative_text(smoke: Path, visit: Callable[..., Any]) -> None:
    for name in ("index", "methodology", "experiments", "appendix-c", "runs/random-llama-mid"):
        alts = visit(name).evaluate("[...document.querySelectorAll('article img')].map(i => i.alt)")
        assert len(alts) >= 1, name
        assert all(len(alt) > 20 for alt in alts), name


def test_figures_stay_readable_in_dark_mode(smoke: Path) -> None:
    """They are drawn in dark ink, so they bring their own light ground, edge to edge."""
    for svg in (smoke / "html" / "data").rglob("*.svg"):
        first = re.search(
            r'<g id="patch_1">\s*<path d="M 0 [^"]+"\s+style="fill: ([^";]+)', svg.read_text()
        )
        assert first is not None, svg
        assert first[1] == "#ffffff", svg


def test_a_page_shows_the_records_numbers(smoke: Path, visit: Callable[..., Any]) -> None:
    page = visit("experiments")
    cells = page.locator("div.cell_output table").first.locator("tr").all()
    shown = {row.locator("td").first.inner_text(): row.inner_text() for row in cells[1:]}
    for block, strategy in (("base", "Base"), ("full", "Full-DPO"), ("mid", "Mid-Align")):
        (file,) = (smoke / "random-llama" / block).glob("judgments-*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        mean = statistics.mean(row["scores"]["Overall"] for row in rows)
        assert f"{mean:.3f}" in shown[strategy]
    evaluation = json.loads((smoke / "random-llama" / "mid" / "evaluation.json").read_text())
    margin = evaluation["objectives"]["all"]["reward_margin"]
    assert f"Mid-Align {margin:.3f}" in page.inner_text("article")


def test_each_verdict_has_a_permalink(visit: Callable[..., Any]) -> None:
    """Its own #, seen without a mouse, which leads to the claim's section wherever it is opened."""
    page = visit("claims")
    ids = [claim.id for claim in load_claims()]
    links = page.locator("a.permalink")
    assert [link.get_attribute("href") for link in links.all()] == [f"#{name}" for name in ids]
    for name in (ids[0], "v2-hypothesis-2", ids[-1]):
        link = page.locator(f'a.permalink[href="#{name}"]')
        assert link.is_visible()
        link.click()
        assert page.url.endswith(f"claims.html#{name}")
        section = page.locator(f"section:has(> #{name}), section#{name}").last
        assert section.locator("> p.claim-verdict").count() == 1, name
        assert section.locator("a.permalink").get_attribute("href") == f"#{name}"
        other = visit("claims", place=f"#{name}")
        top = other.locator(f'a.permalink[href="#{name}"]').bounding_box()["y"]
        assert 0 < top < WIDE["height"], name
    assert page.locator("section:has(> p.claim-verdict) a.headerlink").first.is_hidden()


def test_prose_is_filled_from_the_records(visit: Callable[..., Any]) -> None:
    text = visit("index").inner_text("article")
    assert "random-llama" in text
    assert "8 of the built-in set" in text


def test_an_exhibits_downloads_are_what_the_page_shows(
    smoke: Path, visit: Callable[..., Any]
) -> None:
    page = visit("experiments")
    details = page.locator("details.source").first
    details.locator("summary").click()
    assert details.locator("dl").is_visible()
    assert "hialign show smoke table-2" in details.inner_text()
    link = details.locator("a", has_text="CSV").get_attribute("href")
    rows = (smoke / "html" / link).read_text().splitlines()
    assert rows[0].startswith("Strategy,Mean Overall")
    assert len(rows) == 1 + len(load_study("smoke").blocks)


def test_the_theme_switches_to_dark_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit("index")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("button.theme-switch-button").first.focus()
    for _ in range(3):  # auto, light, dark
        page.keyboard.press("Enter")
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_printing_leaves_out_what_is_for_the_screen(visit: Callable[..., Any]) -> None:
    page = visit("experiments")
    page.emulate_media(media="print")
    for part in (".bd-sidebar-primary", ".bd-header-article", "details.source"):
        assert not page.locator(part).first.is_visible(), part
    visible = (
        "[...document.querySelectorAll('h1')].filter(h => h.offsetHeight).map(h => h.innerText)"
    )
    assert any("4 Experiment" in title for title in page.evaluate(visible))


def test_the_search_finds_a_word_offline(visit: Callable[..., Any]) -> None:
    page = visit("search")
    page.goto(page.url + "?q=dropout")
    page.wait_for_selector("#search-results li", timeout=10_000)
    assert "Appendix B" in page.inner_text("#search-results")
