"""The Explore page in a real browser, from the disk: nothing in the records runs, and all is shown."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from explorer_page import assemble
from helpers import vouch

from hialign.book import responses as explorer
from hialign.records.files import write_jsonl
from hialign.records.stages import judgments_file
from hialign.study.base import has_control
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Study

pytestmark = pytest.mark.browser

ATTACKS = {
    "script": "<script>window.pwned = 1</script>",
    "end of script": "</script><script>window.pwned = 2</script><!--",
    "image": "<img src=x onerror=\"window.pwned = 3\"><svg/onload='window.pwned=4'>",
    "link": "[click](javascript:window.pwned=5) <a href='javascript:window.pwned=6'>x</a>",
    "frame": "<iframe srcdoc='<script>parent.pwned=7</script>'></iframe><base href='http://x.test/'>",
    "refresh": '<meta http-equiv="refresh" content="0;url=http://x.test/"><link rel=stylesheet href=//x.test>',
    "style": '<style>body{display:none}</style>"><input autofocus onfocus=window.pwned=8>',
    "directive": "```{raw} html\n<b>bold</b>\n```\n{glue:text}`study_name` {doc}`index`",
    "comment": "<!-- hidden --> $\\href{javascript:window.pwned=9}{x}$ $$e=mc^2$$ `code` ``",
    "template": "${window.pwned=10} {{constructor.constructor('window.pwned=11')()}}",
    "quotes": "');window.pwned=12;(' \\');window.pwned=13;// \"\\\\",
    "prototype": '__proto__ constructor {"__proto__": {"polluted": 1}}',
    "separators": "a\u2028window.pwned=14\u2029b\x85c",
    "terminal": "\x1b[2J\x1b]0;title\x07\x08\x00\x7f\x9b31m",
    "bidi": "safe \u202e gnp.exe \u2066 hidden \u2069 \u200f \u061c end",
    "invisible": "a\u200bb\ufeffc\u00add\U000e0041e\u2060f",
    "half": "half \ud83d character \ude00 here",
    "line": "x" * 100_000,
    "lines": "y\n" * 10_000,
    "controls": "\x1bz" * 5_000,
    "combining": "e" + "\u0301" * 3000,
    "right to left": "\u0634\u0644\u0648\u0645 (\u05d0\u05d1\u05d2) 123",
    "emoji": "\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "empty": "",
}
BLOCKS = ["base", "full", "mid"]
MARKED = {  # what stands in the page instead
    "terminal": "‹ESC›[2J‹ESC›]0;title‹BEL›‹BS›‹NUL›‹DEL›‹U+009B›31m",
    "bidi": "safe ‹U+202E› gnp.exe ‹U+2066› hidden ‹U+2069› ‹U+200F› ‹U+061C› end",
    "invisible": "a‹U+200B›b‹U+FEFF›c‹U+00AD›d‹U+E0041›e‹U+2060›f",
    "half": "half ‹U+D83D› character ‹U+DE00› here",
    "separators": "a‹U+2028›window.pwned=14‹U+2029›b‹U+0085›c",
}
# Of prompts and responses; reasons stay cut
SHOW_ALL = """document.querySelectorAll('.hx-more').forEach((b) => b.closest('dl') || b.click())"""
RAW = r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"


class Opened:
    """A page and all that it did: requests, errors, dialogs."""

    def __init__(self, page: Any) -> None:
        self.page, self.folder = page, Path()
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append("dialog"))
        page.on("popup", lambda popup: self.problems.append("popup"))

    def goto(self, folder: Path, state: str = "", wait: str = ".hx-list") -> Any:
        self.folder = folder
        self.page.goto(f"file://{folder}/explore.html{state}")
        self.page.locator(wait).first.wait_for(state="attached")
        self.settle()
        return self.page

    def settle(self) -> None:
        self.page.wait_for_function("!document.querySelector('.hx-wait')")

    def chunks(self) -> list[str]:
        """The files of texts that were asked for, in order."""
        return [m[1] for url in self.requests if (m := re.search(r"(texts-\d+-\d+)\.js", url))]

    def listed(self) -> list[str]:
        """The ids of the prompts in the list."""
        return list(self.page.locator(".hx-card h3 code").all_text_contents())


@pytest.fixture
def opened(chromium: Any) -> Iterator[Opened]:
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    one = Opened(context.new_page())
    yield one
    assert one.problems == []
    assert [url for url in one.requests if not url.startswith("file://")] == []
    context.close()


def choose(page: Any, name: str, value: str) -> None:
    page.locator(f".hx-field-{name} select").select_option(value)


def count(page: Any) -> str:
    return str(page.inner_text(".hx-count"))


# --- studies ---------------------------------------------------------------------------------------


def make(name: str, **settings: Any) -> Study:
    settings = {
        "title": name,
        "models": [
            {"source": "random:a", "label": "First"},
            {"source": "random:b", "label": "Second"},
        ],
        "blocks": BLOCKS,
        "preferences": {"source": "builtin"},
        "judge": {"backend": "local", "model": "embedded:judge"},
    } | settings
    return Study(name=name, **settings)


def fill(study: Study, prompts: int = 34) -> dict[tuple[str, str, int, str], float]:
    """Records of an ordinary study; its scores by model, block, prompt and dimension.

    In each model, prompt 3 of `mid` has no response and prompt 4 a failed judgment; prompt 5 is cut;
    prompts 6 to 8 have one response for `base` and `full`.
    """
    rng = random.Random(1)
    found: dict[tuple[str, str, int, str], float] = {}
    for cell in study.cells():
        rows, judgments = [], []
        for i in range(prompts):
            if cell.block == "mid" and i == 3:
                continue
            twin = 6 <= i <= 8 and cell.block in ("base", "full")
            said = "The same words." if twin else f"{cell.model.label} {cell.block} answers {i}."
            if i == 30 and cell.block == "mid":
                said += " Here is a needle."
            ends = "length" if i == 5 else "stop"
            rows.append(
                {"prompt_id": f"id{i}", "prompt": f"Question {i} of {prompts}?", "response": said}
                | {"tokens": 10 + i, "finish_reason": ends}
            )
            failed = cell.block == "mid" and i == 4
            scores = {d: round(rng.uniform(1, 5), 3) for d in DIMENSIONS} if not failed else {}
            row = {"prompt_id": f"id{i}", "scores": scores, "judge": "j"}
            row |= {"reasons": {d: f"Because of {d}." for d in scores} if i % 2 else {}}
            judgments.append(row | ({"error": "it was no JSON"} if failed else {}))
            found |= {(cell.model.label, cell.block, i, d): s for d, s in scores.items()}
        write_jsonl(cell.folder / "responses.jsonl", rows)
        vouch(cell, "respond")
        if study.judge:
            write_jsonl(judgments_file(cell), judgments)
            vouch(cell, "judge")
    return found


@pytest.fixture
def built(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, dict[tuple[str, str, int, str], float]]]:
    """Builds an ordinary study's page with small files of texts; its folder and scores."""
    monkeypatch.setattr(explorer, "CHUNK_BYTES", 2000)

    def build(**settings: Any) -> tuple[Path, dict[tuple[str, str, int, str], float]]:
        study = make("ordinary", **settings)
        scores = fill(study)
        assemble(study, tmp_path / "html")
        return tmp_path / "html", scores

    return build


