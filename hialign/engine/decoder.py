"""A decoder whose layers can be run from any one to any other, on packed pairs.

Block-wise tuning runs the same frozen layers again and again. Below the tuned block, the policy, the
reference and all strategies are one function. `Decoder` lets the model's own code do the work, and
only decides which of its layers act.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from hialign.engine.dropout import noise_of
from hialign.engine.logprobs import log_probs
from hialign.engine.modules import decoder_layers
from hialign.engine.packing import Pack, pack, plan
from hialign.engine.progress import Progress
from hialign.engine.tokens import TokenPair, Tokens
from hialign.study.errors import HialignError

ATTENTION = "hialign_packed"
TILE = 256  # scored positions that reach the LM head at a time


class Decoder:
    """A causal language model, with adapters inside it or not, that runs packed pairs.

    It is a context. Inside, the model's layers and its attention are ours. After it, they are the
    model's own again.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        name, self.depth = decoder_layers(model)
        self.layers = model.get_submodule(name)
        self._start, self._stop = 0, self.depth
        self._entering: torch.Tensor | None = None
        self._tapped: dict[int, torch.Tensor] = {}
        self._taps: frozenset[int] = frozenset()
        self._tuples = False  # whether this family's layers return tuples

    def __enter__(self) -> "Decoder":
        AttentionInterface.register(ATTENTION, _attention)
        self._own_attention = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        # one Decoder may act inside another, whose gates come back afterwards
        self._before = [layer.__dict__.get("forward") for layer in self.layers]
        for index, layer in enumerate(self.layers):
            layer.forward = self._gate(index, layer)
        return self

    def __exit__(self, *_: object) -> None:
        for layer, before in zip(self.layers, self._before, strict=True):
            del layer.forward  # the class's own shows again
            if before is not None:
                layer.forward = before
        self.model.set_attn_implementation(self._own_attention)

    def _gate(self, index: int, layer: torch.nn.Module) -> Any:
        """What takes the place of a layer's forward: the layer, or a short cut around it."""
        own = layer.forward

        def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if index == max(self._start - 1, 0):
                hidden = hidden if self._entering is None else self._entering
                if 0 in self._taps:
                    self._tapped[0] = hidden
            if not self._start <= index < self._stop:
                return (hidden,) if self._tuples else hidden
            output = own(hidden, *args, **kwargs)
            self._tuples = isinstance(output, tuple)
            if index + 1 in self._taps:
                self._tapped[index + 1] = output[0] if self._tuples else output
            return output

        return forward

    @contextmanager
    def _range(
        self, start: int, stop: int, entering: torch.Tensor | None, taps: Iterable[int]
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Let only the layers [start, stop) act. Gives the hidden states at `taps` as they come."""
        self._start, self._stop, self._entering = start, stop, entering
        self._taps, self._tapped = frozenset(taps), {}
        try:
            yield self._tapped
        finally:
            self._start, self._stop, self._entering = 0, self.depth, None
            self._taps, self._tapped = frozenset(), {}

    def run(
        self,
        layout: "Layout",
        taps: Iterable[int],
        start: int = 0,
        entering: torch.Tensor | None = None,
    ) -> dict[int, torch.Tensor]:
        """Run the layers from `start` up to the highest of `taps`.

        Args:
            layout: a row of T tokens.
            taps: layers. `depth` stands for what leaves the last layer, before the final norm.
            start: the first layer that is run.
            entering: the hidden states that enter it (1 x T x width). Layer 0 needs none: without
                them it gets the model's own embeddings.

        Returns:
            By layer in `taps`, the hidden states that enter it (1 x T x width).
        """
        with self._range(start, max(taps), entering, taps) as tapped:
            self.model.base_model(
                input_ids=layout.ids,
                position_ids=layout.positions,
                use_cache=False,
                packed=layout,
            )
        return tapped

    def log_probs(self, hidden: torch.Tensor, layout: "Layout") -> torch.Tensor:
        """The log-probability (nats, summed over its response) of each sequence.

        Only scored positions go through the final norm and the LM head, `TILE` at a time. The full
        logits are never held. The gradient is taken tile by tile in the forward pass, so that
        nothing is computed again.

        Args:
            hidden: what leaves the last layer (1 x T x width).
            layout: the row of P pairs that it was run on.

        Returns:
            2 P log-probabilities, chosen and rejected in turn, in float64.
        """
        rows = hidden[0].index_select(0, layout.scored)
        values = _TokenLogProbs.apply(rows, layout.targets, self.logits)
        # in double precision: rewards are small differences of sums of hundreds of nats
        sums = torch.zeros(2 * layout.pack.pairs, dtype=torch.float64, device=hidden.device)
        return sums.index_add(0, layout.sequence, values.double()[layout.prediction])

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Final norm, LM head and what the family does to logits: n x width -> n x vocabulary."""
        with self._range(self.depth, self.depth, rows[None], ()):
            ids = torch.zeros(1, len(rows), dtype=torch.long, device=rows.device)
            return self.model(input_ids=ids, use_cache=False).logits[0].float()


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) at each row: n x width -> n. A row's value depends on that row alone."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, targets: torch.Tensor, logits_of: Any) -> Any:
        differentiate = ctx.needs_input_grad[0]
        values, slopes = [], []
        for part, target in zip(rows.split(TILE), targets.split(TILE), strict=True):
            part = part.detach().requires_grad_(differentiate)
            with torch.set_grad_enabled(differentiate):
                value = -F.cross_entropy(logits_of(part), target, reduction="none")
                total = value.sum()
            if differentiate:
                # each value depends on its own row only: the sum's gradient holds them all
                slopes.append(torch.autograd.grad(total, part)[0])
            values.append(value.detach())
        if differentiate:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return upstream[:, None].to(slopes.dtype) * slopes, None, None


