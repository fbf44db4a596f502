"""ILA's gates: how much of an adapter's change does each matrix need? (a reconstruction)

Each adapted matrix i has a gate on its change: W = W0 + sigmoid(s_i) B_i A_i. With A and B frozen, s
alone is learned on the loss that the adapter was trained with. A gate goes up if the loss wants more
of the change, stays if the loss does not need it, and goes down if the change disturbs. We know the
published method by its abstract and a survey, and have reconstructed it from them.

Both alignment losses run on the packed pairs of `hialign.engine.packing`. The adapters and the gates
of either see the same tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler, set_seed

from hialign.engine.decoder import Decoder, layouts
from hialign.engine.models import identity, load_model
from hialign.engine.modules import decoder_layers, target_modules
from hialign.engine.progress import Progress
from hialign.engine.strategy import Strategy
from hialign.engine.tokens import TokenPair
from hialign.probes.pairs import ROW
from hialign.probes.tuned import Tuned, probe_training
from hialign.probes.weights import norm_of
from hialign.study.errors import HialignError
from hialign.study.probe_settings import IlaSettings
from hialign.study.settings import TrainingSettings
from hialign.study.study import Cell

SAME = 1e-6  # gates that differ by less count as equal


@dataclass(frozen=True)
class Subject:
    """The model under study, and the M matrices of its full adapter.

    Attributes:
        cell: a cell of the study and the model.
        weights: the identity of the model.
        model: the base model.
        tokenizer: its tokenizer.
        names: M, the full names of the matrices.
        layers: M, the layer of each matrix.
        depth: the number of layers.
    """

    cell: Cell
    weights: dict[str, str]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    layers: list[int]
    depth: int

    def training(self, seed: int) -> TrainingSettings:
        """The study's training as probes run it, with another seed."""
        return probe_training(self.cell.study.training).model_copy(update={"seed": seed})

    def parameters(self, rank: int) -> list[int]:
        """M, the number of parameters of each matrix's adapter: rank x (inputs + outputs)."""
        shapes = [self.model.get_submodule(name).weight.shape for name in self.names]
        return [rank * (int(a) + int(b)) for a, b in shapes]


def subject_of(cell: Cell) -> Subject:
    model, tokenizer = load_model(cell.model)
    prefix, depth = decoder_layers(model)
    names = target_modules(model, range(depth), cell.study.training.target_modules)
    layers = [int(name.removeprefix(f"{prefix}.").split(".", 1)[0]) for name in names]
    return Subject(cell, identity(cell.model), model, tokenizer, names, layers, depth)


@dataclass(frozen=True)
class Loss:
    """An alignment loss on pairs: DPO (Eq. 1), or SFT on the chosen responses.

    Attributes:
        pairs: N pairs.
        beta: that of Eq. 1.
        reference: N, the base model's log-probabilities (nats) of chosen and rejected. Without them
            the loss is SFT's: the mean negative log-likelihood of the chosen responses' tokens, in
            nats.
    """

    pairs: Sequence[TokenPair]
    beta: float
    reference: Sequence[tuple[float, float]] | None = None

    def backward(
        self, decoder: Decoder, batch: Sequence[int], prepare: Callable[[], None] = lambda: None
    ) -> float:
        """Compute the mean loss of the pairs at `batch`, and add its gradient.

        The pairs run in packed rows of at most `ROW` tokens. `prepare` is called before each row.
        """
        chosen = [self._tokens(i) for i in batch]
        share = 1 / len(batch)
        if self.reference is None:
            share = 1 / sum(len(pair[0].ids) - max(pair[0].start, 1) for pair in chosen)
        total = 0.0
        for row, layout in layouts(chosen, decoder.device, ROW):
            prepare()
            top = decoder.run(layout, [decoder.depth])[decoder.depth]
            values = decoder.log_probs(top, layout).view(-1, 2)
            loss = share * self._sum(values, [batch[i] for i in row])
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        return total

    def _tokens(self, i: int) -> TokenPair:
        """The pair, or for SFT the chosen response twice, which is packed as one sequence."""
        chosen = self.pairs[i][0]
        return (chosen, chosen) if self.reference is None else self.pairs[i]

    def _sum(self, values: torch.Tensor, batch: Sequence[int]) -> torch.Tensor:
        if self.reference is None:
            return -values[:, 0].sum()
        reference = values.new_tensor([self.reference[i] for i in batch])
        rewards = self.beta * (values - reference)
        return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).sum()


