"""Studies: what the paper sets, what is refused and how, what makes a run stale."""

import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from hialign import HialignError, load_study
from hialign.study import paths
from hialign.study.settings import ModelSettings, PreferenceSettings, TrainingSettings, model_from
from hialign.study.study import STAGES, Study, study_names

# Table 5, as printed in the paper. Precision is `auto`: bfloat16 on a GPU, as there.
TABLE_5: dict[str, Any] = {
    "learning_rate": 1e-5,
    "optimizer": "adamw_torch",
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "batch_size": 6,
    "gradient_accumulation_steps": 4,
    "epochs": 1,
    "beta": 0.1,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gradient_checkpointing": True,
    "max_length": 2048,
    "seed": 42,
}


def one_line(error: pytest.ExceptionInfo[HialignError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_load(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    own = {
        "smoke": ["base", "full", "mid", "gradient:top30%"]
    }  # studies/where.yml: the thirds first
    everything = ["base", "full", "local", "mid", "global"]
    assert study.blocks[:5] == own.get(name, everything)
    assert len(study.blocks) == 5 or name in ("smoke", "where", "objectives", "hh")
    assert len(study.cells()) == len(study.models) * len(study.blocks) * len(study.seed_names())
    folders = {cell.folder for cell in study.cells()}
    assert len(folders) == len(study.cells())


def test_the_default_study_is_shipped() -> None:
    assert "demo" in study_names()
    assert load_study("demo").models[0].source == "embedded:smollm2-135m-instruct"


def test_the_papers_studies() -> None:
    if "paper" not in study_names():
        pytest.skip("studies/paper.yml is not there yet")
    study = load_study("paper")
    assert len(study.models) == 4
    assert study.training.model_dump().items() >= TABLE_5.items()
    assert study.training.effective_batch == 24
    assert (study.preferences.train, study.preferences.evaluation) == (10_000, 1_000)
    assert study.preferences.source == "Anthropic/hh-rlhf"
    assert study.judge is not None
    assert study.judge.model.startswith("qwen3-max")


def test_defaults_are_table_5() -> None:
    defaults = TrainingSettings().model_dump()
    assert {key: defaults[key] for key in TABLE_5} == TABLE_5
    assert TrainingSettings().effective_batch == 24
    assert (
        PreferenceSettings().model_dump().items()
        >= {
            "source": "Anthropic/hh-rlhf",
            "train": 10_000,
            "evaluation": 1_000,
            "seed": 42,
        }.items()
    )


# --- what is refused -----------------------------------------------------------------------------

PLACES = [
    ({"modles": []}, "unknown key 'modles'"),
    ({"training": {"learning_rat": 1}}, "unknown key 'training.learning_rat'"),
    ({"judge": {"api_key": "secret"}}, "unknown key 'judge.api_key'"),
    ({"models": [{"source": "x/y", "dtype": "bf16"}]}, "unknown key 'models.0.dtype'"),
    ({"training": {"beta": 0}}, "training.beta: Input should be greater than 0 (it is 0)"),
    ({"training": {"lora_dropout": 1.0}}, "training.lora_dropout: Input should be less than 1"),
    ({"training": {"learning_rate": "1e-5x"}}, "training.learning_rate: Input should be a valid"),
    ({"training": {"truncation": "middle"}}, "training.truncation: Input should be 'keep_start'"),
    (
        {"preferences": {"train": 0}},
        "preferences.train: Input should be greater than or equal to 1",
    ),
    ({"models": []}, "models: "),
    ({"blocks": ["middle"]}, "block 'middle' is not one of base, full, local, mid, global"),
    ({"blocks": ["mid", "mid"]}, "a block is given twice"),
    ({"models": ["random:llama", "random:llama"]}, "two models have the same name"),
    ({"training": None}, "training: "),
    # names that are folders
    *[
        (
            {"models": [{"source": "random:llama", "name": name}]},
            f"models.0: the name {name!r} {why}",
        )
        for name, why in [
            *((name, "is reserved") for name in ("html", "Notebooks", "explorations", "published")),
            *((name, "begins with a dot") for name in (".snakemake", ".book", ".", "..")),
        ]
    ],
    ({"models": [""]}, "models.0: the name is empty"),
    ({"models": ["/"]}, "models.0: the name is empty"),
    ({"models": [{"source": "random:llama", "name": "x" * 101}]}, "has over 100 characters"),
    ({"models": [{"source": "random:llama", "name": "語" * 60}]}, "(or 150 bytes)"),
    ({"models": ["a\nb"]}, "models.0: it has a line break or another control character"),
    (
        {"models": [{"source": "random:llama", "label": "a\u2028b"}]},
        "models.0.label: it has a line",
    ),
    ({"models": ["org/a", "org--a"]}, "'org/a' and 'org--a' would share the folder org--a"),
    ({"models": ["org/a", "Org/A"]}, "'org/a' and 'Org/A' would share the folder org--a"),
    ({"name": "published"}, "name: the name 'published' is reserved"),
    ({"name": ".x"}, "name: the name '.x' begins with a dot"),
    ({"name": "x" * 101}, "name: the name has over 100 characters"),
    ({"judge": {"name": "a\x7fb"}}, "judge.name: it has a line break or another control"),
    ({"judge": {"name": "../x"}}, "judge: the name '../x' has a slash"),
    ({"judge": {"name": "x" * 101}}, "judge: the name has over 100 characters"),
    # blocks
    ({"blocks": []}, "blocks: List should have at least 1 item"),
    ({"blocks": ["layers:" + ",".join(map(str, range(60)))]}, "150 at most: write layers that"),
    ({"blocks": ["full:r999999"]}, "block 'full:r999999': rank 999999 is over 65536"),
    ({"blocks": ["random:30%:4294967296"]}, "seed 4294967296 is over 4294967295"),
    ({"blocks": ["layers:" + "9" * 5000]}, "150 at most"),
    ({"blocks": ["layers:\u0661"]}, "is not one of base"),  # a digit of another script
    (
        {
            "models": [{"source": "random:llama", "name": "x" * 100}],
            "blocks": ["layers:" + ",".join(map(str, range(20, 60)))],
        },
        "make a file name that is too long",
    ),
    ({"probes": {"matrix": {"blocks": ["middle"]}}}, "probes.matrix.blocks: block 'middle' is not"),
    ({"probes": {"matrix": {"blocks": []}}}, "probes.matrix.blocks: List should have at least 1"),
    # sizes
    ({"training": {"lora_rank": 10**6}}, "training.lora_rank: Input should be less than or equal"),
    ({"responses": {"max_new_tokens": 10**9}}, "responses.max_new_tokens: Input should be less"),
    ({"preferences": {"seed": -1}}, "preferences.seed: Input should be greater than or equal to 0"),
    ({"training": {"seed": 2**32}}, "training.seed: Input should be less than or equal to 4294967"),
    ({"probes": {"matrix": {"seeds": [1, -1]}}}, "probes.matrix.seeds.1: Input should be greater"),
    ({"probes": {"patching": {"ranks": [0]}}}, "probes.patching.ranks.0: Input should be greater"),
    ({"judge": {"max_failed": 1.1}}, "judge.max_failed: Input should be less than or equal to 1"),
    # numbers
    ({"training": {"learning_rate": math.inf}}, "training.learning_rate: Input should be a finite"),
    ({"training": {"learning_rate": "nan"}}, "training.learning_rate: Input should be a finite"),
    ({"training": {"epochs": math.nan}}, "training.epochs: Input should be a finite number"),
    (
        {"probes": {"ila": {"gate_start": -math.inf}}},
        "probes.ila.gate_start: Input should be a fin",
    ),
    ({"judge": {"extra_body": {"x": [math.nan]}}}, "judge.extra_body: it cannot be sent as JSON"),
    ({"training": {"adam_beta1": 1.0}}, "training.adam_beta1: Input should be less than 1"),
    ({"training": {"adam_beta2": -0.1}}, "training.adam_beta2: Input should be greater than or"),
    ({"training": {"batch_size": True}}, "training.batch_size: it must be a number, not true"),
    ({"training": {"epochs": True}}, "training.epochs: it must be a number, not true or false (it"),
    ({"training": {"tokens_per_pass": True}}, "training.tokens_per_pass: it must be a number"),
    (
        {"probes": {"ila": {"top": [True]}}},
        "probes.ila.top: it must be a number, not true or false",
    ),
    # what is no list
    ({"models": "random:llama"}, "models: Input should be a valid list (it is 'random:llama')"),
    ({"models": None}, "models: Input should be a valid list (it is null)"),
    ({"models": 5}, "models: Input should be a valid list (it is 5)"),
    ({"models": {"a": "b"}}, "models: Input should be a valid list (it is {'a': 'b'})"),
    # what would break or fill the line
    ({"training": {"scheduler": ["a\nb"]}}, "training.scheduler: "),
    ({"training": {"truncation": "z" * 5000}}, "zzz…)"),
    ({"a\nb": 1}, "unknown key 'a b'"),
    ({f"k{i}": 1 for i in range(500)}, "and 492 more"),
]


@pytest.mark.parametrize(("changes", "problem"), PLACES)
def test_a_wrong_setting_is_refused_with_file_and_key(
    tiny_study: Callable[..., Path], changes: dict[str, Any], problem: str
) -> None:
    path = tiny_study(**changes)
    with pytest.raises(HialignError) as caught:
        load_study(path)
    assert one_line(caught).startswith(f"{path}: ")
    assert problem in one_line(caught)


def test_all_problems_are_told_at_once(tiny_study: Callable[..., Path]) -> None:
    path = tiny_study(training={"beta": -1, "rank": 8}, title=None)
    with pytest.raises(HialignError) as caught:
        load_study(path)
    for key in ("title", "training.beta", "training.rank"):
        assert key in one_line(caught)


def test_missing_keys_are_told(tmp_path: Path) -> None:
    path = tmp_path / "empty.yml"
    path.write_text("{}\n")
    with pytest.raises(HialignError) as caught:
        load_study(path)
    assert one_line(caught) == f"{path}: key 'title' is missing; key 'models' is missing"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("title: [", " is not YAML"),
        ("title: T\n\tmodels: []\n", " is not YAML: while scanning for the next token found char"),
        ("- a\n- b\n", " is not a study: it must be a mapping"),
        ("", " is not a study: it must be a mapping"),
        ("1: x\n", ": line 1: the key 1 is read as a int: put it in quotes"),
        ("title: T\nnull: x\n", ": line 2: the key null is read as a null: put it in quotes"),
        ("? [a, b]\n: x\n", ": line 1: the key is read as a seq: put it in quotes"),
        ("title: 2026-01-01\n", ": line 1: title is read as a timestamp: put it in quotes"),
        ("judge:\n  model: !!binary aGk=\n", ": line 2: judge.model is read as a binary"),
        ("title: !!python/name:os.system x\n", ": line 1: title is read as a"),
        ("title: a\nmodels: []\ntitle: b\n", ": line 3: the key 'title' is given twice (first in"),
        (
            "judge:\n  extra_body:\n    - {a: 1, a: 2}\n",
            ": line 3: the key 'judge.extra_body.0.a' is given twice (first in line 3): leave one out",
        ),
        ("title: " + "[" * 100_000, ": values are nested over 40 levels deep"),
        ("title: " + "[" * 60 + "]" * 60, ": line 1: values are nested over 40 levels deep"),
        ("title: &a [*a]\n", ": line 1: values are nested over 40 levels deep"),
        ("title: " + "9" * 5000, "Exceeds the limit"),
        (
            "title: caf\u00e9\n".encode("utf-16"),
            " is not UTF-8 text (see byte 0): save it as UTF-8",
        ),
        ("title: T\n".encode("utf-16-le"), " is not YAML: unacceptable character #x0000"),
        ("title: caf\u00e9\n".encode("latin-1"), " is not UTF-8 text (see byte 10)"),
        (b"#" * 1_000_001, ": the file is over 1 MB, so it is no study"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = tmp_path / "broken.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HialignError) as caught:
        load_study(path)
    assert problem in one_line(caught)
    assert str(path) in one_line(caught)


def test_aliases_that_explode_are_refused(tmp_path: Path) -> None:
    names = "abcdefghij"
    lists = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    merges = [f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in pairwise(names)]
    long = ['a: &a "' + "x" * 300_000 + '"', f"b: [{', '.join(['*a'] * 9)}]"]
    path = tmp_path / "laughs.yml"
    for lines in (["a: &a [x, x]", *lists], ["a: &a {x: 1}", *merges], long):
        path.write_text("\n".join(lines))
        with pytest.raises(HialignError, match="with its aliases written out, it is over 1 MB"):
            load_study(path)


def test_merge_keys_byte_order_marks_and_numbers_as_text_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "fine.yml"
    path.write_text(
        "\ufefftitle: 'Où? 日本語'\nmodels: ['random:llama']\n"
        "training: &t {beta: 0.2, learning_rate: 1e-3, batch_size: '4'}\n"
        "judge: {extra_body: {a: &a {x: 1, y: 1}, b: {<<: *a, x: 2}}}\n"
        "description: |\n  Two\n  lines\n",
        encoding="utf-8",
    )
    study = load_study(path)
    assert study.title == "Où? 日本語"
    assert study.training.learning_rate == 1e-3
    assert study.training.batch_size == 4
    assert study.judge is not None
    assert study.judge.extra_body["b"] == {"x": 2, "y": 1}
    assert study.description == "Two\nlines\n"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a\0b", "there is no study 'a\\x00b'"),
        ("a\0b.yml", "cannot read the study a\\x00b.yml: embedded null byte"),
        ("x" * 300, "there is no study 'xxx"),
        ("a\nb", "there is no study 'a\\nb'"),
        ("~nobody-is-called-so/x.yml", "No such file"),
        ("\ud800.yml", "cannot read the study"),
    ],
)
def test_a_path_that_no_file_can_have_is_one_line(name: str, problem: str) -> None:
    with pytest.raises(HialignError) as caught:
        load_study(name)
    assert problem in one_line(caught)


def test_a_folder_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "folder.yml").mkdir()
    with pytest.raises(HialignError, match=r"cannot read the study .*folder\.yml: Is a directory"):
        load_study(tmp_path / "folder.yml")
    with pytest.raises(HialignError, match=r"there is no study .*: give the path of a \.yml file"):
        load_study(tmp_path)


def test_an_unknown_study_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(HialignError, match=r"there is no study 'dmeo': .*demo") as caught:
        load_study("dmeo")
    one_line(caught)
    with pytest.raises(HialignError, match=r"cannot read the study .*none\.yml: No such file"):
        load_study(tmp_path / "none.yml")


# --- names and cells -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "label"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
        *[("embedded:smollm2-135m-instruct", "smollm2-135m-instruct", "smollm2-135m-instruct")],
        ("random:llama", "random-llama", "random-llama"),
        ("/models/My-Model/", "My-Model", "My-Model"),
        ("./models/My-Model", "My-Model", "My-Model"),
        ("~/My-Model", "My-Model", "My-Model"),
    ],
)
def test_names_of_models(source: str, name: str, label: str) -> None:
    model = ModelSettings(source=source)
    assert (model.name, model.label) == (name, label)


