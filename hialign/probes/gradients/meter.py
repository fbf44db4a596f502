"""One backward pass per pair, and from it the gradient norm of every weight of every layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from hialign.engine.decoder import Decoder, Layout
from hialign.engine.modules import decoder_layers
from hialign.engine.packing import pack
from hialign.engine.progress import Progress
from hialign.probes.pairs import ProbePair

# by layer, and by module in it, the squared norm of one pair's gradient
Squares = list[dict[str, float]]


class PairGradient(TypedDict):
    """What one backward pass measures."""

    margin: float  # log p(chosen) - log p(rejected), nats
    squares: Squares  # of the gradient of Eq. 1


class Meter:
    """Measures the squared gradient norms of all weights of a model's layers, adapters aside.

    Attributes:
        prefix: the dotted name of the list of layers.
        depth: the number of layers.
        sizes: by layer, the number of parameters of each module (`self_attn.q_proj`, …).
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
        """Measure gradients as they come, and drop them. The call returns the sums and resets them."""
        squares: Squares = [dict.fromkeys(sizes, 0.0) for sizes in self.sizes]

        def take(parameter: torch.nn.Parameter) -> None:
            if parameter.grad is not None:
                layer, module = self.places[parameter]
                squares[layer][module] += float(parameter.grad.float().square().sum())
                parameter.grad = None

        def collect() -> Squares:
            collected = [dict(layer) for layer in squares]
            for layer in squares:
                layer.update(dict.fromkeys(layer, 0.0))
            return collected

        required = {p: p.requires_grad for p in self.model.parameters()}
        training = self.model.training
        self.model.eval()
        for parameter in required:
            parameter.requires_grad_(parameter in self.places)
        handles = [p.register_post_accumulate_grad_hook(take) for p in self.places]
        try:
            yield collect
        finally:
            for handle in handles:
                handle.remove()
            for parameter, requires_grad in required.items():
                parameter.requires_grad_(requires_grad)
            self.model.train(training)

    def measure(
        self,
        pairs: Sequence[ProbePair],
        beta: float,
        references: Sequence[float] | None = None,
        what: str = "",
    ) -> list[PairGradient]:
        """Run one forward and one backward pass of Eq. 1 for each pair.

        Args:
            pairs: N pairs.
            beta: that of Eq. 1.
            references: N, the reference model's margins (nats). Without them the model is its own
                reference.
            what: the name of the progress bar, which is not shown if it is empty.
        """
        gradients: list[PairGradient] = []
        progress = Progress(total=len(pairs), desc=what, disable=not what)
        with self._listening() as collect, Decoder(self.model) as decoder, progress as bar:
            for number, pair in enumerate(pairs):
                layout = Layout(pack([pair.tokens]), decoder.device)
                with torch.enable_grad():
                    top = decoder.run(layout, [decoder.depth])[decoder.depth]
                    chosen, rejected = decoder.log_probs(top, layout)
                    margin = chosen - rejected
                    reference = float(margin.detach()) if references is None else references[number]
                    (-F.logsigmoid(beta * (margin - reference))).backward()
                gradients.append({"margin": float(margin.detach()), "squares": collect()})
                bar.update()
        return gradients


def norms_of(gradients: Sequence[PairGradient], sizes: list[dict[str, int]]) -> np.ndarray:
    """Each layer's gradient norm per root of its number of parameters (pairs x depth)."""
    return np.array([rms_of(pair["squares"], sizes, None) for pair in gradients])


def rms_of(squares: Squares, sizes: list[dict[str, int]], modules: set[str] | None) -> list[float]:
    """By layer, the gradient norm of some modules per root of their number of parameters.

    None takes all modules.
    """
    norms = []
    for layer, size in zip(squares, sizes, strict=True):
        names = [name for name in size if modules is None or name in modules]
        norms.append(math.sqrt(sum(layer[n] for n in names) / sum(size[n] for n in names)))
    return norms
