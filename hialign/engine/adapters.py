"""What training left behind, loaded: base models with the adapters of cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hialign.engine.models import load_model
from hialign.engine.strategy import Strategy
from hialign.records import stages, status
from hialign.study import paths
from hialign.study.study import Cell


def load_cell(cell: Cell) -> tuple[Any, PreTrainedTokenizerBase]:
    """The cell's model with its adapter active, and its tokenizer. Base is the model alone.

    Raises HialignError if the cell was not trained, if it was trained with other settings than the
    study has now, or if its adapter is not the one that training left.
    """
    model, tokenizer, _ = load_cells([cell])
    return model, tokenizer


def load_cells(
    cells: Sequence[Cell],
) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Strategy]]:
    """One base model with the adapter of each cell, its tokenizer, and by block what is tuned.

    The cells are of one model and one seed. Base has no adapter, and is not among the strategies.
    Raises HialignError as `load_cell`.
    """
    manifests = {cell.block: status.required(cell, "train") for cell in cells}
    model, tokenizer = load_model(cells[0].model)
    strategies: dict[str, Strategy] = {}
    for cell in cells:
        if cell.block == "base":
            continue
        name, folder = paths.slug(cell.block), str(cell.folder / "adapter")
        if not (cell.folder / stages.ADAPTER[0]).is_file():  # published without weights
            what = f"{cell.model.name} {cell.block} of study {cell.study.name}"
            raise stages.run_first(f"{what} has no adapter", cell, "train")
        if strategies:
            model.load_adapter(folder, adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        layers = [int(layer) for layer in manifests[cell.block]["layers"]]
        strategies[cell.block] = Strategy(cell.block, layers, name)
    return model.eval(), tokenizer, strategies


def save_bfloat16(adapter: Path, copy: Path) -> None:
    """Write the weights of an adapter (`adapter_model.safetensors`) in bfloat16, half the bytes."""
    from safetensors.torch import load_file, save_file

    weights = {name: value.to(torch.bfloat16) for name, value in load_file(adapter).items()}
    save_file(weights, copy, metadata={"format": "pt"})