@pytest.fixture
def hostile(outputs: Path, tmp_path: Path) -> Path:
    """A study whose prompts, responses, reasons, errors, ids, labels and title all attack."""
    bad = "".join(ATTACKS[k] for k in ("image", "bidi", "end of script", "half"))
    printed = "".join(" " if has_control(c) else c for c in bad)  # what a study may hold
    models = [{"source": f"random:{n}", "label": f"{n} {printed}"} for n in "ab"]
    study = make("hostile", models=models, title=printed)
    for cell in study.cells():
        rows, judgments = [], []
        for name, text in ATTACKS.items():
            key = f"{name} {text[:60]}"
            own = text if cell.block != "mid" else f"{text} {cell.block}"
            row = {"prompt_id": key, "prompt": text, "response": own, "tokens": 3}
            rows.append(row | {"finish_reason": "stop"})
            row = {"prompt_id": key, "judge": "j", "scores": dict.fromkeys(DIMENSIONS, 4)}
            reasons = dict.fromkeys(DIMENSIONS, text) | {"__proto__": text, text: text}
            if cell.block == "full":
                row |= {"scores": {}, "reasons": {}, "error": text, "__proto__": {"polluted": 1}}
            else:
                row |= {"reasons": reasons}
            judgments.append(row)
        write_jsonl(cell.folder / "responses.jsonl", rows)
        vouch(cell, "respond")
        write_jsonl(judgments_file(cell), judgments)
        vouch(cell, "judge")
    assemble(study, tmp_path / "html")
    return tmp_path / "html"


