"""Preference pairs as tokens, cut to the lengths that training allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hialign.engine.chat_template import chat_ids, template_name
from hialign.study.errors import HialignError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """A prompt with a response; the response begins at position `start` of `ids`."""

    ids: tuple[int, ...]
    start: int


TokenPair = tuple[Tokens, Tokens]  # chosen, rejected


def tokenize_pair(
    tokenizer: "PreTrainedTokenizerBase",
    pair: dict[str, Any],
    max_length: int | None = None,
    truncation: str = "keep_start",
) -> tuple[Tokens, Tokens]:
    """Chosen and rejected as tokens, exactly as TRL's DPOTrainer makes them.

    The response begins where the templated prompt and both templated wholes part. Over
    `max_length` tokens the end is cut (`keep_start`) or the beginning (`keep_end`). Raises
    HialignError for a response that has no token even before that.
    """
    name = f"pair {pair.get('id', '')!r}" if pair.get("id") is not None else "a pair"
    prompt = chat_ids(tokenizer, pair["prompt"], name, add_generation_prompt=True)
    wholes = [
        chat_ids(tokenizer, pair["prompt"] + pair[side], name) for side in ("chosen", "rejected")
    ]
    start = min(common_start(prompt, whole) for whole in wholes)
    for side, whole in zip(("chosen", "rejected"), wholes, strict=True):
        if len(whole) <= start:
            raise HialignError(
                f"{name}: its {side} response {pair[side][-1]['content'][:60]!r} has no tokens, so "
                f"there is nothing to train on or to score. If {template_name(tokenizer)} leaves out "
                "the assistant's turn, correct the template; else take the pair out of the data"
            )
    return tuple(_cut(Tokens(tuple(w), start), max_length, truncation) for w in wholes)  # type: ignore[return-value]


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of elements that two sequences begin with alike."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _cut(tokens: Tokens, max_length: int | None, truncation: str) -> Tokens:
    if max_length is None or len(tokens.ids) <= max_length:
        return tokens
    if truncation == "keep_start":
        return Tokens(tokens.ids[:max_length], min(tokens.start, max_length))
    dropped = len(tokens.ids) - max_length
    return Tokens(tokens.ids[dropped:], max(tokens.start - dropped, 0))


class KeptPairs(NamedTuple):
    """The pairs that training takes: their places in the data set, their tokens, how many are cut."""

    places: list[int]
    tokens: list[TokenPair]
    truncated: int


def token_pairs(
    tokenizer: "PreTrainedTokenizerBase", pairs: Any, max_length: int, truncation: str
) -> KeptPairs:
    """The pairs that TRL keeps.

    TRL drops pairs whose prompt alone fills `max_length` when it cuts at the end; so do we. Raises
    HialignError if none is left, if a response has no token, or if no pair has two responses.
    """
    places, found, truncated, alike = [], [], 0, True
    for place, pair in enumerate(pairs):
        whole = tokenize_pair(tokenizer, {"id": place, **pair})
        alike = alike and whole[0] == whole[1]
        chosen, rejected = (_cut(tokens, max_length, truncation) for tokens in whole)
        if truncation == "keep_end" or chosen.start < max_length:
            places.append(place)
            found.append((chosen, rejected))
            truncated += any(len(tokens.ids) > max_length for tokens in whole)
    if alike and len(pairs):
        raise HialignError(
            f"pair {pairs[0].get('id', 0)!r} has the same tokens for chosen and rejected, and so has "
            f"every other of the {len(pairs)} pairs: there is no preference to learn. "
            f"{template_name(tokenizer)[0].upper()}{template_name(tokenizer)[1:]} or the tokenizer "
            "drops what tells them apart: correct it, or give other pairs"
        )
    if not found:
        raise HialignError(
            f"training.max_length {max_length}: every prompt alone is longer, "
            "so no response would be left to train on; raise it"
        )
    return KeptPairs(places, found, truncated)
