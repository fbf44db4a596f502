"""hialign: where in a language model does alignment happen?

Importing this package imports no torch: the functions that need it do so when they are called.
"""

from hialign import records
from hialign.blocks import layers_of, split_layers
from hialign.compare import compare
from hialign.errors import HialignError
from hialign.evaluate import evaluate
from hialign.judge.cells import judge
from hialign.models import load_model
from hialign.preferences import load_pairs
from hialign.respond import chat, respond
from hialign.study import load_study
from hialign.training import load_cell, train, train_together

__all__ = [
    "HialignError",
    "chat",
    "compare",
    "evaluate",
    "judge",
    "layers_of",
    "load_cell",
    "load_model",
    "load_pairs",
    "load_study",
    "records",
    "respond",
    "split_layers",
    "train",
    "train_together",
]