# --- safety ----------------------------------------------------------------------------------------


def test_nothing_in_the_records_runs(hostile: Path, opened: Opened) -> None:
    page = opened.goto(hostile)
    address = page.url
    for model in ("0", "1"):
        choose(page, "model", model)
        for _ in range(3):
            opened.settle()
            page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
            page.evaluate(SHOW_ALL)
            page.wait_for_timeout(100)
            assert page.evaluate("window.pwned") is None
            if page.locator(".hx-pager button").nth(1).is_enabled():
                page.locator(".hx-pager button").nth(1).click()
    page.fill("input[type=search]", ATTACKS["script"])
    page.check(".hx-check input")
    page.get_by_text("All texts were searched.").wait_for()
    assert count(page).startswith("1 of 24 prompts")
    page.reload()  # the attack is now in the address
    page.locator(".hx-card").first.wait_for()
    assert page.input_value("input[type=search]") == ATTACKS["script"]
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("({}).polluted") is None
    assert page.url.split("#")[0] == address.split("#")[0]
    inside = "#hialign-explorer :is(script, img, svg, iframe, object, style, base, meta, a, form [onfocus])"
    assert page.locator(inside).count() == 0
    attributes = page.evaluate(
        "[...document.querySelectorAll('#hialign-explorer *')].flatMap((e) => e.getAttributeNames())"
    )
    assert [a for a in attributes if a.startswith("on") or a in ("href", "src", "srcdoc")] == []


def test_attacks_are_shown_as_text(hostile: Path, opened: Opened) -> None:
    page = opened.goto(hostile)
    shown: list[str] = []
    for number in range(3):
        opened.settle()
        shown += page.evaluate(
            "[...document.querySelectorAll('.hx-text')].map((t) => t.textContent)"
        )
        assert page.evaluate(f"new RegExp({RAW!r}).test(document.body.innerText)") is False
        if number < 2:
            page.locator(".hx-pager button").nth(1).click()
    short = {k: v for k, v in ATTACKS.items() if v and len(v) < 4000}
    for name, text in short.items():
        expected = MARKED.get(name, text)
        assert shown.count(expected) >= 3, name  # the prompt, base and full
        assert f"{expected} mid" in shown, name
    assert "(an empty response)" in page.text_content(".hx-list")


def test_reasons_and_errors_are_shown_as_text(hostile: Path, opened: Opened) -> None:
    page = opened.goto(hostile)
    first = page.locator(".hx-card").first
    first.locator(".hx-scores").nth(0).locator("summary").click()
    first.locator(".hx-scores dl").first.wait_for()
    reasons = first.locator(".hx-scores").nth(0).locator("dd .hx-text").all_text_contents()
    assert reasons == [ATTACKS["script"]] * 16
    failed = first.locator(".hx-scores").nth(1)
    failed.locator("summary").click()
    assert failed.locator(".hx-text").text_content() == ATTACKS["script"]
    assert "no valid judgment" in first.locator(".hx-response").nth(1).text_content()


