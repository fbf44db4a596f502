"""One backward pass per pair, and from it what the gradient is in every weight of every layer."""

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
from hialign.probes.gradients.sketch import Sketch
from hialign.probes.pairs import ProbePair

# by layer, and by module in it, the squared norm of one pair's gradient
Squares = list[dict[str, float]]
# by layer, and by module in it, the gradient of one pair, or a sketch of it
Vectors = list[dict[str, torch.Tensor]]
# by layer, and by module in it, the inner products of all pairs' gradients (pairs x pairs)
Grams = list[dict[str, np.ndarray]]


class PairGradient(TypedDict):
    """What one backward pass measures."""

    margin: float  # log p(chosen) - log p(rejected), nats
    squares: Squares  # of the gradient of Eq. 1


class Meter:
    """Measures the gradients of all weights of a model's layers, adapters aside.

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
    def _listening(self, sketch: Sketch | None) -> Iterator[Callable[[], tuple[Squares, Vectors]]]:
        """Measure gradients as they come, and drop them.

        The call returns the sums of squares and, with a sketch, the sketches of one backward pass, and
        begins anew.
        """
        squares: Squares = []
        parts: list[dict[str, dict[int, torch.Tensor]]] = []  # by parameter of a module

        def begin() -> None:
            squares[:] = [dict.fromkeys(sizes, 0.0) for sizes in self.sizes]
            parts[:] = [{name: {} for name in sizes} for sizes in self.sizes]

        def take(parameter: torch.nn.Parameter) -> None:
            if parameter.grad is not None:
                layer, module = self.places[parameter]
                squares[layer][module] += float(parameter.grad.float().square().sum())
                if sketch is not None:
                    number = numbers[parameter]
                    parts[layer][module][number] = sketch.of(parameter.grad, number)
                parameter.grad = None

        def collect() -> tuple[Squares, Vectors]:
            collected: Squares = [dict(layer) for layer in squares]
            vectors: Vectors = []
            if sketch is not None:
                vectors = [
                    {name: torch.cat([v[i] for i in sorted(v)]) for name, v in layer.items() if v}
                    for layer in parts
                ]
            begin()
            return collected, vectors

        numbers = {parameter: number for number, parameter in enumerate(self.places)}
        required = {p: p.requires_grad for p in self.model.parameters()}
        training = self.model.training
        self.model.eval()
        for parameter in required:
            parameter.requires_grad_(parameter in self.places)
        handles = [p.register_post_accumulate_grad_hook(take) for p in self.places]
        begin()
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
        return [gradient for gradient, _ in self._each(pairs, beta, references, what, None)]

    def compare(
        self, pairs: Sequence[ProbePair], beta: float, sketch: Sketch, what: str = ""
    ) -> tuple[list[PairGradient], Grams]:
        """`measure` with the model as its own reference, and the inner products of the gradients.

        The sketches of all pairs are in memory together (float32).

        Returns:
            What each pair's backward pass measures, and the Gram matrices by layer and module, in
            squared nats per squared unit of weight.
        """
        gradients: list[PairGradient] = []
        vectors: list[Vectors] = []
        for gradient, of_pair in self._each(pairs, beta, None, what, sketch):
            gradients.append(gradient)
            vectors.append(of_pair)
        grams: Grams = []
        for layer, sizes in enumerate(self.sizes):
            grams.append({})
            for module in sizes:
                # a module that no gradient reaches has none
                rows = [of_pair[layer].pop(module, torch.zeros(1)) for of_pair in vectors]
                stacked = torch.stack(rows).double()
                grams[layer][module] = (stacked @ stacked.T).numpy()
        return gradients, grams

    def _each(
        self,
        pairs: Sequence[ProbePair],
        beta: float,
        references: Sequence[float] | None,
        what: str,
        sketch: Sketch | None,
    ) -> Iterator[tuple[PairGradient, Vectors]]:
        """What `measure` returns, pair by pair, with its sketches."""
        progress = Progress(total=len(pairs), desc=what, disable=not what)
        listening = self._listening(sketch)
        with listening as collect, Decoder(self.model) as decoder, progress as bar:
            for number, pair in enumerate(pairs):
                layout = Layout(pack([pair.tokens]), decoder.device)
                with torch.enable_grad():
                    top = decoder.run(layout, [decoder.depth])[decoder.depth]
                    chosen, rejected = decoder.log_probs(top, layout)
                    margin = chosen - rejected
                    reference = float(margin.detach()) if references is None else references[number]
                    (-F.logsigmoid(beta * (margin - reference))).backward()
                squares, vectors = collect()
                yield {"margin": float(margin.detach()), "squares": squares}, vectors
                bar.update()


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
