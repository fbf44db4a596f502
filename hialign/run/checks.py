"""Sizes of a study that only its model can judge: read from the configuration, before any weights."""

from typing import Any

from hialign.study.blocks import MEASURES, choice_of
from hialign.study.errors import HialignError
from hialign.study.study import Cell


def check_sizes(cell: Cell) -> None:
    """Refuse a block whose layers the model does not have, a LoRA rank above its width, and
    responses that do not fit its context."""
    # The engine imports torch, and each job of a workflow imports this module for its names alone.
    import transformers

    from hialign.engine.models import config_of, depth_of

    transformers.utils.logging.disable_progress_bar()  # of a small model that is unpacked here
    config = config_of(cell.model).get_text_config()
    depth, width = depth_of(cell.model), int(config.hidden_size)
    training, responses = cell.study.training, cell.study.responses
    rank = training.lora_rank
    if cell.block.partition(":")[0] not in MEASURES:  # a measure chooses layers, and no rank
        rank = choice_of(cell.block, depth).rank or rank
    if rank > width:
        raise HialignError(
            f"{f'block {cell.block}' if rank != training.lora_rank else 'training.lora_rank'}: rank "
            f"{rank} is more than the width of {cell.model.name}, {width}: lower it"
        )
    context: Any = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int) and responses.max_new_tokens >= context:
        raise HialignError(
            f"responses.max_new_tokens {responses.max_new_tokens} does not fit the context of "
            f"{cell.model.name}, {context} tokens: lower it"
        )
