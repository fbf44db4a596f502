"""What a measure says of each layer, for the blocks that choose their layers by it."""

from hialign.engine.models import identity
from hialign.engine.spectrum import layer_scores
from hialign.records import status
from hialign.records.probe_files import record_of
from hialign.study import blocks
from hialign.study.blocks import MEASURES
from hialign.study.errors import HialignError
from hialign.study.study import Cell


def scores_of(cell: Cell, measure: str) -> list[float]:
    """What a measure (`blocks.MEASURES`) says of each layer of the cell's model: more is more."""
    if MEASURES[measure]:
        try:
            record = record_of(cell, MEASURES[measure])
        except HialignError as error:
            raise HialignError(f"block {cell.block}: {error}") from None
        if record.get("came_from", {}).get("model") not in (None, identity(cell.model)):
            raise HialignError(
                f"block {cell.block}: the record of the {MEASURES[measure]} probe of "
                f"{cell.model.name} is of other weights than {cell.model.source} has now: "
                f"run `{status.command_of(cell, f'probe-{MEASURES[measure]}')}` again"
            )
        if record.get("layer_scores") is None:
            why = record.get("nothing") or record.get("layer_scores_reason") or "no reason given"
            raise HialignError(
                f"block {cell.block}: the {MEASURES[measure]} probe of {cell.model.name} in study "
                f"{cell.study.name} ranks no layer ({why}): leave the block out"
            )
        return [float(score) for score in record["layer_scores"]]
    return layer_scores(cell.model, cell.study.training.target_modules)


def choice(cell: Cell, depth: int) -> blocks.Choice:
    """What the cell's block tunes; where a probe chooses, by its record, which has to be there."""
    return blocks.choice_of(cell.block, depth, lambda measure: scores_of(cell, measure))
