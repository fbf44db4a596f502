"""Blocks: which layers a strategy tunes (Table 4, Appendix A), and which modules inside them.

A block is a set of decoder layers, counted from 0. `local`, `mid` and `global` are the thirds,
`full` is all layers, `base` none. `layers:8-12,20` and `window:8-12` name layers directly.
`gradient:top30%`, `ila:top30%`, `patching:top30%` and `spectrum:top30%` are the layers that a
measure ranks highest. Three kinds of block are controls. `random:30%:SEED` draws layers, and
`random:third` as many as a third has, anew for each seed of a study. `full:r5`
tunes all layers at another LoRA rank, and `lisa` (or `lisa:STEPS`) tunes a third of the layers at a
time, drawn again every 20 (or STEPS) optimizer steps (Pan et al., 2024, LISA).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

from hialign.study import paths
from hialign.study.errors import HialignError

STRATEGIES: Mapping[str, str] = {  # Table 1, in the paper's order
    "base": "Base",
    "full": "Full-DPO",
    "local": "Local-Align",
    "mid": "Mid-Align",
    "global": "Global-Align",
}
OBJECTIVES = ("grammar", "coherence", "factuality")  # of the built-in contrasts
EXPECTED = {"grammar": "local", "coherence": "mid", "factuality": "global"}  # Hypothesis 2


def split_layers(depth: int) -> dict[str, range]:
    """The three blocks of a model with `depth` layers (Appendix A, Table 4).

    The first `depth mod 3` blocks get one layer more, as in `numpy.array_split`.

    >>> split_layers(28)
    {'local': range(0, 10), 'mid': range(10, 19), 'global': range(19, 28)}
    """
    _check_depth(depth)
    if depth < 3:
        raise HialignError(
            f"a model of {depth} layers cannot be split into three blocks: it needs at least 3"
        )
    depth = int(depth)
    size, rest = divmod(depth, 3)
    first = size + (rest > 0)
    second = first + size + (rest > 1)
    return {"local": range(first), "mid": range(first, second), "global": range(second, depth)}


def _check_depth(depth: int) -> None:
    """Refuse a depth that is not a number of layers. Text or a bool would fail far from here."""
    if not isinstance(depth, Integral) or isinstance(depth, bool):
        raise HialignError(
            f"the depth {depth!r} is not a number of layers: give a whole number, such as 28"
        )
    if depth < 0:
        raise HialignError(f"the depth {depth} is not a number of layers: it is below 0")


# The measures that choose the layers of `<measure>:top30%`, and the probe whose record has the scores
# of each. `spectrum` is computed from the weights alone and needs no probe.
MEASURES: Mapping[str, str] = {
    "gradient": "gradients",
    "ila": "ila",
    "patching": "patching",
    "spectrum": "",
}
LISA_PERIOD = 20  # optimizer steps, the interval of the LISA paper
LAYERS = r"\d+(-\d+)?(,\d+(-\d+)?)*"
GRAMMAR = re.compile(
    rf"layers:(?P<layers>{LAYERS})|window:(?P<window>\d+-\d+)"
    rf"|(?P<measure>{'|'.join(MEASURES)}):top(?P<top>\d+)%"
    r"|random:(?P<share>\d+)%:(?P<seed>\d+)|random:(?P<third>third)|full:r(?P<rank>\d+)|lisa(:(?P<period>\d+))?",
    re.ASCII,
)
LARGEST_SEED = 2**32 - 1
LARGEST_RANK = 65_536
LONGEST_FOLDER = 150  # bytes


@dataclass(frozen=True)
class Choice:
    """What a block tunes in one model, and how that differs from the study's training."""

    layers: tuple[int, ...]
    rank: int | None = None  # of LoRA. The ratio of alpha to rank stays as it is.
    period: int | None = None  # LISA: optimizer steps between two draws of a third of the layers
    modules: tuple[str, ...] | None = None  # full names, if only some target modules are tuned


def layers_of(
    block: str, depth: int, scores: Callable[[str], Sequence[float]] | None = None
) -> list[int]:
    """The layers (sorted, counted from 0) that `block` tunes in a model with `depth` layers.

    `scores` takes a measure (`ila`, …) and returns one number per layer. The highest are chosen.
    Raises HialignError for a name that is not a block, for a layer that the model does not have, and
    for a measured block if `scores` is None.
    """
    return list(choice_of(block, depth, scores).layers)


