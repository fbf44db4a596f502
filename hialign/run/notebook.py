"""Running the notebooks: parameters that are checked, outputs that are whole, errors that are short.

papermill warns of an unknown parameter and goes on with the defaults. Here it is an error, in the
notebook itself (`begin`) and before one is started (`run`).
"""

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hialign.preferences.sources import check_source
from hialign.records import processes
from hialign.records.probe_files import forget
from hialign.records.stages import UPSTREAM
from hialign.records.status import required, state
from hialign.run import console
from hialign.run.checks import check_sizes
from hialign.run.parameters import PASSES, cell_named, cells_of, check_types, parameters_of, unknown
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import PROBES, STAGES, Cell


def run(notebook: str, parameters: Mapping[str, Any], too_many_failed: bool = True) -> Path:
    """Execute a notebook by papermill into its derived place. Returns the path of what was written.

    `notebook` is a stage (`train`, `respond`, `evaluate`, `judge`), `explore` or a path. What would
    be refused is refused before a kernel is started. The output stands under
    `outputs/<study>/notebooks/` only if it ran to its end. Otherwise it is kept beside it as
    `….failed.ipynb` and HialignError says why. `too_many_failed` says whether it is an error, too,
    if more judgments failed than the study allows.
    """
    template = _template(notebook)
    known = _defaults(template)
    if strange := [name for name in parameters if name not in known]:
        raise HialignError(unknown(strange[0], list(known), f"notebook {template.stem}"))
    stage, ours = template.stem, parameters_of(template.stem)
    if not ours.keys() <= known.keys():
        _execute(template, parameters, paths.outputs() / "notebooks" / template.name)
        return paths.outputs() / "notebooks" / template.name
    values = known | dict(parameters)
    check_types({k: v for k, v in values.items() if k in ours}, stage)
    together = values.get("block") in PASSES and stage in ("train", "evaluate")
    whole = "block" not in ours  # about a model
    cell = cell_named(values | {"block": "base"} if together or whole else values)
    block = values["block"] if together else "all" if whole else cell.block
    cells = cells_of(cell, block, stage) if together else [cell]
    for one in cells:
        check(one, stage)
    output = paths.notebook_output(cell.study.name, stage, cell.model.name, block, cell.seed)
    doing = what_of(stage, cell.model.name, "" if whole else block, cell.seed)
    place = paths.working(cell.study.name)
    with (
        processes.interruptible(),
        processes.locked(place / f"{output.stem}.lock", doing),
        console.shown(doing, place / f"{output.stem}.progress"),
    ):
        _execute(template, parameters, output)
    if whole:  # the record of a probe has been shown: its parts are needed no more
        forget(cell, stage.removeprefix("probe-"))
    if stage == "judge" and too_many_failed:
        check_judged(cell)
    return output


def what_of(stage: str, model: str, block: str = "", seed: str = "") -> str:
    """A stage of a cell (or about a model) as people read it: `train: random-llama, all blocks`."""
    blocks = {"all": ", all blocks", "measured": ", blocks that probes chose", "": ""}
    return f"{stage}: {model}{blocks.get(block, f', {block}')}{f', {seed}' if seed else ''}"


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

    from hialign.run.kernels import PATIENT, Kernel

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
            raise HialignError(f"{error.evalue} (the notebook: {failed})") from None
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
    """Refuse at once what the stage would refuse later.

    That is a missing or outdated record that it reads, data or a model that cannot be found, and
    sizes that do not fit the model.
    """
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