def test_long_texts_are_cut_until_asked_for(hostile: Path, opened: Opened) -> None:
    page = opened.goto(hostile, "#page=2")
    card = page.locator(".hx-card", has_text="line xxxx").first
    text = card.locator(".hx-response .hx-text").first
    assert len(text.text_content()) < 4100
    button = card.locator(".hx-response .hx-more").first
    assert button.text_content() == "show all 100,000 characters"
    button.click()
    assert text.text_content() == "x" * 100_000
    assert text.evaluate("(t) => t.clientHeight < 600 && t.scrollWidth <= t.clientWidth")
    assert text.evaluate("(t) => document.activeElement === t")
    marks = page.locator(".hx-card", has_text="controls").first
    marks.locator(".hx-more").first.click()
    assert marks.locator(".hx-text").first.text_content() == "‹ESC›z" * 5_000
    assert marks.locator(".hx-text").first.locator(".hx-mark").count() <= 300


@pytest.mark.parametrize("page_number", [1, 2, 3])
def test_a_phone_does_not_scroll_sideways(hostile: Path, chromium: Any, page_number: int) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    one = Opened(context.new_page())
    page = one.goto(hostile, f"#page={page_number}")
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.evaluate(SHOW_ALL)
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = page.locator(".hx-card").first.locator(".hx-response")
    tops = [boxes.nth(i).bounding_box()["y"] for i in range(3)]
    assert tops == sorted(set(tops)), "responses are not one below the other"
    context.close()


# --- what it is for --------------------------------------------------------------------------------


def test_texts_are_loaded_when_they_are_shown(built: Any, opened: Opened) -> None:
    folder, _ = built()
    page = opened.goto(folder)
    files = len(list((folder / "explore").glob("texts-0-*.js")))
    first = set(opened.chunks())
    assert 1 <= len(first) < files / 2
    assert all(name.startswith("texts-0-") for name in first)
    assert opened.chunks().count("texts-0-0") == 1, "one file is loaded once for all its prompts"
    assert page.locator(".hx-card").count() == 10
    page.locator(".hx-pager button").nth(1).click()
    opened.settle()
    assert len(set(opened.chunks())) > len(first)
    assert opened.listed() == [f"id{i}" for i in range(10, 20)]
    assert "First base answers 12." in page.text_content(".hx-list")
    assert len(set(opened.chunks())) < files
    choose(page, "model", "1")
    opened.settle()
    assert "Second base answers 0." in page.text_content(".hx-list")
    total = sum(p.stat().st_size for p in (folder / "explore").glob("texts-*.js"))
    total += (folder / "explore" / "index.js").stat().st_size
    assert f"{total / 1e6:.2f} MB in" in page.inner_text(".hx-sizes")


def test_each_response_says_what_is_known_of_it(built: Any, opened: Opened) -> None:
    folder, scores = built()
    page = opened.goto(folder)
    cards = page.locator(".hx-card")

    def part(prompt: int, strategy: int) -> str:
        return str(cards.nth(prompt).locator(".hx-response").nth(strategy).text_content())

    assert "10 tokens" in part(0, 0)
    assert f"Overall: {scores['First', 'base', 0, 'Overall']:.2f}" in part(0, 0)
    assert "missing: no response in the records" in part(3, 2)
    assert "Overall" not in part(3, 2)
    assert "no valid judgment" in part(4, 2)
    assert not re.search(r"\b3(\.00)?\b", part(4, 2).split("no valid judgment")[1])
    assert "cut at the limit" in part(5, 1)
    assert "cut at the limit" not in part(4, 1)
    assert "identical to Full-DPO" in part(6, 0)
    assert "identical to Base" in part(6, 1)
    assert "identical" not in part(6, 2)
    with_reasons = cards.nth(1).locator(".hx-scores").first
    with_reasons.locator("summary").click()
    with_reasons.locator("dl").wait_for()
    rows = with_reasons.locator("dt").all_text_contents()
    assert rows == list(DIMENSIONS)
    assert f"{scores['First', 'base', 1, 'Tone']:.2f}" in with_reasons.text_content()
    assert "Because of Tone." in with_reasons.text_content()
    without = cards.nth(0).locator(".hx-scores").first
    without.locator("summary").click()
    without.locator("dl").wait_for()
    assert "gives scores without reasons" in without.text_content()
    assert without.locator("dd").count() == 16


