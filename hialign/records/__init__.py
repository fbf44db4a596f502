"""The files of a cell: where running and reading meet.

`files` writes and reads them. `stages` says where the record of each stage lies, `dependencies` what
it was made from, and `status` whether it says what would be measured today. `frames` gives records as
DataFrames, also by `records.evaluations(study)`. `explorations` and `agreement` are records of their
own kind, and `processes` keeps the processes that write all of these apart.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hialign.records.frames import divergences as divergences
    from hialign.records.frames import evaluations as evaluations
    from hialign.records.frames import judgments as judgments
    from hialign.records.frames import manifests as manifests
    from hialign.records.frames import pairs as pairs
    from hialign.records.frames import probes as probes
    from hialign.records.frames import responses as responses
    from hialign.records.frames import training as training

__all__ = [
    "divergences", "evaluations", "judgments", "manifests", "pairs", "probes", "responses",
    "training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A reader of `frames`, which imports pandas, when it is asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hialign.records.frames"), name)
