"""Log-probabilities of responses, and the reference model's, kept for a whole grid.

A response's log-probability is the sum over its tokens of log p(token | all before), in nats; the
DPO loss (Eq. 1) is made of four of them. The reference is the base model for every strategy, so
its values are kept on disk under a key of everything that they depend on.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from hialign import paths
from hialign.chat_template import chat_ids, template_name
from hialign.errors import HialignError
from hialign.files import read_record, write_record
from hialign.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def response_logits(
    model: "torch.nn.Module", batch: Sequence[Tokens], pad: int
) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """For each sequence the logits (response tokens, vocabulary) in float32 and its target ids.

    Positions before the response are not passed through the LM head.
    """
    import torch

    device = next(model.parameters()).device
    length = max(len(t.ids) for t in batch)
    ids = torch.tensor([[*t.ids, *[pad] * (length - len(t.ids))] for t in batch], device=device)
    mask = torch.tensor(
        [[1] * len(t.ids) + [0] * (length - len(t.ids)) for t in batch], device=device
    )
    first = max(
        min(t.start for t in batch) - 1, 0
    )  # the logits that predict the first scored token
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=length - first
    ).logits
    found = []
    for row, tokens in enumerate(batch):
        start, end = max(tokens.start, 1), len(tokens.ids)
        scored = logits[row, start - 1 - first : end - 1 - first].float()
        found.append((scored, ids[row, start:end]))
    return found


def log_probs(
    model: "torch.nn.Module", sequences: Sequence[Tokens], batch_size: int, pad: int, what: str
) -> list[float]:
    """The log-probability (nats, summed over the response) of each sequence under `model`.

    Batches are grouped by length, so that little is padded; the order of the result is the
    argument's.
    """
    import torch

    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    result = [0.0] * len(sequences)
    with torch.inference_mode(), Progress(total=len(sequences), desc=what, disable=not what) as bar:
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            scored = response_logits(model, [sequences[i] for i in chosen], pad)
            for i, (logits, targets) in zip(chosen, scored, strict=True):
                picked = logits.log_softmax(-1).gather(-1, targets[:, None])
                result[i] = float(picked.sum())
            bar.update(len(chosen))
    if any(value != value for value in result):
        raise HialignError(f"{what}: the model gave log-probabilities that are not numbers")
    return result


class Reference:
    """The base model's log-probabilities of each pair, computed once and kept in the cache.

    The key covers the weights, the precision and every token (so the template and the truncation
    too). `values` holds (chosen, rejected) in nats for each pair, None where it is not known yet.
    """

    def __init__(
        self, model: "PreTrainedModel", identity: dict[str, str], pairs: Sequence[TokenPair]
    ) -> None:
        weights = next(model.parameters())
        tokens = [(t.ids, t.start) for pair in pairs for t in pair]
        key_of = [identity, str(weights.dtype), weights.device.type, tokens]
        key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()[:24]
        self.path = paths.cache() / "reference" / f"{key}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._identity, self._pairs = identity, pairs
        self.values: list[tuple[float, float] | None] = [None] * len(pairs)
        with self._lock():  # who fills it holds the lock
            self._read()

    def _lock(self) -> FileLock:
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> None:
        if self.path.is_file():
            with contextlib.suppress(HialignError):  # it was changed since: computed again
                known = read_record(self.path)["log_probs"]
                self.values = [(chosen, rejected) for chosen, rejected in known]
        self._saved = self.complete

    @property
    def complete(self) -> bool:
        return None not in self.values

    def fill(
        self, compute: Callable[[Sequence[TokenPair]], list[tuple[float, float]]]
    ) -> list[tuple[float, float]]:
        """All values, computed now unless they are known; a second process waits for the first."""
        with self._lock():
            self._read()
            if not self.complete:
                self.values = list(compute(self._pairs))
                self.save()
        return [both for both in self.values if both]

    def save(self) -> None:
        """Keep the values, if all are known and are not kept yet."""
        if self.complete and not self._saved:
            content = {"identity": self._identity, "log_probs": self.values}
            write_record(self.path, content)
            self._saved = True