def test_filters_and_words(built: Any, opened: Opened) -> None:
    page = opened.goto(built()[0])
    choose(page, "filter", "missing")
    assert opened.listed() == ["id3", "id4"]
    assert count(page).startswith("2 of 34 prompts")
    page.get_by_role("checkbox", name="Mid-Align").uncheck()
    assert opened.listed() == [], "only what is shown counts"
    choose(page, "filter", "same")
    assert opened.listed() == ["id6", "id7", "id8"]
    choose(page, "filter", "cut")
    assert opened.listed() == ["id5"]
    assert page.locator(".hx-response").count() == 2
    choose(page, "filter", "all")
    page.fill("input[type=search]", "  QUESTION 3")
    page.wait_for_function("document.querySelectorAll('.hx-card').length === 5")
    assert opened.listed() == ["id3", "id30", "id31", "id32", "id33"]
    page.fill("input[type=search]", "needle")
    page.wait_for_function("document.querySelectorAll('.hx-card').length === 0")
    assert "needle" in page.url


def test_a_search_of_all_texts_goes_step_by_step_and_stops(built: Any, opened: Opened) -> None:
    folder, _ = built()
    page = opened.goto(folder)
    files = len(list((folder / "explore").glob("texts-0-*.js")))
    page.fill("input[type=search]", "NEEDLE")
    page.check(".hx-check input")
    page.get_by_text("All texts were searched.").wait_for()
    assert opened.listed() == ["id30"]
    assert len({c for c in opened.chunks() if c.startswith("texts-0-")}) == files
    assert not [c for c in opened.chunks() if c.startswith("texts-1-")]
    page.get_by_role("checkbox", name="Mid-Align").uncheck()
    assert opened.listed() == [], "it stands in a response that is not shown"
    page.get_by_role("checkbox", name="Mid-Align").check()
    page.reload()  # the address holds the search
    page.get_by_text("All texts were searched.").wait_for()
    assert opened.listed() == ["id30"]
    # Slow files, so that there is something to stop
    page.evaluate("""() => {
      const { Store } = hialignExplorer, file = Store.prototype.file;
      Store.prototype.file = async function (...place) {
        await new Promise((done) => setTimeout(done, 200));
        return file.apply(this, place);
      };
    }""")
    page.fill("input[type=search]", "answers")
    page.get_by_text(re.compile(r"^Searched .* MB: \d+ prompts? so far$")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile(r"stopped\.$")).wait_for()
    found = int(count(page).split()[0])
    assert 0 < found < 34


