"""Kernels that notebooks run in, each behind Unix sockets of its own.

On TCP a kernel's ports are looked up first and bound a second later, by another process: kernels
that start at the same time can take each other's, and one dies with "Address already in use". On
Linux the sockets have names and no files, so that a killed process leaves none behind. As on TCP,
who else is on the machine may connect, and only who knows the kernel's key may ask it for anything.
"""

import sys
import uuid
from typing import Any

from jupyter_client.manager import AsyncKernelManager

# On a busy machine outputs come later than nbclient waits (4 s), and it goes on without them.
PATIENT = {"iopub_timeout": 120, "raise_on_iopub_timeout": True}


class Kernel(AsyncKernelManager):
    """A kernel that is reached by sockets in Linux's abstract namespace, and elsewhere on TCP."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if sys.platform == "linux":
            self.transport, self.ip = "ipc", f"@hialign-{uuid.uuid4().hex}"

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        # an interrupt while it stops is an error in its log, and no error of the notebook
        return super().format_kernel_cmd([*(extra_arguments or []), "--log-level=50"])
