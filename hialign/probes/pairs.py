"""What the probes share: pairs that fit, records that are kept, adapters that are tuned and compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hialign.engine.decoder import Layout, unpackable
from hialign.engine.packing import pack, plan
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
    prompt: str  # the prompt's id: pairs of one prompt are kin
    tokens: TokenPair


# --- records -------------------------------------------------------------------------------------


# --- pairs ---------------------------------------------------------------------------------------


def held_out(
    cell: Cell, tokenizer: PreTrainedTokenizerBase, wanted: int | None = None
) -> tuple[list[ProbePair], str]:
    """The first `wanted` held-out pairs of the study that fit `probes.max_length`, and the
    fingerprint of the source. Raises HialignError where there are fewer."""
    settings = probe_settings(cell)
    wanted = settings.pairs if wanted is None else wanted
    pairs = load_pairs(cell.study.preferences)
    found = fitting(pairs.evaluation, tokenizer, settings.max_length, wanted)
    if len(found) < wanted:
        raise HialignError(
            f"probes.pairs asks for {wanted} pairs, but of the {len(pairs.evaluation)} held-out "
            f"pairs of study {cell.study.name} only {len(found)} have at most probes.max_length "
            f"{settings.max_length} tokens: raise preferences.evaluation or probes.max_length, or "
            "lower probes.pairs"
        )
    return found, pairs.fingerprint


def contrast_pairs_of(
    cell: Cell, tokenizer: PreTrainedTokenizerBase, prompts: int
) -> list[ProbePair]:
    """The built-in contrasts of `prompts` held-out prompts: pairs that differ in one objective."""
    rows = [pair for pairs in contrasts_of(prompts).values() for pair in pairs]
    return fitting(rows, tokenizer, None, None)


def fitting(
    rows: Any, tokenizer: PreTrainedTokenizerBase, longest: int | None, wanted: int | None
) -> list[ProbePair]:
    """The first `wanted` (None: all) of `rows` that have at most `longest` tokens a side."""
    found: list[ProbePair] = []
    for row in rows:
        if wanted is not None and len(found) == wanted:
            break
        tokens = tokenize_pair(tokenizer, row)
        if longest is None or max(len(t.ids) for t in tokens) <= longest:
            kin = prompt_id(row["prompt"])
            found.append(ProbePair(str(row["id"]), str(row["objective"]), kin, tokens))
    return found


# --- models --------------------------------------------------------------------------------------


def packable(model: PreTrainedModel, pairs: Sequence[ProbePair]) -> PreTrainedModel:
    """`model` if the probes can run it, that is, if packed pairs have its log-probabilities."""
    if why := unpackable(model, [pair.tokens for pair in pairs], disable_dropout=True):
        raise HialignError(f"the probes run packed pairs, which this model does not take: {why}")
    return model


def rows_of(
    pairs: Sequence[ProbePair], device: torch.device, limit: int = ROW
) -> Iterator[tuple[list[int], Layout]]:
    """The pairs in packed rows of at most `limit` tokens: their places, and the layout."""
    tokens = [pair.tokens for pair in pairs]
    for chosen in plan(tokens, limit):
        yield chosen, Layout(pack([tokens[i] for i in chosen]), device)
