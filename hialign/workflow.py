"""`hialign reproduce`: Snakemake runs what is missing or out of date, and nothing else."""

import os
import subprocess
import sys

from hialign import paths
from hialign.errors import HialignError
from hialign.preferences import load_pairs
from hialign.study import load_study


def reproduce(study: str, cores: int, profile: str = "", dry_run: bool = False) -> None:
    """Run the cells of `study` through its stages and build its book.

    What would fail late is checked first: the study, its data, a judge's key. Raises HialignError
    with what to do if a cell fails; the others still run to their end.
    """
    loaded = load_study(study)
    judge = loaded.judge
    if judge and judge.backend == "openai" and not dry_run:
        local = "127.0.0.1" in (judge.base_url or "") or "localhost" in (judge.base_url or "")
        if not os.environ.get(judge.api_key_env) and not local:
            raise HialignError(
                f"study {loaded.name} is judged by {judge.model}, but the environment has no "
                f"{judge.api_key_env}: set it, or put `judge: null` into a copy of the study"
            )
    if not dry_run:
        load_pairs(loaded.preferences)
    where = paths.study_dir(loaded.name)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HialignError(f"cannot write {where}: {error.strerror}") from None
    command = [
        *(sys.executable, "-m", "snakemake"),
        *("--snakefile", str(paths.workflow() / "Snakefile")),
        *("--directory", str(where)),
        *("--cores", str(cores)),
        *("--config", f"study={_absolute(study)}"),
        *("--keep-going", "--rerun-incomplete"),
        # One cell at a time asks a judge behind an API, as often and for as much as the settings let.
        *("--resources", "judge_api=1"),
        *("--quiet", "rules", "host"),
        *(["--profile", str(paths.workflow() / profile)] if profile else []),
        *(["--dry-run"] if dry_run else []),
    ]
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PATH": path}
    done = subprocess.run(command, env=environment).returncode
    if done:
        raise HialignError(
            f"study {loaded.name} is not complete: `hialign status {study}` says which cells "
            "failed, their notebooks (….failed.ipynb) why; the same command goes on from here, "
            f"and `hialign book {study}` builds what there is"
        )
    if not dry_run:
        print(f"The book: {paths.html_dir(loaded.name) / 'index.html'}")


def _absolute(study: str) -> str:
    """A study file's path as it is from anywhere; a study's name as it is."""
    return os.path.abspath(study) if study.endswith((".yml", ".yaml")) else study
