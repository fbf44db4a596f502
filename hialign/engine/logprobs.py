"""Log-probabilities of responses, from padded batches.

A response's log-probability is the sum over its tokens of log p(token | all before), in nats. The
DPO loss (Eq. 1) is made of four of them. `decoder.pair_log_probs` computes them from packed pairs,
which is faster, for the families that allow it.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from hialign.engine.progress import Progress
from hialign.engine.tokens import Tokens
from hialign.study.errors import HialignError


def response_logits(
    model: torch.nn.Module, batch: Sequence[Tokens], pad: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The logits of each sequence's response, and the ids that they should predict.

    Positions before the earliest response of the batch are not passed through the LM head.

    Args:
        model: a causal language model.
        batch: N sequences.
        pad: the token that pads them to one length.

    Returns:
        By sequence of R response tokens, the logits (R x vocabulary, float32) and the ids (R).
    """
    device = next(model.parameters()).device
    rows = [torch.tensor(tokens.ids, device=device) for tokens in batch]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    # the place whose logits predict the first scored token
    first = max(min(t.start for t in batch) - 1, 0)
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first
    ).logits
    responses = []
    for row, tokens in enumerate(batch):
        start, end = max(tokens.start, 1), len(tokens.ids)
        scored = logits[row, start - 1 - first : end - 1 - first].float()
        responses.append((scored, ids[row, start:end]))
    return responses


def log_probs(
    model: torch.nn.Module, sequences: Sequence[Tokens], batch_size: int, pad: int, what: str
) -> list[float]:
    """The log-probability (nats, summed over the response) of each sequence under `model`.

    Batches are grouped by length, so that little is padded.

    Args:
        model: a causal language model.
        sequences: N sequences.
        batch_size: sequences of one forward pass.
        pad: the token that pads them to one length.
        what: the name of the progress bar, which is not shown if it is empty.

    Returns:
        N log-probabilities, in the order of `sequences`.

    Raises:
        HialignError: if the model gives numbers that are not finite.
    """
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    result = [0.0] * len(sequences)
    with torch.inference_mode(), Progress(total=len(sequences), desc=what, disable=not what) as bar:
        for at in range(0, len(order), batch_size):
            batch = order[at : at + batch_size]
            responses = response_logits(model, [sequences[i] for i in batch], pad)
            for i, (logits, targets) in zip(batch, responses, strict=True):
                result[i] = float(logits.log_softmax(-1).gather(-1, targets[:, None]).sum())
            bar.update(len(batch))
    if any(value != value for value in result):
        raise HialignError(f"{what}: the model gave log-probabilities that are not numbers")
    return result
