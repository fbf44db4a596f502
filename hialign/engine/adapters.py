"""What training left behind, loaded: a cell's base model with its adapter."""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hialign.engine.models import load_model
from hialign.records import status
from hialign.study.study import Cell


def load_cell(cell: Cell) -> tuple[Any, PreTrainedTokenizerBase]:
    """The cell's model with its adapter active, and its tokenizer. Base is the model alone.

    Raises HialignError if the cell was not trained, if it was trained with other settings than the
    study has now, or if its adapter is not the one that training left.
    """
    status.required(cell, "train")
    model, tokenizer = load_model(cell.model)
    if cell.block == "base":
        return model, tokenizer
    return PeftModel.from_pretrained(model, cell.folder / "adapter").eval(), tokenizer
