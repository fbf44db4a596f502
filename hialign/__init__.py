"""hialign: where in a language model does alignment happen?

The public names are loaded when they are first used (PEP 562), so that importing this package
imports neither torch nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hialign import records as records
    from hialign.engine.adapters import load_cell as load_cell
    from hialign.engine.cells import train as train
    from hialign.engine.cells import train_together as train_together
    from hialign.engine.models import load_model as load_model
    from hialign.evaluation.compare import compare as compare
    from hialign.evaluation.evaluate import evaluate as evaluate
    from hialign.evaluation.evaluate import evaluate_together as evaluate_together
    from hialign.evaluation.respond import chat as chat
    from hialign.evaluation.respond import respond as respond
    from hialign.judging.cells import judge as judge
    from hialign.preferences.pairs import load_pairs as load_pairs
    from hialign.study.blocks import layers_of as layers_of
    from hialign.study.blocks import split_layers as split_layers
    from hialign.study.errors import HialignError as HialignError
    from hialign.study.study import load_study as load_study

_PLACES = {  # public name -> the module that has it
    "HialignError": "study.errors",
    "chat": "evaluation.respond",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "evaluate_together": "evaluation.evaluate",
    "judge": "judging.cells",
    "layers_of": "study.blocks",
    "load_cell": "engine.adapters",
    "load_model": "engine.models",
    "load_pairs": "preferences.pairs",
    "load_study": "study.study",
    "respond": "evaluation.respond",
    "split_layers": "study.blocks",
    "train": "engine.cells",
    "train_together": "engine.cells",
}
__all__ = sorted([*_PLACES, "records"])


def __getattr__(name: str) -> Any:
    if name == "records":
        return import_module("hialign.records")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hialign.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
