"""What a run ran on: versions, device, memory."""

import contextlib
import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hialign.records.provenance import commit, hialign_version

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy")


def environment() -> dict[str, Any]:
    """Versions, commit and device of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "hialign_version": hialign_version(),
        "hialign_commit": commit(),
        "python": platform.python_version(),
        "packages": {p: version(p) for p in PACKAGES},
        "device": device,
        "device_type": "cuda" if torch.cuda.is_available() else "cpu",
        "cpu_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        name = next(names, name)
    return f"{name}, {os.cpu_count()} cores"


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
