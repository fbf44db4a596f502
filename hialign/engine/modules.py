"""The modules of a model that an adapter of a block is put on."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hialign.study.errors import HialignError

if TYPE_CHECKING:
    import torch


# The linear map that does a projection's work, where a family fuses or renames it.
FUSED: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("q_proj", "query", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "k_proj": ("k_proj", "key", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "v_proj": ("v_proj", "value", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "o_proj": ("o_proj", "out_proj", "dense", "c_proj", "wo"),
}
ATTENTION = re.compile(r"(^|\.)[a-z_]*att[a-z_]*(\.|$)", re.IGNORECASE)


def decoder_layers(model: "torch.nn.Module") -> tuple[str, int]:
    """Where a decoder keeps its layers: the dotted name of the list, and its length.

    Families differ (`model.layers`, `gpt_neox.layers`, `transformer.h`, `language_model.layers`):
    it is the list as long as the configuration's `num_hidden_layers`.
    """
    import torch

    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    depth = int(config.num_hidden_layers)
    for name, module in model.named_modules():
        is_list = isinstance(module, torch.nn.ModuleList) and len(module) == depth
        if is_list and any(ATTENTION.search(child) for child, _ in module[0].named_modules()):
            return name, depth
    raise HialignError(
        f"no list of {depth} decoder layers with attention was found in {type(model).__name__}: "
        "this family cannot be tuned by blocks"
    )


def target_modules(
    model: "torch.nn.Module", layers: Sequence[int], projections: Sequence[str]
) -> list[str]:
    """Full names of the attention projections to adapt, inside `layers` only (section 3.2.3).

    `projections` are Table 5's names (`q_proj`, …); where a family fuses them (`qkv_proj`,
    `query_key_value`) or calls them otherwise (`dense`), the module that does their work is taken.
    Raises HialignError if a layer has no module for a projection: nothing is skipped in silence.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    prefix, _ = decoder_layers(model)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    found: list[str] = []
    for layer in layers:
        inside = f"{prefix}.{layer}."
        attention = [
            n for n in linear if n.startswith(inside) and ATTENTION.search(n.removeprefix(inside))
        ]
        for projection in projections:
            names = FUSED.get(projection, (projection,))
            matches = [n for n in attention if n.rsplit(".", 1)[-1] in names]
            if not matches:
                has = sorted({n.removeprefix(inside) for n in linear if n.startswith(inside)})
                raise HialignError(
                    f"target module {projection!r} was not found in layer {layer} of "
                    f"{type(model).__name__}, whose linear modules are {', '.join(has) or 'none'}: "
                    "set training.target_modules to some of these"
                )
            found += [n for n in matches if n not in found]
    return found
