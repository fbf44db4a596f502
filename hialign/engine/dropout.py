"""Dropout in a frozen model: whether it acts in training, and how to switch all of it off.

The layers below a tuned block are run once for all blocks and for the reference. That is right only
if they compute the same in training as in evaluation.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from hialign.engine.logprobs import log_probs
from hialign.engine.tokens import Tokens


def noise_of(model: PreTrainedModel, tokens: Tokens) -> str:
    """What the frozen model does in training and not in evaluation. Empty if it does the same.

    The same sequence is run once in evaluation mode and twice in training mode. It is repeated up to
    128 tokens, as a rare dropout might hit nothing in a short one. The random numbers that dropout
    draws are those of a fork, so that nothing later depends on this.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 128
    times = max(1, min(128, room) // len(tokens.ids))
    probe = [Tokens(tokens.ids * times, 1)]
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        evaluated = log_probs(model.eval(), probe, 1, 0, "")[0]
        once, again = (log_probs(model.train(), probe, 1, 0, "")[0] for _ in range(2))
    # nats per token; the same kernels twice give the same numbers, up to the order of a sum
    scale = max(1, len(probe[0].ids) - 1) * (1e-4 if model.dtype == torch.float32 else 0.1)
    if not abs(once - again) <= scale / 100:
        return "has dropout in frozen layers"
    if not abs(once - evaluated) <= scale:
        return "computes otherwise in training than in evaluation"
    return ""


def silence(model: PreTrainedModel) -> None:
    """Set every dropout rate of `model` to 0, those of modules and those of functions.

    TRL's `disable_dropout` reaches `torch.nn.Dropout` modules alone. Llama's attention dropout and
    Seed-OSS's residual dropout are numbers in modules and in the configuration.
    """
    owners: list[Any] = [model.config, model.config.get_text_config()]
    for module in model.modules():
        owners += [module, getattr(module, "config", None)]
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    for owner in owners:
        for name, value in list(getattr(owner, "__dict__", {}).items()):
            is_rate = "drop" in name and isinstance(value, int | float)
            if is_rate and not isinstance(value, bool) and 0 < value <= 1:
                setattr(owner, name, 0.0)
