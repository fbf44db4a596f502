"""Which hialign wrote a record: its version and commit."""

import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
