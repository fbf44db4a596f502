"""Log-probabilities of responses, and the reference model's, computed once for a grid.

A response's log-probability is the sum over its tokens of log p(token | all before), in nats; the
DPO loss (Eq. 1) is made of four of them. The reference is the base model for every strategy, so
its values are kept on disk under a key of everything that they depend on.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hialign import paths, records
from hialign.errors import HialignError
from hialign.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]


@dataclass(frozen=True)
class Tokens:
    """A prompt with a response; the response begins at position `start` of `ids`."""

    ids: tuple[int, ...]
    start: int


def tokenize_pair(
    tokenizer: "PreTrainedTokenizerBase",
    pair: dict[str, Any],
    max_length: int | None = None,
    truncation: str = "keep_start",
) -> tuple[Tokens, Tokens]:
    """Chosen and rejected as tokens, exactly as TRL's DPOTrainer makes them.

    The response begins where the templated prompt and both templated wholes part. Over
    `max_length` tokens the end is cut (`keep_start`) or the beginning (`keep_end`).
    """
    prompt = _template(tokenizer, pair["prompt"], add_generation_prompt=True)
    wholes = [_template(tokenizer, pair["prompt"] + pair[side]) for side in ("chosen", "rejected")]
    start = min(_common_prefix(prompt, whole) for whole in wholes)
    return tuple(_cut(Tokens(tuple(w), start), max_length, truncation) for w in wholes)  # type: ignore[return-value]


def _template(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any
) -> list[int]:
    return list(
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)[
            "input_ids"
        ]
    )


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
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
    with torch.inference_mode(), Progress(total=len(sequences), desc=what) as bar:
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


def reference_log_probs(
    model: "PreTrainedModel",
    identity: dict[str, str],
    sequences: Sequence[Tokens],
    batch_size: int,
    pad: int,
) -> list[float]:
    """`log_probs` of the base model, computed once and kept in the cache.

    The key covers the weights, the precision and every token (so the template and the truncation
    too); a second process that needs the same values waits for the first. `model` must have no
    active adapter.
    """
    weights = next(model.parameters())
    key_of = [
        identity,
        str(weights.dtype),
        weights.device.type,
        [(t.ids, t.start) for t in sequences],
    ]
    key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()[:24]
    path = paths.cache() / "reference" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return list(records.read_json(path)["log_probs"])
        values = log_probs(model, sequences, batch_size, pad, "reference")
        records.write_json(path, {"identity": identity, "log_probs": values})
    return values