def test_cells(tiny_study: Callable[..., Path], outputs: Path) -> None:
    study = load_study(
        tiny_study(models=["random:llama", "org/model"], blocks=["base", "layers:1-2,4"])
    )
    assert [(c.model.name, c.block) for c in study.cells()] == [
        ("random-llama", "base"),
        ("random-llama", "layers:1-2,4"),
        ("org/model", "base"),
        ("org/model", "layers:1-2,4"),
    ]
    assert study.cells()[3].folder == outputs / "tiny" / "org--model" / "layers-1-2_4"
    assert study.cell(None, "mid").model.name == "random-llama"
    assert study.cell("org/model", "mid").strategy == "Mid-Align"
    assert study.model("other/model").source == "other/model"
    with pytest.raises(HialignError, match="block 'middle' is not one of"):
        study.cell(None, "middle")


def test_paths_stay_one_component(outputs: Path) -> None:
    folder = paths.cell_dir("my/study", "a/b:c", "layers:1,2")
    assert folder.relative_to(outputs).parts == ("my--study", "a--b-c", "layers-1_2")


def test_a_study_knows_how_it_was_named(
    tiny_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_study("smoke").argument == "smoke"
    path = tiny_study(name="tiny")
    study = load_study(path)
    assert study.argument == str(path)
    spaced = path.with_name("my study's.yml")
    spaced.write_text(path.read_text(encoding="utf-8") + "name: tiny\n", encoding="utf-8")
    monkeypatch.chdir(path.parent)
    other = load_study("my study's.yml")
    assert shlex.split(other.argument) == ["my study's.yml"]
    assert other.model_copy(update={"title": "Other"}).argument == other.argument
    assert load_study(other) is other
    assert other == study  # as their settings are the same
    assert other != study.model_copy(update={"title": "Other"})
    assert other.model_dump() == study.model_dump()
    assert other.cell(None, "mid").fingerprint("train") == study.cell(None, "mid").fingerprint(
        "train"
    )
    assert Study(name="a b", title="T", models=["random:llama"]).argument == "'a b'"


def test_a_model_that_is_not_listed_has_to_look_like_a_source(
    tiny_study: Callable[..., Path], tmp_path: Path
) -> None:
    models = [{"source": "Qwen/Qwen2.5-7B", "label": "Qwen 7B"}, "random:llama"]
    study = load_study(tiny_study(models=models))
    for name in ("Qwen/Qwen2.5-7B", "Qwen 7B", "random-llama", "random:llama"):
        assert study.model(name) in study.models
        assert study.model(name).hint == ""
    for name in ("random:qwen2", "embedded:x", "./x", "~/x", str(tmp_path), "tests", "org/name"):
        assert study.model(name).source == name
    for name, nearest in (
        ("Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("qwen-7b", "Qwen 7B"),
        ("randm-llama", "random-llama"),
    ):
        with pytest.raises(HialignError) as caught:
            study.model(name)
        assert f"no model {name!r} (did you mean {nearest!r}?): it has" in one_line(caught)
        assert "Qwen/Qwen2.5-7B, random-llama: " in one_line(caught)
    for name in ("", "gpt2", "a/b/c", "org/a b", "a\nb", "\0", "x" * 10_000):
        with pytest.raises(HialignError, match="study tiny has no model "):
            study.model(name)
    for name in ("..", "x/" + "y" * 200):
        with pytest.raises(HialignError, match=r"^model '"):
            study.model(name)


def test_a_source_that_cannot_be_a_name_is_one_line() -> None:
    for source in ("a\nb", "", "x" * 200):
        with pytest.raises(HialignError) as caught:
            model_from(source)
        assert one_line(caught).startswith("model '")


def test_a_hub_id_close_to_a_model_of_the_study_has_a_hint(tiny_study: Callable[..., Path]) -> None:
    study = load_study(tiny_study(models=["Qwen/Qwen2.5-7B"]))
    model = study.model("Qwen/Qwen2-7B")
    assert model.hint == "did you mean 'Qwen/Qwen2.5-7B'?"
    assert model == ModelSettings(source="Qwen/Qwen2-7B")
    assert "hint" not in str(model.model_dump())
    assert hash(model) == hash(ModelSettings(source="Qwen/Qwen2-7B"))
    assert study.model("other/thing").hint == ""


def test_a_folder_in_the_repository_names_a_model_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelSettings(source="tests/book").name == "book"  # as models.locate finds it
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert ModelSettings(source="org/name").name == "org/name"


def test_text_is_read_and_printed_where_the_locale_is_ascii(
    tiny_study: Callable[..., Path], outputs: Path
) -> None:
    path = tiny_study(models=[{"source": "random:llama", "label": "Modèle 日本"}], title="Où?")
    path.write_text(
        yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")), allow_unicode=True),
        encoding="utf-8",
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name in ("smoke", str(path)):
        done = subprocess.run(
            [sys.executable, "-m", "hialign.run", "status", name],
            capture_output=True,
            env=os.environ | ascii_only,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"missing" in done.stdout
    assert b"O??" in done.stdout


# --- fingerprints --------------------------------------------------------------------------------


def changed(study: Study, section: str, **values: Any) -> Study:
    """`study` with other `values` in one section."""
    return study.model_copy(
        update={section: getattr(study, section).model_copy(update=values)},
    )


# What a change of each section makes stale
DEPENDENT = {
    ("preferences", "seed", 7): set(STAGES),
    ("training", "learning_rate", 0.5): set(STAGES),
    ("responses", "max_new_tokens", 7): {"respond", "evaluate", "judge"},
    ("evaluation", "resamples", 999): {"evaluate"},
    ("judge", "temperature", 0.5): {"judge"},
    ("analysis", "margin", 0.5): set(),
    ("judge", "max_failed", 0.5): set(),
}


@pytest.mark.parametrize(("section", "key", "value"), DEPENDENT)
def test_fingerprints_change_only_with_what_matters(
    tiny_study: Callable[..., Path], section: str, key: str, value: Any
) -> None:
    study = load_study(tiny_study(judge={"backend": "local", "model": "random:llama"}))
    other = changed(study, section, **{key: value})
    stale = {
        stage
        for stage in STAGES
        if study.cell(None, "mid").fingerprint(stage) != other.cell(None, "mid").fingerprint(stage)
    }
    assert stale == DEPENDENT[section, key, value]


def test_base_does_not_depend_on_training(tiny_study: Callable[..., Path]) -> None:
    study = load_study(tiny_study())
    other = changed(study, "training", learning_rate=0.5)
    for stage in STAGES:
        assert study.cell(None, "base").fingerprint(stage) == other.cell(None, "base").fingerprint(
            stage
        )


def test_fingerprints_tell_cells_apart_and_names_do_not_matter(
    tiny_study: Callable[..., Path],
) -> None:
    study = load_study(tiny_study(models=["random:llama", "random:qwen2"]))
    assert len({c.fingerprint("train") for c in study.cells()}) == len(study.cells())
    again = load_study(tiny_study(name="renamed", title="Other", models=["random:llama"]))
    assert study.cells()[1].fingerprint("train") == again.cells()[1].fingerprint("train")


def test_a_fingerprint_is_the_same_in_another_process(tiny_study: Callable[..., Path]) -> None:
    path = tiny_study()
    code = (
        "import sys; from hialign import load_study; "
        "print(load_study(sys.argv[1]).cell(None, 'mid').fingerprint('train'))"
    )
    run = [sys.executable, "-c", code, str(path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    assert out == load_study(path).cell(None, "mid").fingerprint("train")


def test_settings_are_plain_values(tiny_study: Callable[..., Path]) -> None:
    cell = load_study(tiny_study()).cell(None, "mid")
    for stage in STAGES:
        assert yaml.safe_load(yaml.safe_dump(cell.settings(stage))) == cell.settings(stage)


def test_importing_hialign_imports_no_torch() -> None:
    code = (
        "import sys, hialign, hialign.study.study, hialign.study.blocks, hialign.records.frames; "
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", study_names())
def test_a_studys_copy_has_its_fingerprints(name: str, tmp_path: Path) -> None:
    """As the book's pages and what is published have it; else all their runs would be stale."""
    study = load_study(name)
    copy = tmp_path / "copy.yml"
    copy.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    for ours, theirs in zip(study.cells(), load_study(copy).cells(), strict=True):
        for stage in STAGES:
            assert ours.fingerprint(stage) == theirs.fingerprint(stage), stage


def test_a_users_mistake_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="there is no study 'dmeo'"):
        load_study("dmeo")
