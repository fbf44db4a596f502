"""Each layer's score under a measure, for the blocks that choose their layers by it."""

from hialign.engine.models import identity
from hialign.engine.spectrum import layer_scores
from hialign.records import stages
from hialign.records.probe_files import record_of
from hialign.study import blocks
from hialign.study.blocks import MEASURES
from hialign.study.errors import HialignError
from hialign.study.study import Cell


def scores_of(cell: Cell, measure: str) -> list[float]:
    """The score of each layer of the cell's model under a measure of `blocks.MEASURES`.

    Layers with a higher score are tuned first. Raises HialignError if the measure is a probe's and
    its record is missing, is of other weights, or ranks no layer.
    """
    probe = MEASURES[measure]
    if not probe:
        return layer_scores(cell.model, cell.study.training.target_modules)
    try:
        record = record_of(cell, probe)
    except HialignError as error:
        raise HialignError(f"block {cell.block}: {error}") from None
    if record.get("came_from", {}).get("model") not in (None, identity(cell.model)):
        problem = (
            f"block {cell.block}: the record of the {probe} probe of {cell.model.name} is of other "
            f"weights than {cell.model.source} has now"
        )
        raise stages.run_first(problem, cell, f"probe-{probe}")
    if record.get("layer_scores") is None:
        why = record.get("nothing") or record.get("layer_scores_reason") or "no reason given"
        raise HialignError(
            f"block {cell.block}: the {probe} probe of {cell.model.name} in study "
            f"{cell.study.name} ranks no layer ({why}): leave the block out"
        )
    return [float(score) for score in record["layer_scores"]]


def choice(cell: Cell, depth: int) -> blocks.Choice:
    """What the cell's block tunes, in a model of `depth` layers."""
    seed = cell.study.training.seed
    return blocks.choice_of(cell.block, depth, lambda measure: scores_of(cell, measure), seed)
