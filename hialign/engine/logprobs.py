"""Log-probabilities of responses, and the reference model's, kept for a whole grid.

A response's log-probability is the sum over its tokens of log p(token | all before), in nats; the
DPO loss (Eq. 1) is made of four of them. The reference is the base model for every strategy, so
its values are kept on disk under a key of everything that they depend on.
"""

from collections.abc import Sequence

import torch

from hialign.engine.progress import Progress
from hialign.engine.tokens import Tokens
from hialign.study.errors import HialignError


def response_logits(
    model: torch.nn.Module, batch: Sequence[Tokens], pad: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each sequence the logits (response tokens, vocabulary) in float32 and its target ids.

    Positions before the response are not passed through the LM head.
    """
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
    model: torch.nn.Module, sequences: Sequence[Tokens], batch_size: int, pad: int, what: str
) -> list[float]:
    """The log-probability (nats, summed over the response) of each sequence under `model`.

    Batches are grouped by length, so that little is padded; the order of the result is the
    argument's.
    """
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