class Layout:
    """A pack on a device, with the masks that its attention needs (drawn in `packing`)."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.pack = pack
        # FlexAttention works in blocks of 128, and compiles anew for each other length
        self.padding = -len(pack) % 128 if device.type == "cuda" else 0
        self.ids = torch.tensor([[*pack.ids, *[0] * self.padding]], device=device)
        self.positions = torch.tensor([[*pack.positions, *[0] * self.padding]], device=device)
        self.scored = torch.tensor(pack.scored, dtype=torch.long, device=device)
        self.targets = torch.tensor(pack.targets, dtype=torch.long, device=device)
        self.prediction = torch.tensor(pack.prediction, dtype=torch.long, device=device)
        self.sequence = torch.tensor(pack.sequence, dtype=torch.long, device=device)
        self._masks: dict[Any, Any] = {}

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        **options: Any,
    ) -> torch.Tensor:
        """Attention in which a token sees its own sequence up to itself.

        Args:
            module: the model's attention module.
            query: 1 x heads x T x width.
            key: 1 x key heads x T x width.
            value: the same shape as `key`.
            window: the tokens that a sliding window reaches back. None is full attention.
            options: `scaling` and `dropout`.

        Returns:
            1 x T x heads x width.
        """
        if query.device.type == "cuda":
            mask = self._block_mask(window, query.device)
            return flex_attention_forward(module, query, key, value, mask, **options)[0]
        return self._by_node(query, key, value, window, **options)

    def _by_node(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int | None,
        scaling: float | None,
        dropout: float,
    ) -> torch.Tensor:
        """One call per node: its tokens look at the nodes above it and at itself."""
        repeat = query.shape[1] // key.shape[1]
        if repeat > 1:  # on a CPU the fused kernel wants as many keys as queries
            key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
        nodes = self.pack.nodes
        sizes = [node.end - node.begin for node in nodes]
        queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
        outputs = []
        for own, node in zip(queries, nodes, strict=True):
            length, seen = own.shape[2], sum(sizes[i] for i in node.path)
            plain = len(node.path) == 1 and (window is None or window >= seen)
            outputs.append(
                F.scaled_dot_product_attention(
                    own,
                    torch.cat([keys[i] for i in node.path], dim=2),
                    torch.cat([values[i] for i in node.path], dim=2),
                    attn_mask=None if plain else self._causal_mask(length, seen, window),
                    is_causal=plain,
                    dropout_p=dropout,
                    scale=scaling,
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _causal_mask(self, length: int, keys: int, window: int | None) -> torch.Tensor:
        """True where the last `length` of `keys` positions may look (length x keys)."""
        shape = (length, keys, window)
        if shape not in self._masks:
            mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
            if window is not None:
                mask &= torch.ones(length, keys, dtype=torch.bool).triu(keys - length - window + 1)
            self._masks[shape] = mask
        return self._masks[shape]

    def _block_mask(self, window: int | None, device: torch.device) -> Any:
        """The mask of the whole row, as FlexAttention takes it."""
        if window not in self._masks:
            length = len(self.pack) + self.padding
            self._masks[window] = create_block_mask(
                self.rule(window, device), None, None, length, length, device=str(device)
            )
        return self._masks[window]

    def rule(self, window: int | None, device: torch.device) -> Any:
        """Whether query q may see key k: it is not later, and in the same node or in one above."""
        nodes = self.pack.nodes
        above = torch.zeros(len(nodes) + 1, len(nodes) + 1, dtype=torch.bool)
        for number, n in enumerate(nodes):
            above[number, list(n.path)] = True
        above[-1, -1] = True  # padding sees padding
        node = torch.tensor([i for i, n in enumerate(nodes) for _ in range(n.begin, n.end)])
        node = F.pad(node.long(), (0, self.padding), value=len(nodes)).to(device)
        above, position = above.to(device), self.positions[0]

        def mask(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            seen = above[node[q], node[k]] & (position[k] <= position[q])
            if window is not None:
                seen = seen & (position[q] - position[k] < window)
            return seen

        return mask


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    packed: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' attention modules call (its AttentionInterface)."""
    if packed is None:
        raise TypeError("this family's layers do not hand their arguments on to attention")
    options = {"scaling": scaling, "dropout": dropout}
    return packed.attend(module, query, key, value, sliding_window, **options), None


