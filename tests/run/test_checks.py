"""What is refused before a run starts: sizes that the model does not have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hialign import HialignError, load_study
from hialign.run.checks import check_sizes


def test_blocks_of_every_kind_may_run(tiny_study: Callable[..., Path]) -> None:
    """Those of `where` have every kind. The layers that a measure will choose are not known yet."""
    blocks = load_study("where").blocks
    assert {"spectrum:top30%", "gradient:top30%", "lisa:4", "full:r5"} <= set(blocks)
    for cell in load_study(tiny_study(blocks=blocks)).cells():
        check_sizes(cell)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"blocks": ["layers:99"]}, "layer 99 is out of range"),
        ({"blocks": ["full:r5000"]}, "block full:r5000: rank 5000 is more than the width"),
        (
            {"blocks": ["spectrum:top30%"], "training": {"lora_rank": 5000}},
            "training.lora_rank: rank 5000 is more than the width",
        ),
        ({"responses": {"max_new_tokens": 10**6}}, "does not fit the context"),
    ],
)
def test_sizes_that_the_model_lacks_are_refused(
    tiny_study: Callable[..., Path], changes: dict, problem: str
) -> None:
    with pytest.raises(HialignError, match=problem):
        check_sizes(load_study(tiny_study(**changes)).cells()[-1])
