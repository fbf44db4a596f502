"""Accuracy against KL divergence along training, against plain forward passes of PEFT's own model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hialign import load_pairs, train_together
from hialign.engine.adapters import load_cells
from hialign.engine.together import active
from hialign.engine.tokens import tokenize_pair
from hialign.probes.frontier import frontier
from hialign.report.where import frontier as view
from hialign.study.study import load_study, probe_runs


def by_stock(model: Any, strategies: Any, block: str, pairs: Any) -> tuple[list[float], float]:
    """Log-probability differences of the pairs, and the mean KL per token from base, by plain passes."""
    ratios, total, count = [], 0.0, 0
    for pair in pairs:
        gained = []
        for tokens in pair:
            ids = torch.tensor([tokens.ids])
            scored = slice(tokens.start - 1, -1)
            both = []
            for name in (block, "base"):
                with active(model, strategies, name), torch.no_grad():
                    both.append(model(ids).logits[0, scored].double().log_softmax(-1))
            tuned, base = both
            targets = ids[0, tokens.start :, None]
            gained.append(float((tuned.gather(1, targets) - base.gather(1, targets)).sum()))
            total += float((tuned.exp() * (tuned - base)).sum())
            count += len(targets)
        ratios.append(gained[0] - gained[1])
    return ratios, total / count


@pytest.mark.parametrize("probes", [{"max_length": 256, "frontier": {"at_steps": [2], "pairs": 5}}])
def test_the_last_point_is_what_training_left(
    tiny_study: Callable[..., Path], outputs: Path, probes: dict[str, Any]
) -> None:
    study = load_study(tiny_study(blocks=["base", "full", "global"], probes=probes))
    train_together(study.cells())
    record = frontier(study.cells()[0])
    assert record["steps"] == [2, 4]
    assert [(p["step"], p["block"]) for p in record["points"]] == [
        (step, block) for step in (2, 4) for block in ("full", "global")
    ]
    model, tokenizer, strategies = load_cells(study.cells())
    held_out = {str(pair["id"]): pair for pair in load_pairs(study.preferences).evaluation}
    pairs = [tokenize_pair(tokenizer, held_out[pair["id"]]) for pair in record["pairs"]]
    for point in record["points"][2:]:
        ratios, kl = by_stock(model, strategies, point["block"], pairs)
        np.testing.assert_allclose(point["margins"], np.multiply(0.1, ratios), atol=1e-4)
        assert point["kl"] == pytest.approx(kl, rel=1e-3)
        assert point["accuracy"] == np.mean(np.array(point["margins"]) > 0)
    assert record["points"][0]["kl"] < record["points"][2]["kl"]
    assert len(view.frontier(study).axes[0].lines) == 3  # two blocks, and Base's own level
    assert len(view.points(study)) == 4


def test_only_the_first_seed_of_a_study_has_it(tiny_study: Callable[..., Path]) -> None:
    study = load_study(tiny_study(seeds=[1, 2], probes={"frontier": {}, "weights": {}}))
    runs = [
        (one.seed, probe) for one, _, probe in probe_runs(study) if probe in ("frontier", "weights")
    ]
    assert runs == [("seed-1", "weights"), ("seed-1", "frontier"), ("seed-2", "weights")]
    assert "frontier" not in {
        probe for _, _, probe in probe_runs(load_study(tiny_study(probes={})))
    }