def layouts(
    pairs: Sequence[TokenPair], device: torch.device, limit: int
) -> Iterator[tuple[list[int], Layout]]:
    """The pairs in packed rows of at most `limit` tokens: the numbers of a row's pairs, its layout."""
    for row in plan(pairs, limit):
        yield row, Layout(pack([pairs[i] for i in row]), device)


def pair_log_probs(
    model: torch.nn.Module,
    pairs: Sequence[TokenPair],
    pad: int,
    what: str = "",
    limit: int = 2048,
    packed: bool = False,
) -> list[tuple[float, float]]:
    """The log-probabilities (nats) of each pair's two responses under `model`.

    The pairs are packed if the family allows it, and padded otherwise.

    Args:
        model: a causal language model, or a PEFT model whose active adapters then act.
        pairs: N pairs of chosen and rejected.
        pad: the token that pads.
        what: the name of the progress bar, and of the model in an error.
        limit: the tokens of one forward pass.
        packed: whether `unpackable` has already said that the model takes packed pairs. Otherwise
            it is asked now.

    Returns:
        N log-probabilities of chosen and of rejected, summed over the tokens of the response.

    Raises:
        HialignError: if the model gives numbers that are not finite.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.eval()
    if not packed and unpackable(base, pairs, disable_dropout=True):
        flat = [tokens for pair in pairs for tokens in pair]
        values = log_probs(model, flat, max(2, limit // 256), pad, what)
        return list(zip(values[::2], values[1::2], strict=True))
    result: list[tuple[float, float]] = [(0.0, 0.0)] * len(pairs)
    progress = Progress(total=len(pairs), desc=what)
    with torch.inference_mode(), Decoder(base) as decoder, progress as bar:
        for row, layout in layouts(pairs, decoder.device, limit):
            top = decoder.run(layout, [decoder.depth])[decoder.depth]
            log_prob_pairs = decoder.log_probs(top, layout).view(-1, 2).tolist()
            for i, (chosen, rejected) in zip(row, log_prob_pairs, strict=True):
                result[i] = (chosen, rejected)
            bar.update(len(row))
    if any(value != value for both in result for value in both):
        raise HialignError(f"{what}: the model gave log-probabilities that are not numbers")
    return result


def unpackable(
    model: PreTrainedModel, pairs: Sequence[TokenPair], disable_dropout: bool = False
) -> str:
    """Why stock TRL has to train this model. Empty if packed pairs give its log-probabilities.

    This is tried and not looked up: two short pairs are run as they are, and packed. If a family's
    layers mix tokens in another way than by attention, or if its attention cannot be replaced, the
    two results differ. Dropout that is a function and no module is found in the same way, by running
    in training mode.

    Args:
        model: the base model, before it gets adapters. With `disable_dropout` it may have some.
        pairs: the pairs that are to be packed.
        disable_dropout: the model runs in evaluation mode, where no dropout acts. For training with
            the setting of that name, call `dropout.silence` instead.

    Raises:
        HialignError: if a pair holds a token for which the model has no embedding.
    """
    _check_ids(model, pairs)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "several processes train together"
    family = type(model).__name__
    if getattr(model.config.get_text_config(), "output_router_logits", None) is not None:
        return f"{family} has a loss of its own beside DPO's (its router's)"
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    if any(rates) and not disable_dropout:
        return f"{family} has dropout in frozen layers"
    sample = sorted(pairs, key=lambda pair: len(pair[0].ids) + len(pair[1].ids))[:2]
    # every position is scored: a prompt of 256 tokens would leave nothing to compare
    sample = [(Tokens(t.ids[:256], 1), Tokens(u.ids[:256], 1)) for t, u in sample]
    flat = [tokens for pair in sample for tokens in pair]
    training = model.training
    model.eval()
    try:
        expected = log_probs(model, flat, len(flat), 0, "")
        with torch.inference_mode(), Decoder(model) as decoder:
            layout = Layout(pack(sample), decoder.device)
            hidden = decoder.run(layout, [decoder.depth])[decoder.depth]
            packed = decoder.log_probs(hidden, layout).tolist()
        noise = "" if disable_dropout else noise_of(model, max(flat, key=lambda t: len(t.ids)))
    except HialignError:  # it is a ValueError, but says nothing about packing
        raise
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        return f"{family} does not take packed pairs ({type(error).__name__}: {error})"
    finally:
        model.train(training)
    # nats per token; bfloat16 keeps 3 digits of logits of about 10
    allowed = 1e-4 if model.dtype == torch.float32 else 0.1
    for value, alone, tokens in zip(packed, expected, flat, strict=True):
        if not abs(value - alone) <= allowed * max(1, len(tokens.ids) - tokens.start):
            return f"{family} gives packed pairs other log-probabilities ({value} for {alone})"
    return f"{family} {noise}" if noise else ""


def _check_ids(model: PreTrainedModel, pairs: Sequence[TokenPair]) -> None:
    """Refuse token ids beyond the embedding, which would end in an error inside the model."""
    size = model.get_input_embeddings().weight.shape[0]
    largest = max((max(tokens.ids) for pair in pairs for tokens in pair), default=0)
    if largest >= size:
        raise HialignError(
            f"a pair holds the token id {largest}, but the embedding of {type(model).__name__} has "
            f"only {size} rows: take the pairs with that special token out of the data, or give the "
            "model a tokenizer of its own"
        )
