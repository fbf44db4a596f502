"""Running the notebooks: parameters that are checked, outputs that are whole, errors that are short.

papermill warns of an unknown parameter and goes on with the defaults; here it is an error, in the
notebook itself (`begin`) and before one is started (`run`).
"""

import ast
import difflib
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from hialign import blocks, paths, processes, records
from hialign.checks import check_sizes
from hialign.errors import HialignError
from hialign.files import read_jsonl
from hialign.probes import forget
from hialign.sources import check_source
from hialign.status import DONE, UPSTREAM, cell_status, probe_status, required, state
from hialign.study import PROBES, STAGES, Cell, load_study

# What IPython and Jupyter themselves put into a notebook's namespace
SHELL_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython", "hialign"}
PARAMETERS: Mapping[str, tuple[type, ...]] = {
    "study": (str,),
    "model": (str, type(None)),
    "block": (str,),
}
MORE: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "judge": {"retry_failed": (bool,)},
    "explore": {"question": (str,)},
}
PASSES = ("all", "measured")  # blocks that are trained together, and those that probes choose
BEGUN = "_hialign_begun"  # in a notebook's namespace, once its parameters were checked


def parameters_of(stage: str) -> dict[str, tuple[type, ...]]:
    """The parameters of a notebook and their types; `explore` and the probes are about a model."""
    known = {**PARAMETERS, **MORE.get(stage, {})}
    whole = stage == "explore" or stage.startswith("probe-")
    return {k: v for k, v in known.items() if not (whole and k == "block")}


def begin(namespace: Mapping[str, Any], stage: str) -> Cell:
    """Check a notebook's parameters (its `globals()`) and give the cell that they name.

    Raises HialignError for a name that is no parameter (`-p bloc late`), for a value of another
    type, and for a study, model or block that does not exist, before anything is loaded. A cell that
    is run again finds what the notebook itself has named since: that is no parameter either way.
    """
    again = BEGUN in namespace
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in SHELL_NAMES and not _is_module(value)
        if not again or name in parameters_of(stage)
    }
    _check(given, stage)
    _mark(namespace)
    _quiet(stage)
    return _cell({"block": "base", **given})


def begin_pass(namespace: Mapping[str, Any], stage: str) -> list[Cell]:
    """As `begin`, for a notebook whose block may be `all`: the cells of the model that are not done
    with the study's present settings (all of them if all are). Blocks that probes choose are not
    among them, as their probes come first: they are `measured`."""
    if (chosen := namespace.get("block")) not in PASSES:
        return [begin(namespace, stage)]
    first = begin({**namespace, "block": "base"}, stage)
    _mark(namespace)
    return cells_of(first, str(chosen))


def cells_of(cell: Cell, chosen: str) -> list[Cell]:
    """The cells of a pass over the model of `cell` that are not trained; all of them if all are."""
    cells = [
        Cell(cell.study, cell.model, block)
        for block in cell.study.blocks
        if bool(blocks.probe_of(block)) == (chosen == "measured")
    ]
    if not cells:
        raise HialignError(f"study {cell.study.name} has no block that a probe chooses")
    return [c for c in cells if state(c) != DONE] or cells


def _mark(namespace: Mapping[str, Any]) -> None:
    """Note in a notebook's namespace that its parameters were checked."""
    if isinstance(namespace, MutableMapping):
        namespace[BEGUN] = True


def run(notebook: str, parameters: Mapping[str, Any], too_many_failed: bool = True) -> Path:
    """Execute a notebook by papermill into its derived place; the path of what was written.

    `notebook` is a stage (`train`, `respond`, `evaluate`, `judge`), `explore` or a path. What would
    be refused is refused before a kernel is started. The output stands under
    `outputs/<study>/notebooks/` only if it ran to its end; else it is kept beside it as
    `….failed.ipynb` and HialignError says why. `too_many_failed`: whether it is an error, too, if
    more judgments failed than the study allows.
    """
    template = _template(notebook)
    known = _defaults(template)
    if unknown := [name for name in parameters if name not in known]:
        raise HialignError(_unknown(unknown[0], list(known), f"notebook {template.stem}"))
    stage, ours = template.stem, parameters_of(template.stem)
    if not ours.keys() <= known.keys():
        _execute(template, parameters, paths.outputs() / "notebooks" / template.name)
        return paths.outputs() / "notebooks" / template.name
    values = known | dict(parameters)
    _check({k: v for k, v in values.items() if k in ours}, stage)
    together = values.get("block") in PASSES and stage == "train"
    whole = "block" not in ours  # about a model
    cell = _cell(values | {"block": "base"} if together or whole else values)
    block = values["block"] if together else "all" if whole else cell.block
    cells = cells_of(cell, block) if together else [cell]
    for one in cells:
        check(one, stage)
    output = paths.notebook_output(cell.study.name, stage, cell.model.name, block)
    doing = f"{stage}: {cell.model.name}, {block}"
    with processes.locked(paths.working(cell.study.name) / f"{output.stem}.lock", doing):
        _execute(template, parameters, output)
    if whole:  # the record of a probe has been shown: its parts are needed no more
        forget(cell, stage.removeprefix("probe-"))
    if stage == "judge" and too_many_failed:
        check_judged(cell)
    return output