def choice_of(
    block: str,
    depth: int,
    scores: Callable[[str], Sequence[float]] | None = None,
    seed: int = 42,
) -> Choice:
    """The layers of `block`, with its LoRA rank or LISA period if it has its own.

    `seed` draws the layers of `random:third`.
    """
    check_block(block)
    _check_depth(depth)
    depth = int(depth)
    if block == "base":
        return Choice(())
    if block == "full":
        return Choice(tuple(range(depth)))
    if block in ("local", "mid", "global"):
        return Choice(tuple(split_layers(depth)[block]))
    named = GRAMMAR.fullmatch(block)
    assert named is not None
    if named["rank"]:
        return Choice(tuple(range(depth)), rank=int(named["rank"]))
    if block.startswith("lisa"):
        return Choice(tuple(range(depth)), period=int(named["period"] or LISA_PERIOD))
    if named["share"]:
        drawn = random.Random(int(named["seed"])).sample(
            range(depth), share_of(int(named["share"]), depth)
        )
        return Choice(tuple(sorted(drawn)))
    if named["third"]:
        size = len(split_layers(depth)["local"])
        return Choice(tuple(sorted(random.Random(seed).sample(range(depth), size))))
    if named["measure"]:
        if scores is None:
            raise HialignError(
                f"block {block!r} needs a model whose layers have been measured: "
                f"its layers are not known from the depth alone"
            )
        layer_scores = list(scores(named["measure"]))
        if len(layer_scores) != depth:
            raise HialignError(
                f"block {block!r}: its record has {len(layer_scores)} scores for {depth} layers"
            )
        best = sorted(range(depth), key=lambda layer: (-layer_scores[layer], layer))
        return Choice(tuple(sorted(best[: share_of(int(named["top"]), depth)])))
    layers: set[int] = set()
    for part in (named["layers"] or named["window"]).split(","):
        start, _, end = part.partition("-")
        chosen = range(int(start), int(end or start) + 1)
        if not chosen:
            raise HialignError(
                f"block {block!r}: the range {part!r} runs backwards: write low-high"
            )
        if chosen[-1] >= depth:
            raise HialignError(
                f"block {block!r}: layer {chosen[-1]} is out of range: "
                f"this model has {depth} layers, 0 to {depth - 1}"
            )
        layers.update(chosen)
    return Choice(tuple(sorted(layers)))


def share_of(percent: int, depth: int) -> int:
    """The whole number nearest to `percent` of `depth` layers (or matrices), at least 1."""
    return max(1, (2 * percent * depth + 100) // 200)


def check_block(block: str) -> str:
    """`block` itself if it is well formed. `layers_of` checks whether a model has its layers."""
    if not isinstance(block, str):
        raise HialignError(
            f"a block is a name such as 'mid' or 'layers:8-12', and {block!r} is not one"
            + (f": write 'layers:{block}' for that layer" if type(block) is int else "")
        )
    if len(folder := paths.slug(block).encode(errors="replace")) > LONGEST_FOLDER:
        raise HialignError(
            f"block {block[:40]!r}… has a name of {len(folder)} bytes, {LONGEST_FOLDER} at most: "
            "write layers that follow each other as ranges, as in layers:0-9,20"
        )
    named = GRAMMAR.fullmatch(block)
    if block in STRATEGIES or named:
        for name, most in (("rank", LARGEST_RANK), ("seed", LARGEST_SEED)):
            if named and named[name] and int(named[name]) > most:
                raise HialignError(f"block {block!r}: {name} {named[name]} is over {most}")
        for name in ("top", "share"):
            if named and named[name] and not 1 <= int(named[name]) <= 100:
                raise HialignError(f"block {block!r}: {named[name]}% is not within 1% and 100%")
        for name in ("rank", "period"):
            if named and named[name] and int(named[name]) < 1:
                raise HialignError(f"block {block!r}: {name} must be 1 at least")
        return block
    raise HialignError(
        f"block {block!r} is not one of {', '.join(STRATEGIES)} or layers:… (such as layers:8-12,20),"
        f" window:START-END, {', '.join(MEASURES)} with :top30%, random:30%:SEED, random:third, full:r5, "
        "lisa"
    )


def probe_of(block: str) -> str:
    """The probe whose record chooses the block's layers. Empty if no probe does."""
    return MEASURES.get(block.partition(":")[0], "")


def strategy_of(block: str) -> str:
    """The training condition that a block names (Table 1). Any other block names itself."""
    return STRATEGIES.get(block, block)
