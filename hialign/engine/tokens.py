"""Preference pairs as tokens, cut to the lengths that training allows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hialign.engine.chat_template import chat_ids, template_name
from hialign.study.errors import HialignError


@dataclass(frozen=True)
class Tokens:
    """A prompt with a response. The response begins at position `start` of `ids`."""

    ids: tuple[int, ...]
    start: int


TokenPair = tuple[Tokens, Tokens]  # chosen, rejected


@dataclass(frozen=True)
class TokenizedPairs:
    """The N pairs that training takes, tokenized once.

    Attributes:
        ids: N, the pairs' ids, or their places in the data set if it has none.
        tokens: N, the pairs as they are trained on.
        uncut: N, the same before they were cut to the length that training allows.
        total: the number of pairs in the data set. Those with too long a prompt are left out.
    """

    ids: list[str]
    tokens: list[TokenPair]
    uncut: list[TokenPair]
    total: int

    @property
    def truncated(self) -> int:
        """The number of pairs of which something was cut."""
        return sum(cut != uncut for cut, uncut in zip(self.tokens, self.uncut, strict=True))


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: Mapping[str, Any],
    max_length: int | None = None,
    truncation: str = "keep_start",
) -> TokenPair:
    """Tokenize chosen and rejected exactly as TRL's DPOTrainer does.

    The response begins where the templated prompt and the two templated conversations part.

    Args:
        tokenizer: as `hialign.engine.models.load_tokenizer` gives it.
        pair: `prompt`, `chosen` and `rejected`, each a list of messages. Errors name its `id`.
        max_length: the tokens that a conversation may have. None cuts nothing.
        truncation: what stays of a longer one, its beginning (`keep_start`) or end (`keep_end`).

    Raises:
        HialignError: if a response has no token even before it is cut.
    """
    name = f"pair {pair.get('id', '')!r}" if pair.get("id") is not None else "a pair"
    prompt = chat_ids(tokenizer, pair["prompt"], name, add_generation_prompt=True)
    chosen, rejected = (
        chat_ids(tokenizer, pair["prompt"] + pair[side], name) for side in ("chosen", "rejected")
    )
    start = min(common_start(prompt, chosen), common_start(prompt, rejected))
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        if len(ids) <= start:
            raise HialignError(
                f"{name}: its {side} response {pair[side][-1]['content'][:60]!r} has no tokens, so "
                f"there is nothing to train on or to score. If {template_name(tokenizer)} leaves out "
                "the assistant's turn, correct the template; else take the pair out of the data"
            )
    return _cut(
        (Tokens(tuple(chosen), start), Tokens(tuple(rejected), start)), max_length, truncation
    )


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of elements that two sequences begin with alike."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _cut(pair: TokenPair, max_length: int | None, truncation: str) -> TokenPair:
    """The pair, with each of its two sequences cut to `max_length` tokens."""
    chosen, rejected = (_cut_one(tokens, max_length, truncation) for tokens in pair)
    return chosen, rejected


def _cut_one(tokens: Tokens, max_length: int | None, truncation: str) -> Tokens:
    if max_length is None or len(tokens.ids) <= max_length or truncation == "leave_out":
        return tokens
    if truncation == "keep_start":
        return Tokens(tokens.ids[:max_length], min(tokens.start, max_length))
    dropped = len(tokens.ids) - max_length
    return Tokens(tokens.ids[dropped:], max(tokens.start - dropped, 0))


def usable(pair: TokenPair, max_length: int, truncation: str) -> bool:
    """Whether a pair that was cut has a response, or, with `leave_out`, fits as a whole."""
    if truncation == "leave_out":
        return max(len(tokens.ids) for tokens in pair) <= max_length
    return all(len(tokens.ids) > tokens.start for tokens in pair)


def token_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Mapping[str, Any]],
    max_length: int,
    truncation: str,
) -> TokenizedPairs:
    """Tokenize the pairs that TRL trains on.

    When TRL cuts at the end, it drops pairs whose prompt alone fills `max_length`. So do we.

    Args:
        tokenizer: as `hialign.engine.models.load_tokenizer` gives it.
        pairs: as `tokenize_pair` takes them.
        max_length: the tokens that a conversation may have.
        truncation: what stays of a longer one, its beginning (`keep_start`), its end (`keep_end`) or
            nothing (`leave_out`).

    Raises:
        HialignError: if no pair is left, if a response has no token, or if chosen and rejected are
            the same in every pair.
    """
    ids, tokens, uncut = [], [], []
    total, differ, first = 0, False, ""
    for place, pair in enumerate(pairs):
        name = str(pair.get("id", place))
        whole = tokenize_pair(tokenizer, {"id": place, **pair})
        total, differ, first = total + 1, differ or whole[0] != whole[1], first or name
        cut = _cut(whole, max_length, truncation)
        if truncation == "keep_end" or usable(cut, max_length, truncation):
            ids.append(name)
            tokens.append(cut)
            uncut.append(whole)
    if total and not differ:
        template = template_name(tokenizer)
        raise HialignError(
            f"pair {first!r} has the same tokens for chosen and rejected, and so has "
            f"every other of the {total} pairs: there is no preference to learn. "
            f"{template[0].upper()}{template[1:]} or the tokenizer "
            "drops what tells them apart: correct it, or give other pairs"
        )
    if not tokens:
        raise HialignError(
            f"training.max_length {max_length}: every prompt alone is longer, "
            "so no response would be left to train on; raise it"
        )
    return TokenizedPairs(ids, tokens, uncut, total)
