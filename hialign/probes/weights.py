"""Weights: how far tuning has moved each layer, and what the base model's own weights say of it.

No pair is run. The first is the size of the change, W - W0 = (alpha / r) B A. The second is
Spectrum's signal-to-noise ratio (`engine.spectrum`). Both are set beside the other probes' layers.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hialign.engine import spectrum
from hialign.engine.models import depth_of, identity
from hialign.probes.record import Parts, adapter_of, measured, probe_settings
from hialign.records.files import read_json
from hialign.study.probe_settings import WeightsSettings
from hialign.study.study import Cell

LORA = re.compile(r"\.(\d+)\..*\.lora_([AB])\.weight$")


def weights(cell: Cell) -> dict[str, Any]:
    """Measure the change of each layer's weights, and leave `probes/weights.json`.

    Fields of the record: `tuned`, the block; `depth`; by layer, `update`, the Frobenius norm of the
    block's change over all adapted matrices (0 for a layer that has none), and `spectrum`, the score
    of `spectrum.layer_scores`.
    """
    chosen = probe_settings(cell).weights or WeightsSettings()
    folder, adapter = adapter_of(cell, chosen.tuned)
    came_from = {"model": identity(cell.model), **adapter, "spectrum_rule": spectrum.RULE}

    def compute(parts: Parts) -> dict[str, Any]:
        return {
            "tuned": chosen.tuned,
            "depth": depth_of(cell.model),
            "update": update_norms(folder, depth_of(cell.model)),
            "spectrum": spectrum.layer_scores(cell.model, cell.study.training.target_modules),
        }

    return measured(cell, "weights", came_from, compute)


def update_norms(folder: Path, depth: int) -> list[float]:
    """The Frobenius norm of an adapter's change, (alpha / r) B A, in each of `depth` layers.

    The norm is over all adapted matrices of the layer. The adapter is read from its folder.
    """
    config = read_json(folder / "adapter_config.json")
    scale, squares = config["lora_alpha"] / config["r"], [0.0] * depth
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        match = LORA.search(name)
        if match and match[2] == "A":
            b = tensors[name.replace("lora_A", "lora_B")]
            squares[int(match[1])] += norm_of(a, b, scale) ** 2
    return [square**0.5 for square in squares]


def norm_of(a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    """The Frobenius norm of scale B A, from ||B A||^2 = tr((B^T B)(A A^T)).

    This needs no matrix of the weight's own size. `a` is r x inputs, and `b` is outputs x r.
    """
    a, b = a.float(), b.float()
    return scale * float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())