def batches(pairs: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches of pair numbers, without end.

    Each pass over the pairs has an order of its own. Its last batch is short if `size` does not
    divide the number of pairs.
    """
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(pairs).tolist()
        yield from (order[at : at + size] for at in range(0, pairs, size))


@contextmanager
def gated(
    model: torch.nn.Module, adapter: str, names: Sequence[str]
) -> Iterator[Callable[[torch.Tensor], None]]:
    """Put gates on the change that `adapter` makes to the matrices `names` (full names in `model`).

    Lends the function that sets the gates, one number for each name. A gate of 1 leaves the change as
    it is, and a gate of 0 takes it away. PEFT multiplies a change by a number of the layer,
    `scaling`. A tensor in its place lets a gradient through. Afterwards it is PEFT's number again.
    """
    layers: list[Any] = [model.get_submodule(name) for name in names]
    own = [layer.scaling[adapter] for layer in layers]

    def put(gates: torch.Tensor) -> None:
        for layer, scale, gate in zip(layers, own, gates.unbind(), strict=True):
            layer.scaling[adapter] = scale * gate

    try:
        yield put
    finally:
        for layer, scale in zip(layers, own, strict=True):
            layer.scaling[adapter] = scale


def change_of(model: torch.nn.Module, adapter: str, names: Sequence[str]) -> list[float]:
    """The Frobenius norm of each matrix's change, its scale included."""
    norms = []
    for name in names:
        layer: Any = model.get_submodule(name)
        a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        norms.append(norm_of(a, b, layer.scaling[adapter]))
    return norms


def learn_gates(
    tuned: Tuned, names: Sequence[str], loss: Loss, settings: IlaSettings, seed: int, what: str = ""
) -> tuple[list[float], list[float]]:
    """Learn the gates of an adapter's changes. All else, the model and the adapter, is frozen.

    A step goes along the gradient and is `gate_learning_rate` long over all gates together. A gate
    therefore moves by its share in what the loss gains. Adam would scale each gate's step by that
    gate's own gradient, so that a change without effect rises as fast as the one that matters most.

    Args:
        tuned: the model with one adapter.
        names: M, the full names of the adapted matrices.
        loss: the loss that the adapter was trained with.
        settings: `gate_steps`, `gate_batch`, `gate_start`, `gate_learning_rate`, and `sparsity`, which
            adds lambda times the sum of the open gates to the loss.
        seed: what orders the pairs.
        what: the name of the progress bar, which is not shown if it is empty.

    Returns:
        M, the s of each matrix, and by step the loss (nats).

    Raises:
        HialignError: if a loss is not finite.
    """
    (strategy,) = tuned.strategies.values()
    adapter = strategy.adapter
    tuned.model.set_adapter(adapter)
    tuned.model.requires_grad_(False)  # PEFT unfreezes the adapter that it switches to
    tuned.model.eval()
    device = next(tuned.model.parameters()).device
    s = torch.full((len(names),), settings.gate_start, device=device, requires_grad=True)
    order = batches(len(loss.pairs), settings.gate_batch, seed)
    losses: list[float] = []
    with (
        gated(tuned.decoder_of, adapter, names) as put,
        Decoder(tuned.decoder_of) as decoder,
        Progress(total=settings.gate_steps, desc=what, disable=not what) as bar,
    ):
        for _ in range(settings.gate_steps):
            s.grad = torch.zeros_like(s)
            # each row needs its gates anew, as a graph is gone once its gradient is taken
            value = loss.backward(decoder, next(order), lambda: put(s.sigmoid()))
            if settings.sparsity:
                (settings.sparsity * s.sigmoid().sum()).backward()
            _check(value, "the gates", len(losses))
            with torch.no_grad():
                s.sub_(settings.gate_learning_rate * F.normalize(s.grad, dim=0))
            losses.append(value)
            bar.update()
    return s.detach().tolist(), losses


def nothing_in(change: Sequence[float], s: Sequence[float]) -> str | None:
    """Why the gates rank nothing. None if they do."""
    if not any(change):
        return "the adapter changes no matrix: training left it at zero"
    if max(s) - min(s) < SAME:
        return "no gate moved apart from the others: the loss does not depend on any one change"
    return None


@contextmanager
def tuned_sft(
    model: PreTrainedModel,
    pairs: Sequence[TokenPair],
    layers: Sequence[int],
    names: Sequence[str],
    settings: TrainingSettings,
) -> Iterator[Tuned]:
    """As `tuned.tuned_blocks`, for SFT on the chosen responses with one adapter, `full`.

    LoRA and the hyper-parameters are those of DPO. The optimizer is always AdamW. Afterwards `model`
    is as it was before.
    """
    set_seed(settings.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0 if settings.disable_dropout else settings.lora_dropout,
        target_modules=list(names),
    )
    adapted: Any = get_peft_model(model, config)
    learned = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learned,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
    )
    steps_per_epoch = -(-len(pairs) // settings.effective_batch)
    steps = max(1, round(steps_per_epoch * settings.epochs))
    schedule = get_scheduler(settings.scheduler, optimizer, settings.warmup_steps, steps)
    loss = Loss(pairs, settings.beta)
    losses: list[float] = []
    order = batches(len(pairs), settings.effective_batch, settings.seed)
    try:
        adapted.train()
        with Decoder(model) as decoder, Progress(total=steps, desc="train") as bar:
            for _ in range(steps):
                optimizer.zero_grad()
                losses.append(loss.backward(decoder, next(order)))
                _check(losses[-1], "SFT", len(losses) - 1)
                if settings.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_(learned, settings.max_grad_norm)
                optimizer.step()
                schedule.step()
                bar.update()
        adapted.requires_grad_(False)
        full = Strategy("full", list(layers), "default")
        yield Tuned(adapted.eval(), {"full": full}, model, {"full": losses})
    finally:
        adapted.unload()


def _check(loss: float, what: str, step: int) -> None:
    if not np.isfinite(loss):
        raise HialignError(
            f"{what}: the loss is not finite in step {step + 1}: lower training.learning_rate"
        )
