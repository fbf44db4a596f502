"""A notebook's parameters: names, types, and the cell that they name."""

import difflib
import warnings
from collections.abc import Mapping, MutableMapping
from typing import Any

from hialign.records import processes
from hialign.records.status import DONE, state
from hialign.study import blocks
from hialign.study.errors import HialignError
from hialign.study.study import Cell, load_study

SHELL_NAMES = {"In", "Out"}  # what IPython itself keeps in a notebook's namespace
# A parameter is a plain value, as papermill writes it. Modules and functions are none.
PLAIN = (str, int, float, list, tuple, dict, type(None))
PARAMETERS: Mapping[str, tuple[type, ...]] = {
    "study": (str,),
    "model": (str, type(None)),
    "block": (str,),
    "seed": (int, str, type(None)),
}
MORE: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "judge": {"retry_failed": (bool,)},
    "explore": {"question": (str,)},
}
PASSES = ("all", "measured")  # blocks that are trained together, and those that probes choose
BEGUN = "_hialign_begun"  # in a notebook's namespace, once its parameters were checked


def parameters_of(stage: str) -> dict[str, tuple[type, ...]]:
    """The parameters of a notebook and their types. `explore` and the probes have no block, and
    `explore` asks the first seed."""
    parameters = {**PARAMETERS, **MORE.get(stage, {})}
    if stage == "explore" or stage.startswith("probe-"):
        del parameters["block"]
    if stage == "explore":
        del parameters["seed"]
    return parameters


def begin(namespace: Mapping[str, Any], stage: str) -> Cell:
    """Check a notebook's parameters (its `globals()`) and give the cell that they name.

    Every plain value that was named so far counts as a parameter, so that a misspelt one is refused
    (`-p bloc late`). When the cell is run again, later cells have named other things, and only the
    stage's own parameters count. Raises HialignError for a name that is no parameter, for a value of
    another type, and for a study, model or block that does not exist, before anything is loaded.
    """
    again = BEGUN in namespace
    parameters = parameters_of(stage)
    given = {
        name: value
        for name, value in namespace.items()
        if name in parameters or (not again and _is_plain(name, value))
    }
    check_types(given, stage)
    _mark(namespace)
    _quiet(stage)
    return cell_named({"block": "base", **given})


def _is_plain(name: str, value: Any) -> bool:
    """Whether a name in a notebook's namespace may be a parameter."""
    return isinstance(value, PLAIN) and not name.startswith("_") and name not in SHELL_NAMES


def begin_pass(namespace: Mapping[str, Any], stage: str) -> list[Cell]:
    """As `begin`, for a notebook that may train or evaluate several blocks of a model in one pass.

    Block `all` is every block of the study, but for those that a probe chooses: these are `measured`,
    because their probes have to run first. Cells that are done with the study's present settings are
    left out, unless all of them are.
    """
    if (chosen := namespace.get("block")) not in PASSES:
        return [begin(namespace, stage)]
    first = begin({**namespace, "block": "base"}, stage)
    _mark(namespace)
    return cells_of(first, str(chosen), stage)


def cells_of(cell: Cell, chosen: str, stage: str = "train") -> list[Cell]:
    """The cells of a pass over the model of `cell` whose stage is not done, or all if all are."""
    cells = [
        Cell(cell.study, cell.model, block)
        for block in cell.study.blocks
        if bool(blocks.probe_of(block)) == (chosen == "measured")
    ]
    if not cells:
        raise HialignError(f"study {cell.study.name} has no block that a probe chooses")
    return [c for c in cells if state(c, stage) != DONE] or cells


def _mark(namespace: Mapping[str, Any]) -> None:
    """Note in a notebook's namespace that its parameters were checked."""
    if isinstance(namespace, MutableMapping):
        namespace[BEGUN] = True


def check_types(values: Mapping[str, Any], stage: str) -> None:
    """Raise HialignError for a value that is no parameter of a notebook, or is of another type."""
    where, parameters = f"notebook {stage}", parameters_of(stage)
    for name, value in values.items():
        if name not in parameters:
            raise HialignError(unknown(name, list(parameters), where))
        if not isinstance(value, parameters[name]):
            wanted = " or ".join(t.__name__.replace("NoneType", "None") for t in parameters[name])
            raise HialignError(f"{where}: parameter {name} must be {wanted}, it is {value!r}")


def cell_named(values: Mapping[str, Any]) -> Cell:
    """The cell that the parameters `study`, `model`, `block` and `seed` name."""
    study = load_study(values["study"])
    return study.cell(values["model"], values["block"], values.get("seed"))


def unknown(name: str, parameters: list[str], where: str) -> str:
    """What is wrong with `name`, which is not among the parameters of a notebook."""
    close = difflib.get_close_matches(name, parameters, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{where} has no parameter {name!r}{hint}: it has {', '.join(parameters)}"


def _quiet(stage: str) -> None:
    """Keep the libraries' own progress bars and notices out of a saved notebook, and give every
    notebook of a stage the same number of threads."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(processes.threads(stage))
    warnings.filterwarnings("ignore", category=FutureWarning)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
