"""What the Explore page is given: the index, the texts, and that neither can be more than data."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explorer_page import assemble
from helpers import vouch

from hialign.book import responses as explorer
from hialign.records.files import write_jsonl
from hialign.records.stages import judgments_file
from hialign.study.errors import HialignError
from hialign.study.rubric import DIMENSIONS
from hialign.study.study import Cell, Study

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><!-- <script>",
    "]]>--><img src=x onerror='window.pwned=2'>",
    "it's \\' \\\\' \\u003c \" ` ${window.pwned=3}",
    "line\u2028separator\u2029and\x85more\r\n\ttab",
    "half \ud83d a character, the other \ude00",
    "NUL \x00 ESC \x1b[31m DEL \x7f",
    "\u202etxet eht snrut\u2066 \u200b\ufeff\U000e0041",
    "__proto__",
]


def make_study(**settings: Any) -> Study:
    """Two models; the local judge's scores may be fractional."""
    settings = {
        "title": "Made up",
        "models": [{"source": "random:a"}, {"source": "random:b"}],
        "blocks": ["base", "full", "mid"],
        "preferences": {"source": "builtin"},
        "judge": {"backend": "local", "model": "embedded:judge"},
    } | settings
    return Study(name="made-up", **settings)


def write_cell(cell: Cell, rows: list[dict[str, Any]], judgments: list[dict[str, Any]]) -> None:
    """`rows` with the fields that hialign.evaluation.respond always writes, and the judge's file."""
    default = {"prompt": "?", "response": "!", "tokens": 1, "finish_reason": "stop"}
    write_jsonl(cell.folder / "responses.jsonl", [default | row for row in rows])
    vouch(cell, "respond")
    if cell.study.judge:
        judge = {"judge": cell.study.judge.name, "reasons": {}}
        write_jsonl(judgments_file(cell), [judge | row for row in judgments])
        vouch(cell, "judge")


def content(file: Path) -> Any:
    """What a file hands over, read as a JavaScript engine would."""
    text = file.read_bytes().decode("utf-8")
    match = re.fullmatch(r"hialignExplorer\.receive\('([\w-]+)','(.*)', *\d+, *\d+\);\n", text)
    assert match, text[:200]
    assert match[1] == file.stem
    assert not re.search(r"(?<!\\)(\\\\)*'", match[2]), "the string ends early"
    return json.loads(re.sub(r"\\(.)", r"\1", match[2]))


def scores_in(cell: dict[str, Any]) -> np.ndarray:
    """Prompts x dimensions; 0 is no score."""
    found = np.frombuffer(base64.b64decode(cell["scores"]), dtype="<u2").reshape(-1, 16)
    return found / explorer.SCALE


@pytest.mark.parametrize("text", HOSTILE)
def test_a_literal_is_harmless_and_says_the_same(text: str) -> None:
    for value in (text, {text: [text, None, 1.5]}):
        found = explorer.literal(value)
        found.encode("utf-8")  # no half characters
        assert not re.search("[<>&\n\r\u2028\u2029\x00-\x1f\x7f-\x9f\u202e\ufeff]", found)
        assert not re.search(r"(?<!\\)(\\\\)*'", found[1:-1])
        assert json.loads(re.sub(r"\\(.)", r"\1", found[1:-1])) == value


def test_the_index_holds_what_the_records_say(outputs: Path, tmp_path: Path) -> None:
    study = make_study()
    full = dict(zip(DIMENSIONS, [round(1 + i / 3.9, 6) for i in range(16)], strict=True))
    for cell in study.cells():
        rows = [
            {"prompt_id": "p0", "prompt": "a" * 300, "response": "same", "tokens": 7},
            {"prompt_id": "p1", "prompt": "b", "response": cell.block, "finish_reason": "length"},
            {"prompt_id": "p2", "prompt": "c", "response": "", "prompt_truncated": True},
        ]
        judgments = [
            {"prompt_id": "p0", "scores": full, "reasons": {"Tone": "kind"}},
            {"prompt_id": "p1", "scores": {}, "error": "no JSON in it"},
        ]
        if (cell.model.name, cell.block) != ("random-b", "mid"):
            write_cell(cell, rows[: 2 if cell.block == "full" else 3], judgments)
    sizes = assemble(study, tmp_path / "html")
    folder = tmp_path / "html" / "explore"
    index = content(folder / "index.js")
    assert (sizes.prompts, sizes.responses) == (3, 13)
    assert sizes.index == (folder / "index.js").stat().st_size
    data = [folder / "index.js", *folder.glob("texts-*.js")]
    assert sizes.total == sum(p.stat().st_size for p in data)
    told = re.search(r", *(\d+), *(\d+)\);\n$", (folder / "index.js").read_text())
    assert told
    assert [int(told[1]), int(told[2])] == [sizes.index, sizes.total]
    assert index["models"] == ["random-a", "random-b"]
    assert index["strategies"] == ["Base", "Full-DPO", "Mid-Align"]
    assert index["harmless"] is True
    assert index["beginnings"] == ["a" * 240, "b", "c"]
    assert index["lengths"] == [300, 1, 1]
    assert index["cells"][1][2] is None, "a cell that has not answered"
    base, full_dpo, mid = index["cells"][0]
    assert base["tokens"] == [7, 1, 1]
    answered, judged = explorer.ANSWERED, explorer.JUDGED
    assert base["flags"] == [
        answered + judged + explorer.VALID,
        answered + judged + explorer.CUT,
        answered + explorer.PROMPT_CUT,
    ]
    assert full_dpo["flags"][2] == 0, "one prompt without a response"
    assert full_dpo["tokens"][2] is None
    assert scores_in(base)[0] == pytest.approx([*full.values()], abs=5e-5)
    assert not scores_in(base)[1:].any()
    assert [cell["same"] for cell in (base, full_dpo, mid)] == [[1, 0, 1], [1, 0, 0], [1, 0, 1]]
    prompt, answers = content(folder / "texts-0-0.js")[0]
    assert prompt == "a" * 300
    reasons = ["kind" if name == "Tone" else "" for name in DIMENSIONS]
    assert answers == [["same", reasons]] * 3
    assert content(folder / "texts-0-0.js")[1][1][0] == ["base", "no JSON in it"]
    assert content(folder / "texts-0-0.js")[2][1] == [["", None], None, ["", None]]


