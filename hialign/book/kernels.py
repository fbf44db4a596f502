"""Kernels that notebooks and pages run in, each behind Unix sockets of its own.

On TCP a kernel's ports are looked up first and bound a second later, by another process: kernels
that start at the same time can take each other's, and one dies with "Address already in use". On
Linux the sockets have names and no files, so that a killed process leaves none behind. As on TCP,
who else is on the machine may connect, and only who knows the kernel's key may ask it for anything.
"""

import logging
import os
import sys
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from hialign.records.processes import end_with_parent

# On a busy machine outputs come later than nbclient waits (4 s), and it goes on without them.
PATIENT = {"iopub_timeout": 120, "raise_on_iopub_timeout": True}


class Kernel(AsyncKernelManager):
    """A kernel that is reached by sockets in Linux's abstract namespace; elsewhere on TCP."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if sys.platform == "linux":
            self.transport, self.ip = "ipc", f"@hialign-{uuid.uuid4().hex}"

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        # an interrupt while it stops is an error in its log, and none of the notebook's
        return super().format_kernel_cmd([*(extra_arguments or []), "--log-level=50"])


def build_book() -> None:
    """`jupyter-book` with this process's arguments, the last of them the folder of the pages.

    They run in such kernels, all of the processor's cores at work; Sphinx, which would run them one
    by one, then finds them in jupyter-cache. One that failed is not there: Sphinx runs it again and
    reports it.
    """
    from jupyter_book.cli.main import main
    from jupyter_cache import get_cache
    from jupyter_cache.executors import load_executor, utils

    # its workers outlive a parent that is killed
    os.register_at_fork(after_in_child=end_with_parent)
    # it has no setting for these
    utils.executenb = partial(utils.executenb, kernel_manager_class=Kernel, **PATIENT)
    folder = Path(sys.argv[-1])
    cache = get_cache(folder / "_build" / ".jupyter_cache")
    for page in sorted(folder.glob("*.md")):
        if "{code-cell}" in page.read_text(encoding="utf-8"):
            cache.add_nb_to_project(str(page), read_data={"name": "myst_nb_md", "type": "plugin"})
    quiet = logging.getLogger("hialign.book.kernels")
    quiet.setLevel(logging.CRITICAL)
    load_executor("local-parallel", cache, quiet).run_and_cache(timeout=300)
    main()
