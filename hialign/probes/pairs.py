"""The preference pairs that probes read, and whether a model runs them packed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hialign.engine.decoder import unpackable
from hialign.engine.tokens import TokenPair, tokenize_pair
from hialign.preferences.formats import prompt_id
from hialign.preferences.pairs import contrasts_of, load_pairs
from hialign.probes.record import probe_settings
from hialign.study.errors import HialignError
from hialign.study.study import Cell

ROW = 1024  # tokens of one forward pass of packed pairs


@dataclass(frozen=True)
class ProbePair:
    """A preference pair as a probe reads it."""

    id: str
    objective: str  # `preference` for pairs that were not made to differ in one
    # The prompt's id, by which intervals are clustered. Of BLiMP, whose pairs share one prompt, the
    # phenomenon
    prompt: str
    tokens: TokenPair


def held_out(
    cell: Cell, tokenizer: PreTrainedTokenizerBase, wanted: int | None = None
) -> tuple[list[ProbePair], str]:
    """The first held-out pairs of the study that fit `probes.max_length`.

    Args:
        cell: a cell of the study.
        tokenizer: the model's tokenizer.
        wanted: the number of pairs, `probes.pairs` by default.

    Returns:
        The pairs, and the fingerprint of their source.

    Raises:
        HialignError: if there are fewer than `wanted`.
    """
    settings = probe_settings(cell)
    wanted = settings.pairs if wanted is None else wanted
    source = load_pairs(cell.study.preferences)
    pairs = fitting(source.evaluation, tokenizer, settings.max_length, wanted)
    if len(pairs) < wanted:
        raise HialignError(
            f"probes.pairs asks for {wanted} pairs, but of the {len(source.evaluation)} held-out "
            f"pairs of study {cell.study.name} only {len(pairs)} have at most probes.max_length "
            f"{settings.max_length} tokens: raise preferences.evaluation or probes.max_length, or "
            "lower probes.pairs"
        )
    return pairs, source.fingerprint


def contrast_pairs_of(tokenizer: PreTrainedTokenizerBase, prompts: int) -> list[ProbePair]:
    """The built-in contrasts of `prompts` held-out prompts: pairs that differ in one objective."""
    rows = [pair for pairs in contrasts_of(prompts).values() for pair in pairs]
    return fitting(rows, tokenizer, None, None)


def fitting(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    longest: int | None,
    wanted: int | None,
) -> list[ProbePair]:
    """The first `wanted` of `rows` with at most `longest` tokens on each side. None sets no limit."""
    pairs: list[ProbePair] = []
    for row in rows:
        if wanted is not None and len(pairs) == wanted:
            break
        tokens = tokenize_pair(tokenizer, row)
        if longest is None or max(len(t.ids) for t in tokens) <= longest:
            prompt = str(row.get("phenomenon") or prompt_id(row["prompt"]))
            pairs.append(ProbePair(str(row["id"]), str(row["objective"]), prompt, tokens))
    return pairs


def check_packable(model: PreTrainedModel, pairs: Sequence[ProbePair]) -> None:
    """Refuse a model that gives packed pairs other log-probabilities, which probes cannot run."""
    if why := unpackable(model, [pair.tokens for pair in pairs], disable_dropout=True):
        raise HialignError(f"the probes run packed pairs, which this model does not take: {why}")
