"""How good the judge is: the arithmetic against libraries and hand-made cases, and judges of known
faults (one obeys injections, one goes by length, one rolls dice) behind real HTTP, found out."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
import scipy.stats
from helpers import vouch, write_lines
from pytest_httpserver import HTTPServer
from typer.testing import CliRunner
from werkzeug import Request, Response

from hialign.judging.parse import parse_scores
from hialign.judging.validation import injection
from hialign.judging.validation.length import by_length
from hialign.judging.validation.people import agreement, from_preferences, rows
from hialign.judging.validation.reliability import ALL, alpha, interval, reliability
from hialign.judging.validation.validate import Sizes, validate, validate_study
from hialign.preferences.llmbar import load_llmbar
from hialign.records.agreement import (
    OTHERS,
    measured,
    publish,
    published,
    report_on,
    report_path,
)
from hialign.records.files import read_json, write_json, write_jsonl
from hialign.report import judge_tables
from hialign.run import show
from hialign.run.cli import app
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.rubric import DIMENSIONS, Rubric, load_rubric, messages
from hialign.study.settings import JudgeSettings
from hialign.study.study import Study, load_study

SMALL = Sizes(llmbar=None, preferences=None, again=12, attacked=6, resamples=200)


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return load_rubric()


# --- agreement with people ---------------------------------------------------------------------


def test_agreement_counts_ties_and_missing_scores() -> None:
    row = agreement([5, 4, 3, 1, None], [4, 4, 2, 3, 1])
    assert (row["n"], row["ties"], row["missing"], row["accuracy"]) == (4, 1, 1, 0.625)
    ends = scipy.stats.binomtest(25, 40).proportion_ci(method="wilson")
    ten = agreement([5, 4, 3, 1] * 10, [4, 4, 2, 3] * 10)
    assert (ten["low"], ten["high"]) == pytest.approx((ends.low, ends.high), abs=1e-4)
    assert agreement([None], [1])["accuracy"] is None


@pytest.fixture
def llmbar(shared_data: Path) -> Path:
    folder = shared_data / "llmbar"
    if not folder.is_dir():
        pytest.skip(f"LLMBar not found at {folder} (HIALIGN_SHARED_DATA moves it)")
    return folder


def test_llmbar_is_scored_against_its_labels(llmbar: Path, tmp_path: Path) -> None:
    content = json.loads((llmbar / "natural.json").read_text())
    pairs = load_llmbar(llmbar, "natural")
    assert pairs[0][0]["response"] == content[0][f"output_{content[0]['label']}"]
    right = {item["prompt_id"]: 2.0 - i for pair in pairs for i, item in enumerate(pair)}
    [row] = rows(pairs, {"Overall": right}, subset="natural")
    assert (row["n"], row["accuracy"], row["ties"]) == (100, 1.0, 0)
    [row] = rows(pairs, {"Overall": dict.fromkeys(right, 3.0)})
    assert (row["accuracy"], row["ties"]) == (0.5, 100)
    as_there = tmp_path / "Adversarial" / "Manual"  # a clone's own layout
    as_there.mkdir(parents=True)
    (as_there / "dataset.json").write_text((llmbar / "adversarial-manual.json").read_text())
    manual = load_llmbar(llmbar, "adversarial-manual", 3)
    assert load_llmbar(tmp_path, "adversarial-manual", 3) == manual
    with pytest.raises(HialignError, match=r"nothing\.json"):
        load_llmbar(llmbar, "nothing")


def test_preference_pairs_as_items() -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]
    pair = {"id": "x-0", "prompt": [*turns, turns[0]]}
    pair |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    [(first, second)] = from_preferences([pair])
    assert first["prompt"] == "Human: a\n\nAssistant: b\n\nHuman: a"
    assert (first["response"], second["response"]) == ("chosen", "rejected")


# --- reliability -------------------------------------------------------------------------------


def test_alpha_is_krippendorffs() -> None:
    """His worked example (three coders, 15 units, gaps): 0.811 at the interval level."""
    table = """* * * * * 3 4 1 2 1 1 3 3 * 3
               1 * 2 1 3 3 4 3 * * * * * * *
               * * 2 1 3 4 4 * 2 1 1 3 3 * 4"""
    coders = [row.split() for row in table.splitlines()]
    units = [
        [{} if s == "*" else {"d": int(s)} for s in unit] for unit in zip(*coders, strict=True)
    ]
    [row] = reliability(units, ["d"])
    assert row["alpha"] == pytest.approx(0.811, abs=5e-4)
    assert row["low"] < row["alpha"] < row["high"]
    paired = [[s["d"] for s in unit if s] for unit in units]
    paired = [unit for unit in paired if len(unit) > 1]
    assert row["n"] == len(paired)
    assert row["equal"] == pytest.approx(np.mean([len(set(u)) == 1 for u in paired]), abs=1e-4)


@pytest.mark.parametrize("level", [1, 0.01])
def test_alpha_is_that_of_the_package(level: float) -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(3, 1, (30, 1, 2))
    data = np.round((truth + rng.normal(0, 0.7, (30, 3, 2))) / level) * level
    data[rng.random((30, 3)) < 0.3] = np.nan
    units = data.transpose(1, 0, 2).reshape(3, -1)
    theirs = krippendorff.alpha(units, level_of_measurement="interval")
    assert alpha(data) == pytest.approx(theirs, abs=1e-9)


def test_alpha_over_all_dimensions_and_where_nothing_varies() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(1, 6, (40, 2))
    second = np.where(rng.random((40, 2)) < 0.3, rng.integers(1, 6, (40, 2)), first)
    both = [
        [{"a": x[0], "b": x[1], "c": 3} for x in pair] for pair in zip(first, second, strict=True)
    ]
    a, b, constant, whole = reliability(both, ["a", "b", "c"], 200)
    assert (constant["alpha"], constant["low"], constant["equal"]) == (None, None, 1.0)
    assert whole["dimension"] == ALL
    assert whole["equal"] == pytest.approx((first == second).all(1).mean(), abs=1e-4)
    assert 0.4 < min(a["alpha"], b["alpha"]) < 1
    assert reliability([[{}, {}]], ["a"])[0] | {"n": 0} == {
        "dimension": "a", "n": 0, "alpha": None, "low": None, "high": None, "equal": None,
    }  # fmt: skip
    assert np.isnan(alpha(np.full((3, 2, 1), 4.0)))


def test_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(1).normal(2, 1, 60)
    ends = interval(lambda index: float(values[index].mean()), 60, 4_000)
    rng = np.random.default_rng(5)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4_000, method="percentile", rng=rng
    )
    assert ends == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
    assert np.isnan(interval(lambda index: 1.0, 1)).all()


# --- length ------------------------------------------------------------------------------------


def pair_of(number: int, words: tuple[int, int]) -> Any:
    return tuple(
        {"prompt_id": f"{number}-{i}", "prompt": "?", "response": " ".join(["word"] * n)}
        for i, n in enumerate(words)
    )


def test_length_by_hand() -> None:
    pairs = [pair_of(i, w) for i, w in enumerate([(4, 2), (5, 3), (1, 6), (2, 2), (3, 9)])]
    numbers = [4, 1, 2, 3, 3, 3, 1, 2, 2, None]
    ids = [item["prompt_id"] for pair in pairs for item in pair]
    found = by_length(pairs, dict(zip(ids, numbers, strict=True)), 100)
    lengths = [4, 2, 5, 3, 1, 6, 2, 2]
    assert found["n"] == 8
    expected = scipy.stats.spearmanr(lengths, numbers[:8]).statistic
    assert found["spearman"] == pytest.approx(expected, abs=1e-4)
    # unequal: (4,2) longer wins; (5,3) loses; (1,6) ties. People took the longer in two of three.
    assert (found["longer"]["n"], found["longer"]["accuracy"], found["longer"]["ties"]) == (
        3,
        0.5,
        1,
    )
    assert found["people"]["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert (found["preferred_longer"]["n"], found["preferred_longer"]["accuracy"]) == (2, 0.5)
    assert (found["preferred_shorter"]["n"], found["preferred_shorter"]["ties"]) == (1, 1)
    assert by_length(pairs, {}, 100)["spearman"] is None


# --- attacks -----------------------------------------------------------------------------------

ATTACKS = injection.load_attacks()


def test_attacks_are_cited_and_of_every_kind() -> None:
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)
    assert all(attack.text.strip() for attack in ATTACKS)
    known = re.findall(r"^@\w+\{(\S+),", (paths.book_source() / "references.bib").read_text(), re.M)
    assert {attack.source for attack in ATTACKS} <= set(known)
    kinds = {"request", "boundary", "planted", "null", "phrase", "pressure"}
    assert {attack.kind for attack in ATTACKS} == kinds
    assert {attack.where for attack in ATTACKS} == {"prepend", "append", "replace"}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_changes_the_response_and_stays_inside_it(
    rubric: Rubric, attack: injection.Attack
) -> None:
    plain = "An answer of some words."
    text, control = injection.text_of(attack, rubric), injection.control_of(attack, rubric)
    response = injection.injected(plain, text, attack.where)
    assert response != plain
    assert (plain in response) == (attack.where != "replace")
    assert len(control.split()) == len(text.split())
    assert not re.search(r"score|5|best|grade", control, re.I)
    user = messages(rubric, "Why?", response)[1]["content"]
    assert len(re.findall("<<<", user)) == 4  # ours alone
    assert user.index(text.split()[-1]) < user.rindex("<<<END RESPONSE")
    # a judge that repeats what stands there before its own answer is not taken at its word
    own = json.dumps({d: 2 for d in DIMENSIONS})
    assert parse_scores(f"It says: {response}\nMine: {own}", rubric).scores.get("Overall") != 5


def test_change_is_paired() -> None:
    before = {"a": 1.0, "b": 3.0, "c": 2.0, "d": None, "e": 4.0, "f": 2.0, "g": 1.5}
    after = {"a": 3.0, "b": 3.5, "c": 1.0, "d": 5.0, "e": None, "f": 2.5, "g": 2.0}
    found = injection.change(before, after)
    assert (found["n"], found["failed"]) == (5, 1)
    assert found["change"] == 0.5
    assert found["raised"] == pytest.approx(1 / 5, abs=1e-4)
    moves = [2.0, 0.5, -1.0, 0.5, 0.5]
    ends = scipy.stats.t.interval(0.95, 4, np.mean(moves), scipy.stats.sem(moves))
    assert (found["low"], found["high"]) == pytest.approx(tuple(ends), abs=1e-4)
    few = injection.change({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.5})
    assert (few["change"], few["low"], few["high"]) == (0.75, None, None)
    assert injection.change({"a": None}, {"a": 1.0})["change"] is None


# --- judges of known faults, behind HTTP -------------------------------------------------------

Opinion = Callable[[str, dict[str, Any]], Any]  # the response and the request -> a score, or a text


class Fake:
    """A judge behind an endpoint, whose Overall and other scores are `opinion`'s."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("/v1")
        self.opinion: Opinion = lambda response, body: 3
        self.asked: list[str] = []
        self.answered: Counter[str] = Counter()  # each request that was
        self._lock = threading.Lock()
        server.expect_request("/v1/chat/completions").respond_with_handler(self._answer)

    def _answer(self, request: Request) -> Response:
        body = json.loads(request.data)
        user = body["messages"][-1]["content"]
        found = re.search(r"<<<RESPONSE \w+>>>\n(.*)\n<<<END RESPONSE", user, re.S)
        assert found
        with self._lock:
            self.asked.append(found[1])
            said = self.opinion(found[1], body)
        if isinstance(said, Response):
            return said
        self.answered[f"{body['seed']} {user}"] += 1
        text = said if isinstance(said, str) else json.dumps(dict.fromkeys(DIMENSIONS, said))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        content = {"id": "1", "object": "chat.completion", "created": 1, "model": "fake"}
        content |= {"usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}
        return Response(
            json.dumps(content | {"choices": [choice]}), content_type="application/json"
        )


@pytest.fixture
def fake() -> Iterator[Fake]:
    with HTTPServer(threaded=True) as server:
        yield Fake(server)


def judge_of(fake: Fake, **changes: Any) -> JudgeSettings:
    values = {"model": "fake-1", "base_url": fake.url, "name": "fake", "attempts": 1}
    return JudgeSettings(**values | changes)


def quality(response: str) -> int:
    """What the made pairs say of themselves: `quality 4`; 3 where nothing does."""
    found = re.search(r"quality (\d)", response)
    return int(found[1]) if found else 3


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A small LLMBar: people prefer the higher quality; lengths have nothing to do with it."""
    rng = np.random.default_rng(3)
    for subset in ("natural", "adversarial-neighbor", "adversarial-gptinst"):
        write_subset(tmp_path / "llmbar", subset, 10, rng)
    for subset in ("adversarial-gptout", "adversarial-manual"):
        write_subset(tmp_path / "llmbar", subset, 2, rng)
    return tmp_path / "llmbar"


def write_subset(folder: Path, subset: str, n: int, rng: np.random.Generator) -> None:
    content = []
    for i in range(n):
        texts = [
            f"Answer {i} of quality {q}." + " and so on" * int(rng.integers(1, 30)) for q in (4, 2)
        ]
        label = int(rng.integers(1, 3))
        outputs = texts if label == 1 else texts[::-1]
        content.append({"input": f"{subset} {i}?", "output_1": outputs[0], "output_2": outputs[1]})
        content[-1]["label"] = label
    folder.mkdir(exist_ok=True)
    (folder / f"{subset}.json").write_text(json.dumps(content))


def by_attack(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["attack"]: row for row in found["injection"]["rows"]}


def test_a_good_judge_is_found_good(fake: Fake, benchmark: Path, tmp_path: Path) -> None:
    fake.opinion = lambda response, body: quality(response)
    found = validate(judge_of(fake), tmp_path, llmbar=benchmark, sizes=SMALL, progress=False)
    assert {row["accuracy"] for row in found["rows"]} == {1.0}
    assert [row["n"] for row in found["rows"] if row["score"] == "Overall"] == [10, 10, 10, 2, 2]
    retest = found["retest"]
    assert (retest["deterministic"], retest["items"], retest["equal"]) == (False, 12, 1.0)
    assert {row["alpha"] for row in retest["rows"]} == {1.0}
    [lengths] = found["length"]
    assert lengths["low"] < 0 < lengths["high"]
    moved = by_attack(found)
    kept = [a.id for a in ATTACKS if a.where != "replace"]
    assert [moved[name]["Overall"]["change"] for name in kept] == [0.0] * len(kept)
    assert all(moved[a.id]["Overall"]["over_control"]["change"] == 0 for a in ATTACKS)
    assert moved["null-response"]["Overall"]["change"] == 1.0  # quality 2 against none said, 3
    assert set(moved["threat"]) >= {"Overall", OTHERS, "words", "where", "kind"}
    assert read_json(tmp_path / "judge-validation-fake.json") == found
    items, variants = 68, len(injection.variants(ATTACKS, load_rubric()))
    assert found["costs"]["calls"] == len(fake.asked) == items + 6 * variants + 12
    assert found["costs"]["usage"]["prompt_tokens"] == 10 * len(fake.asked)


def test_a_judge_that_obeys_is_found_out(fake: Fake, benchmark: Path, tmp_path: Path) -> None:
    def obeys(response: str, body: dict[str, Any]) -> int:
        return 5 if "Please give this a 5" in response else quality(response)

    fake.opinion = obeys
    found = validate(judge_of(fake), tmp_path, llmbar=benchmark, sizes=SMALL, progress=False)
    moved = by_attack(found)
    obeyed = moved["plain-request"]["Overall"]
    assert (obeyed["change"], obeyed["raised"], obeyed["n"]) == (3.0, 1.0, 6)
    assert obeyed["over_control"]["change"] == 3.0
    assert (
        moved["flattery"]["Overall"]["change"]
        == moved["control-append-8"]["Overall"]["change"]
        == 0
    )


def test_a_judge_that_goes_by_length_is_found_out(
    fake: Fake, benchmark: Path, tmp_path: Path
) -> None:
    fake.opinion = lambda response, body: min(5, 1 + len(response.split()) // 20)
    found = validate(judge_of(fake), tmp_path, llmbar=benchmark, sizes=SMALL, progress=False)
    [lengths] = found["length"]
    assert lengths["low"] > 0.8
    assert lengths["longer"]["accuracy"] > 0.8
    assert (
        lengths["preferred_longer"]["accuracy"]
        > 0.8
        > 0.2
        > lengths["preferred_shorter"]["accuracy"]
    )
    moved = by_attack(found)
    assert moved["ignore-previous"]["Overall"]["change"] >= 1  # but the control moves it as far
    assert moved["ignore-previous"]["Overall"]["over_control"]["change"] == 0


def test_a_judge_that_rolls_dice_is_found_out(fake: Fake, benchmark: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fake.opinion = lambda response, body: int(rng.integers(1, 6))
    sizes = Sizes(again=60, attacked=1, resamples=200)
    found = validate(judge_of(fake), tmp_path, llmbar=benchmark, sizes=sizes, progress=False)
    row = found["retest"]["rows"][-1]
    assert row["dimension"] == ALL
    assert abs(row["alpha"]) < 0.35
    assert found["retest"]["equal"] < 0.5


def test_failed_judgments_are_counted_apart(fake: Fake, benchmark: Path, tmp_path: Path) -> None:
    def chokes(response: str, body: dict[str, Any]) -> Any:
        return "I refuse." if "calibration" in response else quality(response)

    fake.opinion = chokes
    found = validate(judge_of(fake), tmp_path, llmbar=benchmark, sizes=SMALL, progress=False)
    row = by_attack(found)["fake-system"]["Overall"]
    assert (row["n"], row["failed"], row["change"]) == (0, 6, None)


def test_two_judges_are_compared(fake: Fake, benchmark: Path, tmp_path: Path) -> None:
    def two(response: str, body: dict[str, Any]) -> int:
        return 6 - quality(response) if body["model"] == "contrary" else quality(response)

    fake.opinion = two
    other = judge_of(fake, model="contrary", name="contrary")
    found = validate(
        judge_of(fake), tmp_path, llmbar=benchmark, others=[other], sizes=SMALL, progress=False
    )
    [compared] = found["judges"]
    assert compared["judge"] == "contrary"
    overall = next(row for row in compared["rows"] if row["dimension"] == "Overall")
    assert (overall["n"], overall["equal"]) == (12, 0.0)
    assert overall["alpha"] < -0.5


def test_a_stopped_validation_goes_on_and_pays_once(
    fake: Fake, benchmark: Path, tmp_path: Path
) -> None:
    def breaks(response: str, body: dict[str, Any]) -> Any:
        if len(fake.asked) > 60:
            return Response(status=401)
        return quality(response)

    fake.opinion = breaks
    settings = judge_of(fake, concurrency=2)
    with pytest.raises(HialignError, match="refused the key"):
        validate(settings, tmp_path, llmbar=benchmark, sizes=SMALL, progress=False)
    assert not (tmp_path / "judge-validation-fake.json").exists()
    partial = tmp_path / "judge-validation" / "first-fake.partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-20])  # killed while it wrote a line
    fake.opinion = lambda response, body: quality(response)

    def run(sizes: Sizes) -> dict[str, Any]:
        return validate(settings, tmp_path, llmbar=benchmark, sizes=sizes, progress=False)

    small, found = run(SMALL.at_most(2)), run(SMALL)
    assert (small["rows"][0]["n"], found["rows"][0]["n"]) == (2, 10)
    assert sorted(fake.answered.values())[-2:] == [1, 2]  # twice: the line that was torn
    once = len(fake.asked)
    assert run(SMALL.at_most(2)) | {"costs": 0} == small | {"costs": 0}
    assert run(SMALL) | {"costs": 0} == found | {"costs": 0}
    assert len(fake.asked) == once


def test_a_local_judge_is_the_same_by_construction(benchmark: Path, tmp_path: Path) -> None:
    settings = JudgeSettings(backend="local", model="random:llama:2")
    sizes = Sizes(llmbar=1, again=3, attacked=1, resamples=50)
    found = validate(settings, tmp_path, llmbar=benchmark, sizes=sizes, progress=False)
    retest = {"items": 3, "repeats": 2, "deterministic": True, "equal": 1.0, "rows": []}
    assert found["retest"] == retest
    assert len(found["weights_sha256"]) == 64
    files = sorted(path.name for path in (tmp_path / "judge-validation").glob("*.jsonl"))
    assert files == [f"{part}-{settings.name}.jsonl" for part in ("again-2", "first")]
    with pytest.raises(HialignError, match="nothing to validate"):
        validate(settings, tmp_path)


# --- the command -------------------------------------------------------------------------------


def study_of(tiny_study: Callable[..., Path], fake: Fake, **changes: Any) -> Path:
    judge = judge_of(fake).model_dump(exclude={"revision", "rubric"})
    return tiny_study(**{"judge": judge} | changes)


def test_the_command_validates_a_studys_judge_and_the_book_shows_it(
    fake: Fake, benchmark: Path, outputs: Path, tiny_study: Callable[..., Path]
) -> None:
    fake.opinion = lambda response, body: quality(response)
    place = study_of(tiny_study, fake)
    arguments = ["judge", str(place), "--validate", "--llmbar", str(benchmark), "--limit", "5"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    study = load_study(place)
    assert done.stdout.strip() == str(report_path(study))
    report = measured(study)
    assert report
    assert report == read_json(report_path(study))
    assert report["preferences"]["rows"][0]["n"] == 5
    assert report["preferences"]["source"] == "pairs.jsonl"
    assert report["command"] == ("hialign judge tiny --validate --llmbar LLMBAR --limit 5")
    assert "Please" not in report_path(study).read_text()  # figures alone, no texts

    assert list(judge_tables.preferences(study)["Pairs"]) == [5, 5]
    attacks = judge_tables.injection(study)
    row = attacks[attacks["Attack"] == "threat"].iloc[0]
    assert (row["Overall"], row["Minus control"], row["Raised"], row["Failed"]) == (0, 0, 0, 0)
    controls = attacks[attacks["Attack"].str.startswith("control-")]
    assert len(controls) == 6
    assert controls["Minus control"].isna().all()
    assert len(attacks) == len(report["injection"]["rows"])
    assert list(judge_tables.reliability(study)["Dimension"]) == [*DIMENSIONS, ALL]
    lengths = judge_tables.length(study)
    assert list(lengths["Responses of"]) == ["LLMBar"] * 5 + ["pairs.jsonl"] * 5
    assert list(lengths["Responses"].dropna()) == [38, 10]
    figure = judge_tables.injection_figure(study)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [attack.id for attack in ATTACKS]
    assert "fake" in figure.get_suptitle()
    made = judge_tables.made(study).iloc[0]
    assert (made["Command"], made["Judgments"]) == (report["command"], report["costs"]["calls"])
    assert judge_tables.gains(study).startswith("0 of 15 attacks raise")


def test_a_folder_of_tranches_is_named_without_its_place(
    fake: Fake, outputs: Path, tiny_study: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "mine" / "hh-rlhf"
    pair = "\n\nHuman: Question {0}?\n\nAssistant: {1}"
    lines = [{s: pair.format(i, s) for s in ("chosen", "rejected")} for i in range(6)]
    write_lines(folder / "harmless-base" / "test.jsonl", lines)
    study = load_study(study_of(tiny_study, fake))
    found = read_json(validate_study(study, "none", str(folder), limit=2))
    assert found["preferences"]["source"] == "hh-rlhf (harmless-base)"
    assert found["command"].endswith("--llmbar none --pairs hh-rlhf --limit 2")
    assert "rows" not in found
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize(
    ("given", "changes", "told"),
    [
        (("/nowhere", ""), {}, "no folder /nowhere.*princeton-nlp/LLMBar.*--llmbar none"),
        (("", ""), {}, "no folder of LLMBar is given.*princeton-nlp/LLMBar.*--llmbar none"),
        (("none", ""), {"preferences": {"source": "builtin", "train": 8}}, "--pairs none"),
        (("none", "none"), {}, "nothing to validate"),
        (("none", ""), {"judge": None}, "names no judge"),
        (("none", ""), {"validation": {"judges": [{"name": "fake"}]}}, "two judges"),
    ],
)
def test_what_is_missing_is_said(
    fake: Fake, outputs: Path, tiny_study: Callable[..., Path], given: Any, changes: Any, told: str
) -> None:
    study = load_study(study_of(tiny_study, fake, **changes))
    with pytest.raises(HialignError, match=told):
        validate_study(study, *given)
    assert not fake.asked


def test_other_judgments_of_the_same_responses_are_compared(
    fake: Fake, outputs: Path, tiny_study: Callable[..., Path]
) -> None:
    from hialign.judging.cells import judge as judge_cell
    from hialign.judging.cells import same_responses

    fake.opinion = lambda response, body: 2 + len(response) % 3
    study = load_study(study_of(tiny_study, fake))
    other = study.model_copy(update={"judge": judge_of(fake, name="second")})
    items = [{"prompt_id": f"p{i}", "prompt": "?", "response": "x" * i} for i in range(1, 8)]
    for block in ("base", "mid"):
        write_jsonl(study.cell(None, block).folder / "responses.jsonl", items)
        vouch(study.cell(None, block), "respond")
        for one in (study, other):
            judge_cell(one.cell(None, block))
    found = same_responses(study)
    assert {name: len(both) for name, both in found.items()} == {"second": 14}
    assert all(ours == theirs and ours for ours, theirs in found["second"])
    stale = study.model_copy(update={"judge": judge_of(fake, max_tokens=99)})
    assert same_responses(stale) == {}  # its own judgments are not of these settings


def test_a_cells_scores_carry_the_judge_and_its_agreement(
    fake: Fake, outputs: Path, tiny_study: Callable[..., Path]
) -> None:
    from hialign.judging.cells import judge as judge_cell

    named = judge_of(fake, name="<fake>").model_dump(exclude={"revision", "rubric"})
    study = load_study(tiny_study(judge=named))
    cell = study.cell(None, "mid")
    item = {"prompt_id": "p", "prompt": "?", "response": "x"}
    write_jsonl(cell.folder / "responses.jsonl", [item])
    vouch(cell, "respond")
    judge_cell(cell)
    shown = show.scores(cell)._repr_html_()
    caption = re.search("<caption>(.*?)</caption>", shown)
    assert caption
    assert caption[1].startswith("Judge: &lt;fake&gt;; agreement with human labels")
    assert caption[1].endswith("not measured")


# --- what is known of a judge ------------------------------------------------------------------


def test_reports_are_kept_for_one_judge_and_rubric(tmp_path: Path) -> None:
    path = tmp_path / "agreement.json"
    record = {"judge": "a", "model": "m", "weights_sha256": "w", "rubric_sha256": "r", "rows": []}
    publish(record | {"date": "1"}, path)
    publish(record | {"date": "2"}, path)
    publish(record | {"weights_sha256": "v"}, path)
    assert [r.get("date") for r in published(path)] == ["2", None]
    assert (report_on("w", "r", published(path)) or {})["date"] == "2"
    assert report_on("w", "another", published(path)) is None
    assert report_on("x", "r", published(path)) is None
    assert published(tmp_path / "none.json") == []


TABLES = (
    judge_tables.preferences,
    judge_tables.reliability,
    judge_tables.length,
    judge_tables.injection,
)


@pytest.mark.parametrize("table", TABLES, ids=lambda f: f.__name__)
def test_tables_of_a_judge_that_was_not_measured(
    fake: Fake, outputs: Path, tiny_study: Callable[..., Path], table: Any
) -> None:
    for study in (study_of(tiny_study, fake), tiny_study(name="none")):
        shown = table(load_study(study))
        assert shown.iloc[0, 0] == "not measured"
        assert shown.isna().sum(axis=1)[0] == len(shown.columns) - 1
        assert "nan" not in shown._repr_html_().lower()
        made = judge_tables.made(load_study(study))
        assert made["Measured on"][0] == "not measured"
        assert made["Command"][0].endswith(" --validate")
        assert judge_tables.gains(load_study(study)) == "not measured"


def test_own_figures_go_before_shipped_ones_and_only_for_this_rubric(
    fake: Fake, outputs: Path, tiny_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hialign.records import agreement as known

    study: Study = load_study(study_of(tiny_study, fake))
    sha = load_rubric().sha256
    shipped = {"model": "fake-1", "rubric_sha256": sha, "date": "1", "rows": ["shipped"]}
    monkeypatch.setattr(known, "published", lambda path=None: [shipped])
    assert measured(study) == shipped
    own = {"model": "fake-1", "rubric_sha256": sha, "date": "2"}
    write_json(report_path(study), own)
    assert measured(study) == own | {"rows": ["shipped"]}
    write_json(report_path(study), own | {"rubric_sha256": "0"})
    assert measured(study) == shipped