def test_sorting(built: Any, opened: Opened) -> None:
    folder, scores = built()
    page = opened.goto(folder)
    choose(page, "dimension", str(DIMENSIONS.index("Tone")))

    def score(block: str, i: int) -> float | None:
        return scores.get(("First", block, i, "Tone"))

    def by(key: Callable[[int], float | None]) -> list[str]:
        known = {i: k for i in range(34) if (k := key(i)) is not None}
        order = sorted(known, key=lambda i: (known[i], i))
        return [f"id{i}" for i in order + [i for i in range(34) if i not in known]]

    def shown() -> list[str]:
        found = opened.listed()
        for _ in range(3):
            page.locator(".hx-pager button").nth(1).click()
            found += opened.listed()
        return found

    def apart(a: str, b: str) -> Callable[[int], float | None]:
        pairs = {i: (score(a, i), score(b, i)) for i in range(34)}
        return lambda i: None if None in pairs[i] else -abs(pairs[i][0] - pairs[i][1])

    choose(page, "sort", "lowest")
    choose(page, "a", "2")
    assert shown() == by(lambda i: score("mid", i))
    assert "2 without the scores to sort by come last" in count(page)
    choose(page, "sort", "highest")
    assert shown() == by(lambda i: None if score("mid", i) is None else -score("mid", i))
    choose(page, "sort", "pair")
    choose(page, "b", "1")
    assert shown() == by(apart("mid", "full"))
    choose(page, "sort", "all")
    spread = {i: [s for b in BLOCKS if (s := score(b, i)) is not None] for i in range(34)}
    assert shown() == by(lambda i: min(spread[i]) - max(spread[i]))
    first = page.locator(".hx-apart").first.text_content()
    assert re.fullmatch(r"\d\.\d\d apart in Tone", first)


