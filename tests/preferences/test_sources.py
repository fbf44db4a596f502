"""Sources: which files are read, in which formats, what is refused before, and the hub."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from helpers import hh_rows, made_pairs, refused, write_lines

from hialign import HialignError, load_pairs
from hialign.preferences.sources import check_source
from hialign.study import paths
from hialign.study.pair_files import HH_TRANCHES, data_files
from hialign.study.settings import PreferenceSettings

MESSAGES = [
    {
        "prompt": [{"role": "user", "content": f'It\'s {i}, "or" so?'}],
        "chosen": [{"role": "assistant", "content": "Yes,\nit is."}],
        "rejected": [{"role": "assistant", "content": "No"}],
    }
    for i in range(12)
]
CONVERSATIONS = [
    {
        "conversations": [{"from": "human", "value": row["prompt"][0]["content"]}],
        "chosen": {"from": "gpt", "value": "Yes,\nit is."},
        "rejected": {"from": "gpt", "value": "No"},
    }
    for row in MESSAGES
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "texts": list(made_pairs(12)),
    "transcripts": list(hh_rows(12)),
    "messages": MESSAGES,
    "conversations": CONVERSATIONS,
}


def fingerprint(source: Path) -> str:
    return load_pairs(source, train=8, evaluation=3).fingerprint


def settings(source: Any, **more: Any) -> PreferenceSettings:
    return PreferenceSettings(source=str(source), **more)


# --- formats of files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_every_format_of_a_file_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    rows, frame = ROWS[name], pandas.DataFrame(ROWS[name])
    expected = fingerprint(write_lines(tmp_path / "p.jsonl", rows))
    as_json = [
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows
    ]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    pandas.DataFrame(as_json).to_csv(tmp_path / "p.csv", index=False)
    pandas.DataFrame(as_json).to_csv(tmp_path / "p.csv.gz", index=False)
    pandas.DataFrame(as_json).to_csv(tmp_path / "windows.csv", sep=";", lineterminator="\r\n")
    frame.to_csv(tmp_path / "python.csv", index=False)  # pandas writes lists as Python does
    frame.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    frame.to_parquet(tmp_path / "p.parquet")
    before = sorted(tmp_path.iterdir())
    for path in before:
        assert fingerprint(path) == expected, path.name
    assert sorted(tmp_path.iterdir()) == before  # no cache in the user's folder


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, suffix: str) -> None:
    rows = made_pairs(12)
    path = tmp_path / f"p.{suffix}"
    text = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": pandas.DataFrame(rows).to_csv(index=False),
    }[suffix]
    path.write_text(text)
    plain = fingerprint(path)
    path.write_text(text, encoding="utf-8-sig")
    assert fingerprint(path) == plain


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_another_encoding_is_refused_by_its_name(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    path = tmp_path / f"p.{suffix}"
    start = "prompt,chosen,rejected\n" if suffix == "csv" else "[{"
    path.write_text(start, encoding=encoding)
    with refused(f"{path}, line 1: cannot be read, .* perhaps {encoding}.*: rewrite it with"):
        load_pairs(path)


def test_what_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes("prompt,chosen,rejected\na,b,c\nna\u00efve,b,c\n".encode("latin-1"))
    with refused("p.csv, line 3: cannot be read, because it is not UTF-8 but perhaps latin-1"):
        load_pairs(path)


def test_places_in_a_table_are_lines_of_the_file(tmp_path: Path) -> None:
    rows: list[dict[str, str]] = [*hh_rows(20), {"chosen": "x y", "rejected": ""}]
    path = tmp_path / "p.csv"
    pandas.DataFrame(rows).to_csv(path, index=False)
    pairs = load_pairs(path, train=8, evaluation=3)
    (line,) = [n for n, t in enumerate(path.read_text().split("\n"), 1) if t.startswith("x y")]
    assert pairs.report["refused_at"]["train"] == [f"line {line} of p.csv: no common prompt"]


def test_empty_cells_of_a_table_are_missing_values(tmp_path: Path) -> None:
    rows = [row | {"prompt": "", "objective": ""} for row in hh_rows(12)]
    path = tmp_path / "p.csv"
    pandas.DataFrame(rows).to_csv(path, index=False)
    pairs = load_pairs(path, train=8, evaluation=3)
    assert pairs.train[0]["prompt"][1]["content"] == "Why?"
    assert set(pairs.train["objective"]) == {"preference"}


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [row | {"chosen": "word " * 40_000 + "end"} for row in made_pairs(3)]
    pandas.DataFrame(rows).to_csv(path, index=False)
    pairs = load_pairs(path, train=2, evaluation=1)
    assert pairs.train[0]["chosen"][0]["content"].endswith("end")


CSV = "prompt,chosen,rejected\n"
REFUSED = {
    "cut.json": ('[{"prompt": "a",\n"chosen": ', "cut.json, line 2: not JSON"),
    "numbers.json": ("[1, 2]", "numbers.json, row 0: a preference pair needs .* this row is 1$"),
    "deep.json": ("[" * 100_000, "deep.json, line 1: not JSON"),
    "keys.json": (
        '[{"chosen": "a", "rejected": "b"}, {"question": "a", "good": "b"}]',
        r"keys.json, row 1: .* has 'question', 'good': rename .*pandas.read_json\('keys.json'\)",
    ),
    "keys.jsonl": ('{"a": 1}', r"keys.jsonl, line 1: .*read_json\('keys.jsonl', lines=True\)"),
    "keys.csv": ("a,b\n1,2\n", r"keys.csv, line 2: .*pandas.read_csv\('keys.csv'\).rename"),
    "object.json": (
        '{\n"version": 1,\n"data": []}',
        r"one object with the keys version, data: .*open\('object.json'\)\)\['data'\]",
    ),
    "splits.json": ('{"train": [{}], "test": []}', r"one object with .*\)\['train'\]"),
    "columns.json": (
        '{"prompt": {"0": "a"}, "chosen": {"0": "b"}, "rejected": {"0": "c"}}',
        r"columns: rewrite it with `pandas.read_json\('columns.json'\)",
    ),
    "pretty.json": ('{\n"chosen": "a"}\n{\n"chosen": "b"}', "one line: .*`jq -c . pretty.json >"),
    "short.csv": (CSV + "a,b,c\na,b\n", "short.csv, line 3: 2 cells, but 3 columns"),
    "comma.csv": (CSV + "a,b,c, and d\n", "comma.csv, line 2: 4 cells, but 3 columns"),
    "quote.csv": (CSV + 'a,"b,c\n', "quote.csv, line 2: not CSV"),
    "cell.csv": (
        CSV + "a,\"[{'role': 'a'}\n {'role': 'b'}]\",c\n",
        "cell.csv, line 2: the cell of `chosen` looks like messages .* `json.dumps`",
    ),
    "text.parquet": ("not parquet", "text.parquet, at row 0: cannot be read"),
    "pointer.jsonl": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "pointer.jsonl is only a pointer of Git LFS: run `git lfs pull`",
    ),
    "excel.xlsx": ("x", r"the format .xlsx is not read: .*`pandas.read_excel\('.*/excel.xlsx'\)"),
    "packed.zip": ("x", "the format .zip is not read: unpack it"),
    "question.jsonl": (
        '{"question": "a", "chosen": "yes", "rejected": "no"}',
        r"no common prompt; 1 of 1 .*: rename the key that holds the prompt .* \(question\?\)",
    ),
    "empty.json": ("[]", "no pairs at all"),
    "empty.csv": ("", "no pairs at all"),
    "header.csv": (CSV, "no pairs at all"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_what_converts_it(tmp_path: Path, name: str) -> None:
    text, message = REFUSED[name]
    path = tmp_path / name
    path.write_text(text)
    with refused(message) as caught:
        load_pairs(path)
    assert name in str(caught.value)


def test_a_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    rows = [
        row | {"rejected": None if i == 7 else row["rejected"]}
        for i, row in enumerate(ROWS["texts"])
    ]
    pandas.DataFrame(rows).to_parquet(path)
    with refused("^row 7 of p.parquet: neither strings nor messages .*`rejected` is None"):
        load_pairs(path)


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
def test_a_folder_of_splits(tmp_path: Path, suffix: str) -> None:
    for split, prefix in (("train", "A"), ("test", "B")):
        frame = pandas.DataFrame(hh_rows(12, prefix))
        path = tmp_path / f"{split}.{suffix}"
        if suffix == "json":
            frame.to_json(path, orient="records")
        elif suffix == "csv":
            frame.to_csv(path)
        else:
            frame.to_parquet(path)
    pairs = load_pairs(tmp_path, train=12, evaluation=12)
    assert {p[0]["content"][0] for p in pairs.train["prompt"]} == {"A"}
    assert {p[0]["content"][0] for p in pairs.evaluation["prompt"]} == {"B"}


def test_a_split_in_the_parts_that_the_hub_cuts(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for part in range(3):
        rows = pandas.DataFrame(hh_rows(5, f"part {part} "))
        rows.to_parquet(tmp_path / "data" / f"train-0000{part}-of-00003.parquet")
    pairs = load_pairs(tmp_path, train=None, evaluation=2)
    assert pairs.report["read"] == {"train": 15}
    assert len(data_files(settings(tmp_path))) == 3


def test_a_subset_without_files_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "helpful-base" / "train.jsonl", hh_rows(20))
    with refused("no train.jsonl or test.jsonl .* in helpful-bas .looked in .*"):
        load_pairs(tmp_path, subsets=["helpful-base", "helpful-bas"], train=5, evaluation=5)


def test_a_folder_without_splits_says_what_it_has(tmp_path: Path) -> None:
    write_lines(tmp_path / "dpo.json", hh_rows(2))
    with refused("it holds dpo.json, so give one of them as preferences.source"):
        load_pairs(tmp_path)


def test_what_save_to_disk_wrote_is_named(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    pairs = Dataset.from_list(hh_rows(12))
    pairs.save_to_disk(tmp_path / "one")
    DatasetDict(train=pairs).save_to_disk(tmp_path / "dict")
    with refused(r"run `datasets.load_from_disk\('.*/one'\).to_parquet\('.*/one/train.parquet'\)`"):
        load_pairs(tmp_path / "one")
    with refused(r"run `datasets.load_from_disk\('.*/dict'\)\['train'\].to_parquet"):
        load_pairs(tmp_path / "dict")


# --- which files ---------------------------------------------------------------------------------


def test_the_files_of_a_source(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "helpful-base" / "train.jsonl", hh_rows(4))
    test = write_lines(tmp_path / "harmless-base" / "test.jsonl", hh_rows(4))
    write_lines(tmp_path / "red-team-attempts" / "train.jsonl", hh_rows(4))
    assert data_files(settings(tmp_path)) == [test, train]
    assert data_files(settings(tmp_path, subsets=["helpful-base"])) == [train]
    assert data_files(settings(train)) == [train]
    assert data_files(settings("builtin")) == [paths.package() / "preferences" / "builtin.jsonl"]
    for nothing in ("Anthropic/hh-rlhf", tmp_path / "none.jsonl", "./none", tmp_path.parent / "no"):
        assert data_files(settings(nothing)) == []


def test_the_loader_reads_these_files_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hialign.preferences import sources

    write_lines(tmp_path / "train.jsonl", hh_rows(8))
    write_lines(tmp_path / "more" / "test.jsonl", hh_rows(4, "B"))
    write_lines(tmp_path / "more" / "other.jsonl", [])
    opened = []

    def read(path: Path) -> Any:
        opened.append(path)
        return real(path)

    real = sources.read_file
    monkeypatch.setattr(sources, "read_file", read)
    load_pairs(tmp_path, train=8, evaluation=4)
    assert sorted(opened) == data_files(settings(tmp_path))


def test_asking_for_files_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from hialign.preferences.sources import check_source, data_files\n"
        "from hialign.study.settings import PreferenceSettings\n"
        "here = PreferenceSettings(source='builtin'); check_source(here); print(data_files(here))\n"
        "heavy = {'torch', 'datasets', 'numpy', 'pandas', 'pyarrow', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "builtin.jsonl" in done.stdout


# --- what is refused before anything is read -----------------------------------------------------

PATHS = [
    *("none.jsonl", "none.json", "none.csv", "none.parquet", "none.jsonl.gz", "none.xlsx"),
    *("org/none.parquet", "studies/none", "a/b/c", "../none", "./none", "with space", "a\\b"),
]


@pytest.mark.parametrize("source", PATHS)
def test_a_path_is_never_looked_up_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with refused(
        "there is no such file or folder, as relative paths start at the repository, and /"
    ):
        check_source(settings(source))
    with pytest.raises(HialignError) as caught:
        load_pairs(source)
    assert str(paths.root() / source) in str(caught.value)


def test_a_file_of_the_working_directory_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "mine" / "pairs.jsonl", made_pairs(4))
    monkeypatch.chdir(tmp_path)
    for source, place in (("mine/pairs.jsonl", path), ("mine", path.parent)):
        with refused(f"does not exist: write {place} for the one that does$"):
            load_pairs(source)


@pytest.mark.parametrize("source", ["", " "])
def test_no_source_is_refused(source: str) -> None:
    with refused("preferences.source is empty"):
        check_source(settings(source))


def test_an_address_is_refused() -> None:
    with refused("addresses are not read: download the file"):
        check_source(settings("https://example.org/pairs.jsonl"))


@pytest.mark.parametrize("source", ["org/set", "imdb", "org/set-v1.5", "hf://datasets/org/set"])
def test_a_set_on_the_hub_is_not_asked_for_by_the_check(source: str) -> None:
    check_source(settings(source))


def test_the_check_reads_no_data(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("not JSON")
    check_source(settings(path))
    with refused("not JSON"):
        load_pairs(path)


# --- the hub -------------------------------------------------------------------------------------


def test_an_unreachable_set_is_told_in_one_line() -> None:
    with refused("preferences.source hialign-tests/no-such-set could not be loaded from the hub"):
        load_pairs("hialign-tests/no-such-set")


def test_hh_rlhf_is_asked_for_by_tranche(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tranches are folders of the hub's set; all four by default, as the paper names none."""
    import datasets

    asked: list[dict[str, Any]] = []

    def served(source: str, **options: Any) -> Any:
        asked.append({"source": source, **options})
        name = options["data_dir"]
        splits = {"train": hh_rows(6, f"{name} train "), "test": hh_rows(2, f"{name} test ")}
        return {k: datasets.Dataset.from_list(v) for k, v in splits.items()}

    monkeypatch.setattr(datasets, "load_dataset", served)
    pairs = load_pairs(train=24, evaluation=8, revision="abc")
    assert [a["data_dir"] for a in asked] == list(HH_TRANCHES)
    assert {(a["source"], a["revision"]) for a in asked} == {("Anthropic/hh-rlhf", "abc")}
    assert {p[0]["content"].split()[0] for p in pairs.train["prompt"]} == set(HH_TRANCHES)
    load_pairs(train=6, evaluation=2, subsets=["helpful-base"])
    assert [a["data_dir"] for a in asked[4:]] == ["helpful-base"]


