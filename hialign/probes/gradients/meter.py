"""One backward pass a pair, and the gradient norm of every weight of every layer from it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from hialign.engine.decoder import Decoder, Layout
from hialign.engine.modules import decoder_layers
from hialign.engine.packing import pack
from hialign.engine.progress import Progress
from hialign.probes.pairs import ProbePair

Squares = list[
    dict[str, float]
]  # of one pair: by layer, the squared norm of each module's gradient


class Meter:
    """The squared gradient norms of every weight of a model's layers, adapters aside.

    `sizes` is by layer the number of parameters of each module (`self_attn.q_proj`, …).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefix, self.depth = decoder_layers(model)
        self.places: dict[torch.nn.Parameter, tuple[int, str]] = {}
        self.sizes: list[dict[str, int]] = []
        for number, layer in enumerate(model.get_submodule(self.prefix)):  # type: ignore[arg-type]
            sizes: dict[str, int] = {}
            for name, parameter in layer.named_parameters():
                if "lora_" not in name:
                    module = name.replace(".base_layer", "").rpartition(".")[0]
                    self.places[parameter] = (number, module)
                    sizes[module] = sizes.get(module, 0) + parameter.numel()
            self.sizes.append(sizes)

    @contextmanager
    def _listening(self) -> Iterator[Callable[[], Squares]]:
        """While open, gradients are measured and dropped as they come; the call gives and resets."""
        squares: Squares = [dict.fromkeys(sizes, 0.0) for sizes in self.sizes]

        def take(parameter: torch.nn.Parameter) -> None:
            if parameter.grad is not None:
                layer, module = self.places[parameter]
                squares[layer][module] += float(parameter.grad.float().square().sum())
                parameter.grad = None

        def give() -> Squares:
            given = [dict(layer) for layer in squares]
            for layer in squares:
                layer.update(dict.fromkeys(layer, 0.0))
            return given

        before = {p: p.requires_grad for p in self.model.parameters()}
        training = self.model.training
        self.model.eval()
        for parameter in before:
            parameter.requires_grad_(parameter in self.places)
        handles = [p.register_post_accumulate_grad_hook(take) for p in self.places]
        try:
            yield give
        finally:
            for handle in handles:
                handle.remove()
            for parameter, wanted in before.items():
                parameter.requires_grad_(wanted)
            self.model.train(training)

    def measure(
        self,
        pairs: Sequence[ProbePair],
        beta: float,
        references: Sequence[float] | None = None,
        what: str = "",
    ) -> list[dict[str, Any]]:
        """For each pair: `margin`, log p(chosen) - log p(rejected) in nats, and `squares`, the
        squared norm of the gradient of Eq. 1 by layer and module.

        `references` are the reference model's margins; None: the model is its own reference.
        """
        found = []
        progress = Progress(total=len(pairs), desc=what, disable=not what)
        with self._listening() as give, Decoder(self.model) as decoder, progress as bar:
            for number, pair in enumerate(pairs):
                layout = Layout(pack([pair.tokens]), decoder.device)
                with torch.enable_grad():
                    top = decoder.run(layout, [decoder.depth])[decoder.depth]
                    chosen, rejected = decoder.log_probs(top, layout)
                    margin = chosen - rejected
                    reference = float(margin.detach()) if references is None else references[number]
                    (-F.logsigmoid(beta * (margin - reference))).backward()
                found.append({"margin": float(margin.detach()), "squares": give()})
                bar.update()
        return found


def norms_of(found: Sequence[dict[str, Any]], sizes: list[dict[str, int]]) -> np.ndarray:
    """(pairs, depth): each layer's norm over the root of its number of parameters."""
    return np.array([of_modules(pair["squares"], sizes, None) for pair in found])


def of_modules(
    squares: Squares, sizes: list[dict[str, int]], modules: set[str] | None
) -> list[float]:
    rows = []
    for layer, size in zip(squares, sizes, strict=True):
        kept = [name for name in size if modules is None or name in modules]
        rows.append(math.sqrt(sum(layer[n] for n in kept) / sum(size[n] for n in kept)))
    return rows