def check_judged(cell: Cell) -> None:
    """Refuse a cell of whose judgments more failed than the study allows (`judge.max_failed`)."""
    if (found := state(cell, "judge")).status == "failed":
        raise HialignError(
            f"judge of {cell.model.name}, {cell.block}: {found.why}, more than judge.max_failed "
            f"allows: `hialign judge {cell.study.argument} --retry-failed` asks for them again"
        )


def _defaults(template: Path) -> dict[str, Any]:
    """The parameters of a notebook and their defaults, as papermill reads them."""
    import papermill

    try:
        spec = papermill.inspect_notebook(str(template))
        return {name: ast.literal_eval(known["default"]) for name, known in spec.items()}
    except Exception as error:  # nbformat, papermill and json raise many kinds: it is no notebook
        raise HialignError(
            f"{template} is not a notebook that papermill can run: {_first_line(error)}"
        ) from None


def _execute(template: Path, parameters: Mapping[str, Any], output: Path) -> None:
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    from hialign.kernels import PATIENT, Kernel

    stage = template.stem
    failed = output.with_name(output.stem + ".failed.ipynb")
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(template),
            str(temporary),
            parameters=dict(parameters),
            progress_bar=False,
            log_output=False,
            request_save_on_cell_execute=False,
            kernel_name="python3",
            kernel_manager_class=Kernel,
            **PATIENT,
        )
        tidy(temporary)
        os.replace(temporary, output)
        failed.unlink(missing_ok=True)
    except PapermillExecutionError as error:
        tidy(temporary)
        os.replace(temporary, failed)
        output.unlink(missing_ok=True)
        if error.ename == "HialignError":
            raise HialignError(str(error.evalue)) from None
        raise HialignError(
            f"notebook {stage} failed: {error.ename}: {_first_line(error.evalue)} "
            f"(the whole of it is in {failed})"
        ) from None
    except DeadKernelError:
        raise HialignError(
            f"notebook {stage} was stopped, or its kernel was killed (by the system, where memory "
            "runs out): what is done is kept, and the same command goes on"
        ) from None
    except NoSuchKernel:
        raise HialignError(
            "there is no Jupyter kernel 'python3' in this environment: `pip install ipykernel` "
            "(or `make setup`)"
        ) from None
    except PapermillException as error:
        raise HialignError(f"papermill cannot run {template}: {_first_line(error)}") from None
    except OSError as error:
        raise HialignError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: object) -> str:
    """The first line of an error that says something, cut to what fits on a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def check(cell: Cell, stage: str) -> None:
    """Refuse at once what the stage would refuse later: what it reads is not there, or is out of
    date; its data or its model cannot be found; its sizes do not fit the model."""
    for before in UPSTREAM.get(stage, ()):
        required(cell, before)
    if stage in ("train", "respond", "evaluate") or stage.startswith("probe-"):
        check_source(cell.study.preferences)
        if processes.WATCHED not in os.environ:  # `reproduce` has done it for all of its jobs
            check_sizes(cell)


def tidy(path: Path) -> None:
    """Take what is this machine's alone out of an executed notebook: its paths."""
    if not path.is_file():
        return
    import nbformat

    book = nbformat.read(path, as_version=4)
    for key in ("input_path", "output_path"):
        book.metadata.get("papermill", {}).pop(key, None)
    text = nbformat.writes(book)
    for place, name in ((paths.outputs(), "outputs"), (paths.root(), "."), (Path.home(), "~")):
        text = text.replace(str(place), name)
    path.write_text(text, encoding="utf-8")


def parse_value(text: str) -> Any:
    """A command line's value as papermill reads it (`8` is a number, `true` a truth value).

    Digits with underscores stay text: papermill itself would make 1000 of `1_000`.
    """
    if re.fullmatch(r"[\d_]*_[\d_]*", text):
        return text
    if text in ("None", "null"):
        return None
    from papermill.cli import _resolve_type

    return _resolve_type(text)


def _template(notebook: str) -> Path:
    path = Path(notebook).expanduser()
    if path.suffix != ".ipynb":
        path = paths.notebooks() / f"{notebook}.ipynb"
    if not path.is_file():
        raise HialignError(
            f"there is no notebook {notebook!r}: give one of {', '.join(STAGES)}, explore, "
            f"{', '.join(f'probe-{probe}' for probe in PROBES)}, or a path"
        )
    return path


def _check(values: Mapping[str, Any], stage: str) -> None:
    where, known = f"notebook {stage}", parameters_of(stage)
    for name, value in values.items():
        if name not in known:
            raise HialignError(_unknown(name, list(known), where))
        if not isinstance(value, known[name]):
            wanted = " or ".join(t.__name__.replace("NoneType", "None") for t in known[name])
            raise HialignError(f"{where}: parameter {name} must be {wanted}, it is {value!r}")