def test_scores_that_are_none_stay_none(outputs: Path, tmp_path: Path) -> None:
    """Neither text, nor a truth value, nor a number off the scale becomes a score."""
    study = make_study(models=["random:a"], blocks=["base"])
    odd = ["5", True, 0, 6, -3, None, [4], {"score": 4}, 1e300]
    scores = dict(zip(DIMENSIONS, odd, strict=False))
    write_cell(
        study.cell(None, "base"), [{"prompt_id": "p"}], [{"prompt_id": "p", "scores": scores}]
    )
    assemble(study, tmp_path)
    (cell,) = content(tmp_path / "explore" / "index.js")["cells"][0]
    assert cell["scores"] == ""
    assert cell["flags"] == [explorer.ANSWERED + explorer.JUDGED]


def test_texts_come_in_parts_that_hold_each_prompt_once(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "CHUNK_BYTES", 3000)
    study = make_study(models=["random:a"])
    for cell in study.cells():
        rows = [
            {"prompt_id": f"p{i}", "prompt": f"Prompt {i}", "response": "x" * 60 * i}
            for i in range(40)
        ]
        write_cell(cell, rows, [])
    assemble(study, tmp_path)
    folder = tmp_path / "explore"
    index = content(folder / "index.js")
    (chunks,) = index["chunks"]
    assert len(chunks) > 10
    seen = []
    for number, (first, count, size, _) in enumerate(chunks):
        file = folder / f"texts-0-{number}.js"
        rows = content(file)
        assert file.stat().st_size == size
        assert (len(seen), len(rows)) == (first, count)
        assert count == 1 or size < 3500
        seen += [prompt for prompt, _ in rows]
    assert seen == [f"Prompt {i}" for i in range(40)]


def test_hostile_records_stay_data(outputs: Path, tmp_path: Path) -> None:
    study = make_study(
        models=[{"source": "random:a", "label": HOSTILE[0]}], title=HOSTILE[1], blocks=["base"]
    )
    rows = [{"prompt_id": t, "prompt": t, "response": t} for t in HOSTILE]
    judgments = [
        {"prompt_id": t, "scores": dict.fromkeys([*DIMENSIONS, t], 4), "reasons": {"Tone": t, t: t}}
        for t in HOSTILE[:-1]
    ]
    write_cell(
        study.cell(None, "base"),
        rows,
        [*judgments, {"prompt_id": HOSTILE[-1], "error": HOSTILE[0]}],
    )
    assemble(study, tmp_path)
    folder = tmp_path / "explore"
    index = content(folder / "index.js")
    assert index["ids"] == index["beginnings"] == HOSTILE
    texts = content(folder / "texts-0-0.js")
    assert [row[0] for row in texts] == [row[1][0][0] for row in texts] == HOSTILE
    assert [row[1][0][1][6] for row in texts[:-1]] == HOSTILE[:-1]
    assert texts[-1][1][0][1] == HOSTILE[0]
    for file in (folder / "index.js", folder / "texts-0-0.js"):
        assert not re.search("[<>&\u2028\u2029\u202e\x00]", file.read_text(encoding="utf-8"))


def test_the_same_records_give_the_same_bytes_and_nothing_old_stays(
    outputs: Path, tmp_path: Path
) -> None:
    study = make_study()
    for cell in study.cells():
        write_cell(cell, [{"prompt_id": "p", "response": cell.block}], [])
    folder = tmp_path / "explore"
    assemble(study, tmp_path)
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "texts-7-0.js").write_text("of an earlier study")
    assemble(study, tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first


def test_nothing_answered_and_no_judge(outputs: Path, tmp_path: Path) -> None:
    study = make_study(judge=None)
    assert assemble(study, tmp_path).prompts == 0
    index = content(tmp_path / "explore" / "index.js")
    assert index["judge"] is None
    assert index["dimensions"] == index["ids"] == []
    assert index["cells"] == [[None] * 3] * 2
    assert not list((tmp_path / "explore").glob("texts-*"))


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("builtin", "builtin"),
        ("Anthropic/hh-rlhf", "Anthropic/hh-rlhf"),
        ("/home/someone/secret place/pairs.jsonl", "pairs.jsonl"),
        ("../data/hh", "hh"),
    ],
)
def test_a_source_is_named_without_its_folders(
    outputs: Path, tmp_path: Path, source: str, shown: str
) -> None:
    assemble(make_study(preferences={"source": source}), tmp_path)
    index = content(tmp_path / "explore" / "index.js")
    assert index["source"] == shown
    assert index["harmless"] == (source == "builtin")
    assert "secret place" not in (tmp_path / "explore" / "index.js").read_text()


def test_a_folder_that_cannot_be_written_is_named(outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HialignError, match=r"cannot write .*file/explore"):
        explorer.write(make_study(), tmp_path / "file" / "explore")
