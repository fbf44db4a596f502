"""Which hialign wrote a record: its version and commit. And when a file came into the repository."""

import hashlib
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from hialign.study import paths


def hialign_version() -> str:
    """The installed version, or `unknown` in a checkout that was never installed."""
    try:
        return version("hialign")
    except PackageNotFoundError:
        return "unknown"


def commit() -> str | None:
    """The commit of the checkout as this process began to work, with `+changes` if files differed
    from it. None in a wheel."""
    return _commit(paths.root()) if paths.in_checkout() else None


@lru_cache  # git is slow, and a book names the commit often
def _commit(root: Path) -> str | None:
    try:
        run = ["git", "-C", str(root)]
        head = subprocess.run(
            [*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*run, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


class Added(NamedTuple):
    """The first commit of a file: its date (ISO), its short name, and the file's sha256 then.

    All are empty for a file that no commit has, and where there is no repository.
    """

    date: str = ""
    commit: str = ""
    sha256: str = ""


def added(file: Path) -> Added:
    """When a file was first committed, and what it was then."""
    git = ["git", "-C", str(file.parent)]
    log = [*git, "log", "--diff-filter=A", "--format=%cs %h", "--", file.name]
    try:
        commits = subprocess.run(log, capture_output=True, text=True, check=True).stdout.split()
        if not commits:
            return Added()
        date, commit = commits[-2:]  # the oldest
        show = [*git, "show", f"{commit}:./{file.name}"]
        then = subprocess.run(show, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return Added()
    return Added(date, commit, hashlib.sha256(then).hexdigest())
