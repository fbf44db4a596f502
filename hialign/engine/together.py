"""All strategies of a model on the same pairs, in one pass over the layers that they share."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hialign.engine.decoder import Decoder, layouts, pair_log_probs, unpackable
from hialign.engine.progress import Progress
from hialign.engine.strategy import Strategy
from hialign.engine.tokens import TokenPair, Tokens
from hialign.study.errors import HialignError

ROW = 2048  # tokens of one forward pass of packed pairs
LogProbs = list[tuple[float, float]]  # of (chosen, rejected), in nats, for each pair


@contextmanager
def active(model: Any, strategies: Mapping[str, Strategy], block: str) -> Iterator[Any]:
    """The model under the strategy of a block. Base is the model with all adapters disabled."""
    if block != "base":
        model.set_adapter(strategies[block].adapter, inference_mode=True)
        yield model
    elif hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield model
    else:
        yield model


def strategy_log_probs(
    model: Any,
    strategies: Mapping[str, Strategy],
    pairs: Sequence[TokenPair],
    pad: int,
    base: LogProbs | None = None,
    what: str = "",
    packed: bool | None = None,
) -> dict[str, LogProbs]:
    """The log-probabilities of N pairs under Base and every strategy.

    Below the first layer of a strategy, its model and Base are the same function. So the layers
    below are run once for all of them, and Base to its end only if `base` is not given. A response
    that several pairs share, as contrasts of one answer do, is run once.

    Args:
        model: a base model, with the adapters of the strategies on it if there are any.
        strategies: by block, its layers and the name of its adapter.
        pairs: N pairs.
        pad: the padding token, for a family that does not take packed pairs.
        base: N, Base's own log-probabilities if they are there already.
        what: the title of the progress bar. Empty shows none.
        packed: whether the model takes packed pairs. None tries it.

    Returns:
        By block, with `base`, N log-probabilities of (chosen, rejected) in nats, summed over each
        response.
    """
    plain = model.get_base_model() if strategies else model
    if packed is None:
        with active(model, strategies, "base"):
            packed = not unpackable(plain, pairs, disable_dropout=True)
    given = {} if base is None else {"base": base}
    run = [block for block in ("base", *strategies) if block not in given]
    if packed:
        once, places = _once(pairs)
        of_once = _packed(plain, model, strategies, once, run, what)
        values = {
            block: [_picked(own, place) for place in places] for block, own in of_once.items()
        }
    else:
        values = {}
        for block in run:
            with active(model, strategies, block) as tuned:
                values[block] = pair_log_probs(tuned, pairs, pad, f"{what}: {block}")
    if not all(math.isfinite(value) for own in values.values() for both in own for value in both):
        raise HialignError(f"{what}: the model gave log-probabilities that are not numbers")
    return values | given


Place = tuple[tuple[int, int], tuple[int, int]]  # of chosen and of rejected: a pair, and its side


def _once(pairs: Sequence[TokenPair]) -> tuple[list[TokenPair], list[Place]]:
    """Pairs in which every response of `pairs` stands once, and where each of them stands now.

    Responses to the same prompt are put together two by two. The last one of an odd number stands
    twice.
    """
    by_prompt: dict[tuple[int, ...], dict[Tokens, None]] = {}
    for pair in pairs:
        responses = by_prompt.setdefault(pair[0].ids[: pair[0].start], {})
        responses |= dict.fromkeys(pair)
    once: list[TokenPair] = []
    stands: dict[Tokens, tuple[int, int]] = {}
    for responses in by_prompt.values():
        members = list(responses)
        for first, second in zip(members[::2], [*members[1::2], members[-1]], strict=False):
            stands |= {second: (len(once), 1), first: (len(once), 0)}
            once.append((first, second))
    return once, [(stands[chosen], stands[rejected]) for chosen, rejected in pairs]


def _picked(values: LogProbs, place: Place) -> tuple[float, float]:
    (of_chosen, side), (of_rejected, other) = place
    return values[of_chosen][side], values[of_rejected][other]


def _packed(
    plain: Any,
    model: Any,
    strategies: Mapping[str, Strategy],
    pairs: Sequence[TokenPair],
    run: Sequence[str],
    what: str,
) -> dict[str, LogProbs]:
    """The log-probabilities of the blocks in `run`. `plain` is the base model inside `model`."""
    values = {block: [(0.0, 0.0)] * len(pairs) for block in run}
    starts = {strategies[block].start for block in run if block != "base"}
    with (
        torch.inference_mode(),
        Decoder(plain) as decoder,
        Progress(total=len(pairs), desc=what, disable=not what) as bar,
    ):
        depth = decoder.depth
        taps = (starts | ({depth} if "base" in run else set())) - {0}
        for row, layout in layouts(pairs, decoder.device, ROW):
            hidden: dict[int, torch.Tensor] = {}
            if taps:
                with active(model, strategies, "base"):
                    hidden = decoder.run(layout, taps)
            for block in run:
                if block == "base":
                    top = hidden[depth]
                else:
                    start = strategies[block].start
                    with active(model, strategies, block):
                        top = decoder.run(layout, [depth], start, hidden.get(start))[depth]
                log_probs = decoder.log_probs(top, layout).view(-1, 2).tolist()
                for i, (chosen, rejected) in zip(row, log_probs, strict=True):
                    values[block][i] = (chosen, rejected)
            bar.update(len(row))
    return values
