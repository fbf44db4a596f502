"""Nulls: the tuned model with random changes in place of those that tuning made.

Each changed matrix gets a change of the same size in a random direction. Nothing in it has seen a
preference, and yet every layer moves the pairs' log-probabilities as far as an equally large step
does. What tuning did has to stand out from that.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer

from hialign.probes.patching.runs import Side

Weights = dict[torch.nn.Parameter, torch.Tensor]


@contextmanager
def randomized(sides: Mapping[str, Side], seed: int) -> Iterator[None]:
    """Let the tuned side be base with random changes of equal size. Afterwards it is as it was."""
    base, tuned = (sides[name].decoder for name in ("base", "tuned"))
    generator = torch.Generator().manual_seed(seed)
    if base is tuned:
        drawn = random_adapter(tuned.model, generator)
    else:
        drawn = random_weights(base.layers, tuned.layers, generator)
    before = {parameter: parameter.data for parameter in drawn}
    for parameter, values in drawn.items():
        parameter.data = values
    try:
        yield
    finally:
        for parameter, values in before.items():
            parameter.data = values


def random_adapter(model: torch.nn.Module, generator: torch.Generator) -> Weights:
    """For every adapted matrix, A and B whose product has the singular values of the tuned one.

    The singular vectors are drawn uniformly. So the Frobenius norm is the tuned one's, and so are the
    rank and the largest singular value.
    """
    drawn: Weights = {}
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        for name in set(module.active_adapters) & set(module.lora_A):
            a, b = module.lora_A[name].weight, module.lora_B[name].weight
            values = torch.linalg.svdvals(_triangle(b) @ _triangle(a.T).T)
            roots = values.sqrt()
            rank = len(roots)
            new_a, new_b = torch.zeros(a.shape), torch.zeros(b.shape)
            new_a[:rank] = (_directions(a.shape[1], rank, generator) * roots).T
            new_b[:, :rank] = _directions(b.shape[0], rank, generator) * roots
            drawn[a], drawn[b] = new_a.to(a), new_b.to(b)
    return drawn


def random_weights(
    base: torch.nn.Module, tuned: torch.nn.Module, generator: torch.Generator
) -> Weights:
    """For every parameter in which two models' layers differ, base's with noise of that length."""
    drawn: Weights = {}
    for (_, ours), (_, theirs) in zip(
        base.named_parameters(), tuned.named_parameters(), strict=True
    ):
        length = (theirs.detach().float() - ours.detach().float()).norm()
        if length > 0:
            noise = torch.randn(ours.shape, generator=generator).to(ours.device)
            drawn[theirs] = (ours.detach().float() + noise * length / noise.norm()).to(theirs)
    return drawn


def _triangle(matrix: torch.Tensor) -> torch.Tensor:
    """R of the QR decomposition: the matrix but for a rotation, in single precision on the CPU."""
    return torch.linalg.qr(matrix.detach().float().cpu()).R


def _directions(size: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` orthonormal directions in `size` dimensions, drawn uniformly (size x count)."""
    return torch.linalg.qr(torch.randn(size, count, generator=generator)).Q
