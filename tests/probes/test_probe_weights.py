"""The size of a block's change, against PEFT's own product, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import write_study
from peft import PeftModel

from hialign import HialignError, load_model, load_study, train
from hialign.engine.measures import scores_of
from hialign.probes.weights import norm_of, weights
from hialign.study.study import Cell


@pytest.fixture
def cell(tmp_path: Path, outputs: Path) -> Callable[[str], Cell]:
    def make(tuned: str) -> Cell:
        study = write_study(tmp_path, blocks=["base", "mid"], probes={"weights": {"tuned": tuned}})
        return load_study(study).cell(None, "base")

    return make


def test_the_change_is_pefts(cell: Callable[[str], Cell]) -> None:
    base = cell("mid")
    mid = base.study.cell(None, "mid")
    train(mid)
    found = weights(base)
    model, _ = load_model(base.model)
    adapted = PeftModel.from_pretrained(model, mid.folder / "adapter")
    squares = [0.0] * 6
    for name, module in adapted.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in module.lora_A:
            layer = int(name.split(".layers.")[1].split(".")[0])
            squares[layer] += float(module.get_delta_weight("default").square().sum())
    assert found["update"] == pytest.approx([s**0.5 for s in squares], rel=1e-4)
    assert [layer for layer, norm in enumerate(found["update"]) if norm] == [2, 3]
    spectrum = base.study.cell(None, "spectrum:top30%")
    assert found["spectrum"] == scores_of(spectrum, "spectrum")
    assert (found["tuned"], found["depth"]) == ("mid", 6)


def test_the_norm_of_a_product() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 30), torch.randn(20, 4)
    assert norm_of(a, b, 0.5) == pytest.approx(float((0.5 * b @ a).norm()), rel=1e-5)
    assert norm_of(a, torch.zeros(20, 4), 0.5) == 0


def test_a_block_that_is_not_trained_is_refused(cell: Callable[[str], Cell]) -> None:
    with pytest.raises(HialignError, match=r"local in study tiny is missing: run `hialign run"):
        weights(cell("local"))
