"""The modules of a model that an adapter of a block is put on."""

import re
from collections.abc import Mapping, Sequence

import torch
from transformers.pytorch_utils import Conv1D

from hialign.study.errors import HialignError

# The linear map that does a projection's work, where a family fuses or renames it.
FUSED: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("q_proj", "query", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "k_proj": ("k_proj", "key", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "v_proj": ("v_proj", "value", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    "o_proj": ("o_proj", "out_proj", "dense", "c_proj", "wo"),
}
ATTENTION = re.compile(r"(^|\.)[a-z_]*att[a-z_]*(\.|$)", re.IGNORECASE)


def decoder_layers(model: torch.nn.Module) -> tuple[str, int]:
    """Where a decoder keeps its layers: the dotted name of the list, and its length.

    Families have different names for it (`model.layers`, `gpt_neox.layers`, `transformer.h`,
    `language_model.layers`). It is the list that is as long as the configuration's
    `num_hidden_layers`.
    """
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
    model: torch.nn.Module, layers: Sequence[int], projections: Sequence[str]
) -> list[str]:
    """The attention projections to adapt, inside `layers` only (section 3.2.3).

    Args:
        model: a causal language model, without adapters.
        layers: the block's layers, counted from 0.
        projections: Table 5's names (`q_proj`, …). If a family fuses them (`qkv_proj`,
            `query_key_value`) or has other names (`dense`), the module that does their work is
            taken.

    Returns:
        The modules' full names, layer by layer.

    Raises:
        HialignError: if a layer has no module for a projection. Nothing is skipped in silence.
    """
    prefix, _ = decoder_layers(model)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    targets: list[str] = []
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
            targets += [n for n in matches if n not in targets]
    return targets


def in_adapter(name: str, adapter: str) -> bool:
    """Whether a parameter belongs to an adapter (PEFT: `….lora_A.<adapter>.weight`)."""
    return "lora_" in name and f".{adapter}." in name


def parameters_in(model: torch.nn.Module, adapter: str) -> list[torch.nn.Parameter]:
    """The parameters of an adapter."""
    return [p for name, p in model.named_parameters() if in_adapter(name, adapter)]