def test_the_heat_map_says_means_and_sorts(built: Any, opened: Opened) -> None:
    folder, scores = built()
    page = opened.goto(folder)

    def mean(block: str, prompts: list[int]) -> float:
        values = [scores["First", block, i, "Safety"] for i in prompts]
        return sum(values) / len(values)

    both = [i for i in range(34) if i not in (3, 4)]
    difference = f"{mean('mid', both) - mean('base', both):+.2f}".replace("-", "−")
    d = DIMENSIONS.index("Safety")
    square = page.locator(f".hx-map button[data-dimension='{d}'][data-strategy='2']")
    assert square.inner_text().split() == [f"{mean('mid', both):.2f}", difference]
    expected = (
        f"Safety, Mid-Align: mean {mean('mid', both):.2f}, {difference} against Base; 32 prompts"
    )
    assert square.get_attribute("aria-label") == expected
    assert page.locator(".hx-map tbody tr").count() == 16
    square.click()
    assert square.get_attribute("aria-pressed") == "true"
    assert "disagreement of two strategies (Mid-Align and Base) in Safety" in count(page)
    gap = {
        i: abs(scores["First", "mid", i, "Safety"] - scores["First", "base", i, "Safety"])
        for i in both
    }
    assert opened.listed() == [f"id{i}" for i in sorted(gap, key=lambda i: (-gap[i], i))[:10]]
    # By keyboard: from the one stop in the table, arrows and Enter
    page.locator(".hx-map button[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "(Full-DPO and Base) in TokenRobustness" in count(page)
    here = "document.activeElement.dataset"
    assert page.evaluate(f"[{here}.dimension, {here}.strategy]") == ["1", "1"]
    choose(page, "model", "1")
    assert square.inner_text().split()[0] != f"{mean('mid', both):.2f}"


def test_the_address_holds_the_view(built: Any, opened: Opened, chromium: Any) -> None:
    folder, _ = built()
    page = opened.goto(folder)
    assert "#" not in page.url
    choose(page, "model", "1")
    choose(page, "dimension", "6")
    choose(page, "sort", "pair")
    choose(page, "a", "2")
    page.get_by_role("checkbox", name="Base").uncheck()
    page.locator(".hx-pager button").nth(1).click()
    address, listed, told = page.url, opened.listed(), count(page)
    other = Opened(chromium.new_page())
    other.page.goto(address)
    other.page.locator(".hx-card").first.wait_for()
    other.settle()
    assert (other.listed(), count(other.page)) == (listed, told)
    assert other.page.locator(".hx-card").first.locator("h4").all_text_contents() == [
        *("Full-DPO", "Mid-Align")
    ]
    other.page.close()
    # Filters and words, too: the address restores what was chosen
    choose(page, "filter", "different")
    page.fill("input[type=search]", "question 2")
    page.wait_for_function("location.hash.includes('words')")
    opened.settle()
    address, listed, told = page.url, opened.listed(), count(page)
    assert told.startswith("11 of 34 prompts")
    page.reload()
    page.locator(".hx-card").first.wait_for()
    opened.settle()
    assert (page.url, opened.listed(), count(page)) == (address, listed, told)
    assert page.locator(".hx-field-filter select").input_value() == "different"
    assert page.locator("input[type=search]").input_value() == "question 2"
    page.evaluate("location.hash = '#filter=cut'")  # as a link inside the page would
    page.wait_for_function("document.querySelectorAll('.hx-card').length === 1")
    assert opened.listed() == ["id5"]
    page.evaluate("location.hash = '#explore'")  # a heading: nothing of ours
    page.wait_for_timeout(50)
    assert opened.listed() == ["id5"]


@pytest.mark.parametrize(
    "state",
    [
        "#model=__proto__&dimension=constructor&sort=toString&filter=__proto__&show=x&a=-1&page=-5",
        "#page=99999999999999&model=9&words=%00%E2%80%AE&texts=2",
        "#model=%3Cscript%3E&sort[]=1&&&==&%",
    ],
)
def test_an_address_that_says_nonsense_is_no_trouble(
    built: Any, opened: Opened, state: str
) -> None:
    page = opened.goto(built()[0], state)
    assert "of 34 prompts; by order of the prompts" in count(page)


# --- warning, blanks, access -----------------------------------------------------------------------


def test_other_sources_are_behind_a_warning(built: Any, opened: Opened) -> None:
    folder, _ = built(preferences={"source": "Anthropic/hh-rlhf"})
    page = opened.goto(folder, wait=".hx-warning")
    text = page.inner_text("#hialign-explorer")
    assert "Anthropic/hh-rlhf" in text
    assert "Question" not in page.content()
    assert "answers" not in page.content()
    assert opened.chunks() == []
    page.get_by_role("button", name="Show the responses").click()
    page.locator(".hx-card").first.wait_for()
    assert page.locator("details.hx-card").count() == 10
    assert "Question" not in page.content(), "not even a prompt before it is opened"
    assert opened.chunks() == []
    summary = page.locator(".hx-card > summary").nth(1)
    assert "Overall" in summary.inner_text()
    summary.click()
    page.get_by_text("First base answers 1.").wait_for()
    assert "Question 1 of" in page.text_content(".hx-list")
    assert "Question 2 of" not in page.content()
    assert opened.chunks() == ["texts-0-0"]
    page.reload()  # remembered in this tab
    page.locator(".hx-card").first.wait_for()
    assert "Question" not in page.content()


def test_without_storage_the_warning_asks_each_time(built: Any, opened: Opened) -> None:
    folder, _ = built(preferences={"source": "Anthropic/hh-rlhf"})
    opened.page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('denied'); } })"
    )
    for _ in range(2):
        page = opened.goto(folder, wait=".hx-warning")
        page.get_by_role("button", name="Show the responses").click()
        page.locator(".hx-card").first.wait_for()


def test_blanks_are_told(outputs: Path, tmp_path: Path, opened: Opened) -> None:
    nothing = make("nothing")
    assemble(nothing, tmp_path / "nothing")
    page = opened.goto(tmp_path / "nothing", wait=".hx-problem")
    assert "has no responses yet" in page.inner_text("#hialign-explorer")
    unjudged = make("unjudged", judge=None)
    fill(unjudged)
    for cell in unjudged.cells():
        if (cell.model.label, cell.block) in (("First", "mid"), ("Second", "base")):
            (cell.folder / "responses.jsonl").unlink()
    assemble(unjudged, tmp_path / "unjudged")
    page = opened.goto(tmp_path / "unjudged", "#sort=pair")
    text = page.inner_text("#hialign-explorer")
    assert "names no judge: there are no scores" in text
    assert "Overall" not in text
    assert page.locator(".hx-map").count() == 0
    assert "by order of the prompts" in count(page)
    assert page.get_by_text("missing: no response in the records").count() == 10
    waiting = make("waiting")
    fill(waiting)
    for cell in waiting.cells():
        judgments_file(cell).unlink()
    assemble(waiting, tmp_path / "waiting")
    page = opened.goto(tmp_path / "waiting")
    assert page.locator(".hx-map button").count() == 0
    assert page.get_by_text("not judged yet").count() == 29  # and one has no response