def test_other_sets_are_asked_for_by_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def served(source: str, **options: Any) -> Any:
        assert (source, options) == ("org/set", {"revision": None, "name": "easy"})
        return datasets.DatasetDict(train=datasets.Dataset.from_list(made_pairs(20)))

    monkeypatch.setattr(datasets, "load_dataset", served)
    pairs = load_pairs("org/set", subsets=["easy"], train=10, evaluation=5)
    assert pairs.report["read"] == {"train": 20}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `HF_HUB_OFFLINE` were not set; nothing beyond the tests' own machine is asked."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:1")  # nobody listens


@pytest.mark.usefixtures("online")
def test_without_a_network_the_cache_is_asked_once_and_in_silence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    asked = []

    def served(source: str, **options: Any) -> Any:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("in vain")

    monkeypatch.setattr(datasets, "load_dataset", served)
    with refused(
        "could not be loaded from the hub .http://127.0.0.1:1 cannot be reached: .*refused"
    ):
        load_pairs("org/set")
    assert asked == [True]  # no request is tried again
    assert datasets.config.HF_HUB_OFFLINE is False
    assert "Retry" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("online")
def test_a_hub_that_answers_is_asked_as_ever(
    monkeypatch: pytest.MonkeyPatch, httpserver: Any
) -> None:
    """Whatever the answer is: it is `datasets` that judges it."""
    import datasets

    asked = []

    def served(source: str, **options: Any) -> Any:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        return datasets.DatasetDict(train=datasets.Dataset.from_list(made_pairs(20)))

    httpserver.expect_request("/").respond_with_data("", status=503)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", httpserver.url_for("/"))
    monkeypatch.setattr(datasets, "load_dataset", served)
    load_pairs("org/set", train=10, evaluation=5)
    assert asked == [False]


def test_other_splits_of_a_set_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pairs = datasets.Dataset.from_list(made_pairs(4))
    served = datasets.DatasetDict(train_prefs=pairs, test_prefs=pairs)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: served)
    with refused(
        "neither a train nor a test split but train_prefs, test_prefs: .*"
        r"load_dataset\('org/set', split='train_prefs'\).to_json"
    ):
        load_pairs("org/set")


def test_a_set_of_other_columns_says_how_to_rename_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pairs = datasets.Dataset.from_list([{"prompt": "a", "good": "b", "bad": "c"}])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=pairs)
    )
    with refused("^row 0 of org/set: .* has 'prompt', 'good', 'bad': rename .*rename_columns"):
        load_pairs("org/set")
