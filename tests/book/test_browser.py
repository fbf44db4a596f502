"""The built book in a real browser: pages load, pictures are there, phones need no sideways scroll."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = ["index", "methodology", "experiments", "appendix-c", "appendix-d", "choices"]
PAGES += ["runs/train-random-llama-all", "runs/judge-random-llama-base"]
# sphinx-thebe declares its constants once more on each page; upstream's, and without effect
KNOWN = "THEBE_JS_URL"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_whole(smoke: Path, chromium: Any, name: str) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{smoke}/html/{name}.html")
    assert [e for e in errors if KNOWN not in e] == []
    assert page.locator("h1").count() >= 1
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert broken == []
    assert "Traceback" not in page.inner_text("body")
    page.close()


@pytest.mark.parametrize("name", ["index", "experiments", "runs/train-random-llama-all"])
def test_a_narrow_screen_does_not_scroll_sideways(smoke: Path, chromium: Any, name: str) -> None:
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"file://{smoke}/html/{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_every_figure_has_alternative_text(smoke: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.goto(f"file://{smoke}/html/experiments.html")
    alts = page.evaluate("[...document.querySelectorAll('article img')].map(i => i.alt)")
    assert len(alts) >= 5
    assert all(len(alt) > 20 for alt in alts)
    page.close()


def test_figures_stay_readable_in_dark_mode(smoke: Path, chromium: Any) -> None:
    """They are drawn in dark ink, so they need their own light ground."""
    page = chromium.new_page(color_scheme="dark")
    page.goto(f"file://{smoke}/html/experiments.html")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    corner = page.evaluate(
        """() => { const i = document.querySelector('article img'), c = document.createElement('canvas');
        c.width = i.naturalWidth; c.height = i.naturalHeight; const x = c.getContext('2d');
        x.drawImage(i, 0, 0); try { return [...x.getImageData(1, 1, 1, 1).data] }
        catch (e) { return null } }"""
    )
    if corner is None:  # a file's pixels may not be read by a page: read them here
        import matplotlib.image

        file = page.evaluate("document.querySelector('article img').src").removeprefix("file://")
        pixels = matplotlib.image.imread(file)
        corner = [round(255 * float(v)) for v in pixels[1, 1]]
    assert min(corner[:3]) > 240
    assert len(corner) == 3 or corner[3] == 255
    page.close()


def test_prose_shows_the_records_numbers(smoke: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.goto(f"file://{smoke}/html/index.html")
    text = page.inner_text("article")
    assert "random-llama" in text
    assert "8 of the built-in set" in text
    assert "{glue" not in text
    assert "'random-llama'" not in text, "a glued text comes with quotes"
    page.close()
