"""Which hialign wrote a record: its version and commit."""

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, version

from hialign.study import paths


def hialign_version() -> str:
    try:
        return version("hialign")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


@functools.cache  # git takes long beside what asks: a book names its commit under each exhibit
def commit() -> str | None:
    """The commit of the checkout as this process began to work, with `+changes` if the tree differed
    from it; None in a wheel."""
    if not paths.in_checkout():
        return None
    try:
        run = ["git", "-C", str(paths.root())]
        head = subprocess.run(
            [*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*run, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