def test_files_that_are_gone_are_told(built: Any, opened: Opened) -> None:
    folder, _ = built()
    (folder / "explore" / "texts-0-0.js").unlink()
    page = opened.goto(folder)
    page.locator(".hx-problem").first.wait_for()
    assert "explore/texts-0-0.js could not be loaded" in page.text_content(".hx-list")
    (folder / "explore" / "index.js").unlink()
    page = opened.goto(folder, wait=".hx-problem")
    assert "`hialign book STUDY` writes them" in page.inner_text("#hialign-explorer")


def test_without_scripts_it_says_where_the_records_are(built: Any, chromium: Any) -> None:
    folder, _ = built()
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{folder}/explore.html")
    expected = "outputs/<study>/<model>/<block>/responses.jsonl"
    assert expected in page.inner_text("#hialign-explorer")
    context.close()


def test_controls_are_labelled_reached_and_seen(built: Any, opened: Opened) -> None:
    page = opened.goto(built()[0])
    names = page.evaluate("""() =>
      [...document.querySelectorAll('#hialign-explorer :is(button, select, input, summary)')]
        .filter((e) => e.checkVisibility())
        .map((e) => e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent)""")
    assert len(names) > 60
    assert all(name.strip() for name in names)
    assert page.get_attribute(".hx-count", "aria-live") == "polite"
    reached = set()
    page.evaluate("document.body.focus()")
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("""() => {
          const e = document.activeElement, style = getComputedStyle(e);
          const seen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
          return (e.closest('label') || e).textContent.slice(0, 12) + (seen ? '' : ' UNSEEN');
        }""")
        )
    assert not [r for r in reached if r.endswith("UNSEEN")]
    for start in (
        "Search the p",
        " also in who",
        "Model",
        "Dimension",
        "Sorted by",
        "Next",
        "All sixteen",
    ):
        assert any(r.startswith(start[:12]) for r in reached), start


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_can_be_read_on_the_squares(built: Any, opened: Opened, theme: str) -> None:
    page = opened.goto(built()[0])
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    found = page.evaluate("""() => [...document.querySelectorAll('.hx-map button')].map((b) => {
      const canvas = document.createElement('canvas').getContext('2d');
      const style = getComputedStyle(b);
      return [style.color, style.backgroundColor].map((colour) => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      });
    })""")

    def light(colour: list[int]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    compared = found[1:]  # Base's squares take the page's own ground
    assert len({tuple(ground) for _, ground in compared}) > 5
    for ink, ground in [f for i, f in enumerate(found) if i % 3]:
        high, low = sorted((light(ink), light(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_in_the_book(smoke: Path, chromium: Any, width: int) -> None:
    """With the theme's own scripts and styles around it."""
    context = chromium.new_context(viewport={"width": width, "height": 900})
    one = Opened(context.new_page())
    page = one.goto(smoke / "html")
    assert [p for p in one.problems if "THEBE_JS_URL" not in p] == []  # upstream's; no effect
    assert [url for url in one.requests if not url.startswith("file://")] == []
    assert page.locator(".hx-card").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(f"file://{smoke}/html/index.html")
    assert page.evaluate("typeof hialignExplorer") == "undefined", "loaded by its own page alone"
    context.close()
