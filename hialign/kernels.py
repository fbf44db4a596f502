"""Kernels that notebooks and pages run in, each behind Unix sockets of its own.

On TCP a kernel's ports are looked up first and bound a second later, by another process: kernels
that start at the same time can take each other's, and one dies with "Address already in use".
"""

import logging
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jupyter_client.manager import AsyncKernelManager

# On a busy machine outputs come later than nbclient waits (4 s), and it goes on without them.
PATIENT = {"iopub_timeout": 120, "raise_on_iopub_timeout": True}
LONGEST = 90  # characters of a socket's path; systems allow 104 or more


class Kernel(AsyncKernelManager):
    """A kernel whose sockets lie in a temporary folder that only its user can enter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sockets = TemporaryDirectory(prefix="hialign-kernel-")
        path = f"{self._sockets.name}/socket"
        if len(path) < LONGEST:  # else TCP, as ever
            self.transport, self.ip = "ipc", path

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        # an interrupt while it stops is an error in its log, and none of the notebook's
        return super().format_kernel_cmd([*(extra_arguments or []), "--log-level=50"])

    def cleanup_connection_file(self) -> None:  # called once, when the kernel is gone
        super().cleanup_connection_file()
        self._sockets.cleanup()


def build_book() -> None:
    """`jupyter-book` with this process's arguments, the last of them the folder of the pages.

    They run in such kernels, all of the processor's cores at work; Sphinx, which would run them one
    by one, then finds them in jupyter-cache. One that failed is not there: Sphinx runs it again and
    reports it.
    """
    from jupyter_book.cli.main import main
    from jupyter_cache import get_cache
    from jupyter_cache.executors import load_executor, utils

    # it has no setting for these
    utils.executenb = partial(utils.executenb, kernel_manager_class=Kernel, **PATIENT)
    folder = Path(sys.argv[-1])
    cache = get_cache(folder / "_build" / ".jupyter_cache")
    for page in sorted(folder.glob("*.md")):
        if "{code-cell}" in page.read_text():
            cache.add_nb_to_project(str(page), read_data={"name": "myst_nb_md", "type": "plugin"})
    quiet = logging.getLogger("hialign.kernels")
    quiet.setLevel(logging.CRITICAL)
    load_executor("local-parallel", cache, quiet).run_and_cache(timeout=300)
    main()