def _cell(values: Mapping[str, Any]) -> Cell:
    study = load_study(values["study"])
    return study.cell(values["model"], values["block"])


def _unknown(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{where} has no parameter {name!r}{hint}: it has {', '.join(known)}"


def _is_module(value: Any) -> bool:
    import types

    return isinstance(value, types.ModuleType)


def _quiet(stage: str) -> None:
    """Keep the libraries' own progress bars and notices out of a saved notebook, and have it compute
    with as many threads as any other."""
    import warnings

    import torch

    torch.set_num_threads(processes.threads(stage))

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress not found")  # our bars need no widgets
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def heading(cell: Cell, stage: str, *others: Cell) -> Any:
    """What is about to run, as a line of Markdown a cell under the parameters."""
    from IPython.display import Markdown

    notes = {
        "done": "has run with these settings before and runs again",
        "stale": "is out of date and runs again",
        "damaged": "has files that were changed since and runs again",
        "failed": "failed before and is tried again",
    }
    lines = [
        f"**{c.model.label}**, block **{c.block}** ({c.strategy}) of study **{c.study.name}**: "
        f"stage {stage} {notes.get(cell_status(c, stage), 'has not run yet')}."
        for c in (cell, *others)
    ]
    return Markdown("\n\n".join(lines))


def probe_heading(cell: Cell, probe: str) -> Any:
    """As `heading`, of a probe."""
    from IPython.display import Markdown

    notes = {
        "done": "has a record of these settings, which is used if it came from the same",
        "stale": "has a record that is out of date and runs again",
        "damaged": "has a record that was changed since and runs again",
        "failed": "failed before and is tried again",
    }
    state = probe_status(cell.study, cell.model, probe)
    return Markdown(
        f"**{cell.model.label}** of study **{cell.study.name}**: the {probe} probe "
        f"{notes.get(state, 'has not run yet')}."
    )


def probed(cell: Cell, probe: str) -> None:
    """Show the figures and tables of a probe's record."""
    from IPython.display import display

    from hialign.probed import views

    for view in views(cell, probe):
        display(view)


def loss(*cells: Cell) -> Any:
    """The DPO loss of each optimizer step of some cells as a figure, with the untrained model's log 2."""
    import math

    import matplotlib.pyplot as plt

    from hialign.plots import colour_of, style

    style()
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    plt.close(figure)  # else the notebook shows it twice
    axes.axhline(
        math.log(2), color="grey", linestyle="--", linewidth=1, label="log 2: no preference"
    )
    for cell in cells:
        file = cell.folder / "training.jsonl"
        steps = read_jsonl(file) if file.is_file() and cell.block != "base" else []
        if steps:
            values = [s["step"] for s in steps], [s["loss"] for s in steps]
            marker = "o" if len(steps) < 60 else ""
            colour = colour_of(cell.study, cell.block)
            axes.plot(*values, marker=marker, color=colour, label=cell.strategy)
    axes.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def evaluation(content: Mapping[str, Any]) -> Any:
    """The accuracies and margins of an `evaluation.json`, a row an objective, with intervals."""
    from hialign import tables
    from hialign.statistics import interval_text

    rows = []
    for objective, values in content["objectives"].items():
        row: dict[str, Any] = {"Pairs of": objective, "Pairs": values["n"]}
        for name in ("likelihood_accuracy", "reward_accuracy", "reward_margin"):
            title = name.replace("_", " ").capitalize()
            row[title] = values[name]
            row[f"95% interval of {name.replace('_', ' ')}"] = interval_text(
                values[f"{name}_low"], values[f"{name}_high"]
            )
        rows.append(row)
    return tables.Table(rows)


def scores(cell: Cell) -> Any:
    """The mean score of each dimension over the cell's responses, and how many have one."""
    from hialign import tables

    table = records.judgments(cell.study)
    here = table[(table["model"] == cell.model.label) & (table["block"] == cell.block)]
    means = here.groupby("dimension", sort=False)["score"].agg(["mean", "std", "count"])
    names = {
        "dimension": "Dimension",
        "mean": "Mean score",
        "std": "Std",
        "count": "Responses scored",
    }
    shown = tables.Table(means.reset_index().rename(columns=names))
    shown.attrs["caption"] = tables.judge_line(cell.study)
    return shown


def summary(*manifests: Mapping[str, Any]) -> Any:
    """The plain values of some manifests as a table, a column each; nested ones stay in the files."""
    import pandas as pd

    columns = {}
    for manifest in manifests:
        plain = {
            key: f"{value:.6g}" if isinstance(value, float) else str(value)
            for key, value in manifest.items()
            if isinstance(value, str | int | float)
            or (isinstance(value, list) and len(value) < 200)
        }
        plain.pop("pairs", None)
        columns["value" if len(manifests) == 1 else str(manifest["block"])] = plain
    return pd.DataFrame(columns).rename_axis("record").fillna("")
