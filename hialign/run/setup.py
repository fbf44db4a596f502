"""What a notebook does first: quiet its libraries and say what this machine has."""

import platform
import warnings

import torch

from hialign.records.provenance import hialign_version


def versions() -> None:
    """Print the versions of hialign, Python and torch, and the GPU if there is one."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # our bars need no widgets
    gpu = "no CUDA GPU"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        gpu = f"{device.name} with {device.total_memory / 2**30:.0f} GiB"
    python = platform.python_version()
    print(f"hialign {hialign_version()}, Python {python}, torch {torch.__version__}, {gpu}")
