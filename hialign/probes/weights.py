"""Weights: how far tuning has moved each layer, and what the base model's own weights say of it.

No pair is run. The first is the size of the change, W - W0 = (alpha / r) B A; the second is Spectrum's
signal-to-noise ratio (`probes.spectrum`). Either is set beside the other probes' layers.
"""

import hashlib
import re
from typing import Any

from hialign.errors import HialignError
from hialign.models import depth_of, identity
from hialign.probes import spectrum
from hialign.probes.common import Parts, measured, probe_settings
from hialign.settings import WeightsSettings
from hialign.study import Cell

LORA = re.compile(r"\.(\d+)\..*\.lora_([AB])\.weight$")


def weights(cell: Cell) -> dict[str, Any]:
    """Leave `probes/weights.json`: `update`, a number a layer, the Frobenius norm of the tuned
    block's change over all adapted matrices of the layer (0 where it has none), and `spectrum`, a
    number a layer (`spectrum.layer_scores`); `tuned`, the block."""
    chosen = probe_settings(cell).weights or WeightsSettings()
    file = cell.study.cell(cell.model.name, chosen.tuned).folder / "adapter"
    file = file / "adapter_model.safetensors"
    if not file.is_file():
        raise HialignError(
            f"{cell.model.name} {chosen.tuned} of study {cell.study.name} has no adapter: run "
            f"`hialign run train -p study {cell.study.name} -p model {cell.model.name} "
            f"-p block {chosen.tuned}` first, or set probes.weights.tuned to another block"
        )
    came_from = {
        "model": identity(cell.model),
        "adapter": hashlib.sha256(file.read_bytes()).hexdigest(),
    }

    def compute(parts: Parts) -> dict[str, Any]:
        return {
            "tuned": chosen.tuned,
            "depth": depth_of(cell.model),
            "update": update_norms(cell, chosen.tuned),
            "spectrum": spectrum.layer_scores(cell.model, cell.study.training.target_modules),
        }

    return measured(cell, "weights", came_from, compute)


def update_norms(cell: Cell, block: str) -> list[float]:
    """The Frobenius norm of (alpha / r) B A over the adapted matrices of each layer."""
    import json

    from safetensors.torch import load_file

    folder = cell.study.cell(cell.model.name, block).folder / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    squares = [0.0] * depth_of(cell.model)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        found = LORA.search(name)
        if found and found[2] == "A":
            b = tensors[name.replace("lora_A", "lora_B")]
            change = (b.float() @ a.float()) * config["lora_alpha"] / config["r"]
            squares[int(found[1])] += float(change.square().sum())
    return [square**0.5 for square in squares]
