"""The book's figures and tables by name: what draws each, its data, and the runs behind it.

A build writes them all once (`write_all`), as picture, CSV and JSON, and pages show what was written
(`hialign.book.render`). `hialign show` writes one of them.
"""

import gc
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hialign.records import frames, provenance
from hialign.records.files import whole_file, write_json
from hialign.records.stages import stage_manifest
from hialign.report import figures, heatmap, judge_tables, run_tables, score_tables, scores, tables
from hialign.report.audit import statements
from hialign.report.audit import tables as audit_tables
from hialign.report.claims import ledger
from hialign.report.plots import EMPTY
from hialign.report.replication import figures as registered_figures
from hialign.report.replication import tables as registered
from hialign.report.replication.registered import answering
from hialign.report.where import (
    frontier,
    gradients,
    ila,
    overview,
    patching,
    signal,
    swaps,
    sweep,
)
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import PROBES, STAGES, Study

INTERVAL = re.compile(r"([−-]?[\d.,]+) to ([−-]?[\d.,]+)")


@dataclass(frozen=True)
class Exhibit:
    """A figure or table of the book.

    `records` names the stages and probes whose records it shows. `draw` makes a Table or a
    matplotlib Figure, `data` the numbers in a figure. Both take the study, or nothing. One that is
    `registered` shows the study whose answer the book leads with, which may be another one.
    """

    name: str
    title: str
    records: str
    draw: Callable[..., Any]
    data: Callable[..., pd.DataFrame] | None = None
    registered: bool = False

    @property
    def is_figure(self) -> bool:
        return self.name.startswith("figure")

    @property
    def has_data(self) -> bool:
        return not self.is_figure or self.data is not None


def _curves(study: Study) -> pd.DataFrame:
    return frames.training(study)[[*frames.CELL_COLUMNS, "step", "loss"]]


EVERY_STAGE, EVERY_PROBE = " ".join(STAGES), " ".join(PROBES)
MEASURES = "gradients ila patching sweep weights"  # of where alignment happens, layer by layer
VERDICTS = "train evaluate judge gradients ila patching"

# Of the study whose answer the book leads with
_REGISTERED = [
    Exhibit(
        "figure-answer",
        "The registered answer",
        "",
        registered_figures.headline,
        registered_figures.headline_rows,
    ),
    Exhibit(
        "figure-registered-contrasts",
        "Registered contrasts",
        "",
        registered_figures.contrasts,
        registered_figures.contrast_rows,
    ),
    Exhibit(
        "figure-registered-thirds",
        "Gain by objective and third",
        "",
        registered_figures.by_third,
        registered.gains_by_third,
    ),
    Exhibit("table-registered-gates", "Was anything learned?", "", registered.registered_gates),
    Exhibit("table-registered-tests", "The registered tests", "", registered.tests),
    Exhibit("table-registered-contrasts", "Registered contrasts", "", registered.contrasts),
    Exhibit("table-registered-rules", "Which third leads?", "", registered.rules),
    Exhibit("table-registered-outcomes", "What each block gained", "", registered.outcomes),
]

# As a reader meets them. "table-3" is the paper's Table 3; names without a number are ours.
_ALL = [
    Exhibit("table-1", "Table 1: the strategies", "", tables.table1),
    Exhibit("table-2", "Table 2: Overall score by strategy", "judge", score_tables.table2),
    Exhibit("table-3", "Table 3: the best combinations", "judge", score_tables.table3),
    Exhibit("table-4", "Table 4: the partition", "", tables.table4),
    Exhibit("table-5", "Table 5: hyper-parameters", "train", tables.table5),
    Exhibit("table-6", "Table 6: the judge's dimensions", "", tables.table6),
    Exhibit("figure-1", "Figure 1: the scheme", "", figures.figure1),
    Exhibit("figure-2", "Figure 2: Overall by model", "judge", figures.figure2, scores.by_cell),
    Exhibit("figure-3", "Figure 3: dimensions", "judge", heatmap.figure3, heatmap.squares),
    Exhibit("figure-4", "Figure 4: training loss", "train", figures.figure4, _curves),
    Exhibit("figure-5", "Figure 5: training time", "train", figures.figure5, tables.cells),
    Exhibit("table-comparisons", "Strategies compared", "judge", score_tables.comparisons),
    Exhibit("table-power", "Prompts needed", "judge", score_tables.power),
    Exhibit("table-dimensions", "Differences by dimension", "judge", score_tables.dimensions),
    Exhibit("table-alignment-tax", "The alignment tax", "judge", score_tables.alignment_tax),
    Exhibit("table-beside-paper", "The paper beside ours", "judge", score_tables.beside_paper),
    Exhibit("table-accuracy", "Held-out preferences", "evaluate", tables.accuracy),
    Exhibit(
        "figure-accuracy", "Held-out preferences", "evaluate", figures.accuracy, tables.accuracy
    ),
    Exhibit("table-learned", "Was anything learned?", "evaluate", registered.learned),
    Exhibit("table-objectives", "Margins by objective", "evaluate", tables.objectives),
    Exhibit(
        "figure-objectives",
        "Margins by objective",
        "evaluate",
        figures.objectives,
        tables.objectives,
    ),
    Exhibit("table-divergence", "Distance from Base", "respond evaluate", tables.divergence),
    Exhibit(
        "figure-divergence",
        "Distance from Base",
        "respond evaluate",
        figures.divergence,
        tables.divergence,
    ),
    Exhibit("table-cells", "The cells", "train", tables.cells),
    Exhibit("table-claims", "Verdicts by paper", VERDICTS, ledger.overview),
    Exhibit("table-headlines", "The main claims", VERDICTS, ledger.headlines),
    Exhibit("table-verdicts", "Every verdict", VERDICTS, ledger.verdicts),
    Exhibit("table-stages", "The stages", EVERY_STAGE, run_tables.stages),
    Exhibit("table-totals", "Time and cost", EVERY_STAGE, run_tables.totals),
    Exhibit("table-failures", "Failed stages", "", run_tables.failures),
    Exhibit("table-probes", "The probes", EVERY_PROBE, run_tables.probes),
    Exhibit("table-judge-made", "How the judge was measured", "", judge_tables.made),
    Exhibit("table-judge-agreement", "The judge and people", "", judge_tables.judge_agreement),
    Exhibit("table-judge-preferences", "The judge and preferences", "", judge_tables.preferences),
    Exhibit("table-judge-reliability", "The judge and itself", "", judge_tables.reliability),
    Exhibit("table-judge-length", "The judge and length", "", judge_tables.length),
    Exhibit(
        "figure-judge-injection",
        "Attacks on the judge",
        "",
        judge_tables.injection_figure,
        judge_tables.injection,
    ),
    Exhibit("table-judge-injection", "Attacks on the judge", "", judge_tables.injection),
    Exhibit("table-judge-usage", "What judging took", "judge", judge_tables.usage),
    Exhibit("table-judge-failures", "Missing judgments", "judge", judge_tables.failures),
    Exhibit("table-audit-statements", "Text and tables", "", statements.disagreements),
    Exhibit(
        "figure-audit-models",
        "The Llama models beside the others",
        "",
        audit_tables.by_models,
        audit_tables.points,
    ),
    Exhibit("table-audit-llama", "What is left for the Llama models", "", audit_tables.llama),
    Exhibit("table-audit-gains", "Gains over Base by model", "", audit_tables.gains),
    Exhibit("table-audit-comparisons", "The text's comparisons", "", statements.comparisons),
    Exhibit("table-audit-pairing", "The same, if paired", "", statements.pairing),
    Exhibit("table-audit-sizes", "How large the differences are", "", statements.sizes),
    Exhibit("table-audit-versions", "v1 beside v2", "", statements.versions),
    Exhibit("table-audit-checks", "Checks that assume nothing", "", audit_tables.checks),
    Exhibit("figure-where", "Every measure by layer", MEASURES, overview.overview, overview.layers),
    Exhibit("table-where", "Shares of each third", MEASURES, overview.shares),
    Exhibit("table-where-lacking", "Missing measures", MEASURES, overview.lacking),
    Exhibit("table-where-correlations", "Measures compared", MEASURES, overview.correlations),
    Exhibit("figure-windows", "Windows", "sweep", sweep.windows, sweep.curve),
    Exhibit("table-windows", "Windows and controls", "sweep", sweep.controls),
    Exhibit("figure-signal", "Signal by layer", "gradients", signal.signal, signal.by_layer),
    Exhibit("table-signal", "Signal by third", "gradients", signal.thirds),
    Exhibit("table-signal-accounts", "Where labels point", "gradients", signal.resolution),
    Exhibit("table-signal-modules", "Signal by module", "gradients", signal.by_module),
    Exhibit("table-signal-objectives", "Objectives compared", "gradients", signal.interaction),
    Exhibit(
        "figure-gradients",
        "Gradient norm by layer",
        "gradients",
        gradients.curves,
        gradients.layers,
    ),
    Exhibit("table-gradients-modules", "By module", "gradients", gradients.modules),
    Exhibit("table-inequality", "Hypothesis 2", "gradients", gradients.inequality),
    Exhibit(
        "figure-gradients-along",
        "Gradients along training",
        "gradients",
        gradients.along,
        gradients.shares,
    ),
    Exhibit(
        "figure-frontier",
        "Accuracy against KL",
        "frontier",
        frontier.frontier,
        frontier.points,
    ),
    Exhibit("figure-matrix", "Strategy by objective", "matrix", sweep.matrix, sweep.cells),
    Exhibit("table-effects", "Own third against others", "matrix", sweep.effects),
    Exhibit("figure-ila-gates", "Matrices by gate", "ila", ila.gates, ila.layers),
    Exhibit("table-ila-rankings", "Data sets and losses", "ila", ila.rankings),
    Exhibit("table-ila-overlaps", "Overlap of data sets", "ila", ila.overlaps),
    Exhibit("figure-ila-interventions", "Tuned by rank", "ila", ila.interventions, ila.variants),
    Exhibit("table-ila-differences", "Interventions compared", "ila", ila.differences),
    Exhibit("table-patching", "What was patched", "patching", patching.made),
    Exhibit("figure-swaps", "Layers swapped", "patching", swaps.profile, swaps.layers),
    Exhibit("table-swaps", "Thirds swapped", "patching", swaps.thirds),
    Exhibit(
        "figure-patching-changes",
        "Signed change by layer",
        "patching",
        patching.changes,
        patching.changed,
    ),
    Exhibit("figure-patching", "Recovery by layer", "patching", patching.recovery, patching.layers),
    Exhibit(
        "figure-patching-windows",
        "Recovery by windows",
        "patching",
        patching.windows,
        patching.layers,
    ),
    Exhibit(
        "figure-patching-rank", "Recovery against rank", "patching", patching.rank, patching.ranks
    ),
]
_ALL += [replace(exhibit, registered=True) for exhibit in _REGISTERED]
EXHIBITS = {exhibit.name: exhibit for exhibit in _ALL}


def draw(study: Study, name: str) -> Any:
    """The exhibit called `name`: a Table or a matplotlib Figure. HialignError if it cannot be drawn."""
    if name not in EXHIBITS:
        raise HialignError(f"there is no exhibit {name!r}: they are {', '.join(EXHIBITS)}")
    try:
        return _of(study, EXHIBITS[name].draw)
    except HialignError:
        raise
    except Exception as error:
        raise HialignError(
            f"the exhibit {name} of study {study.name} could not be drawn: "
            f"{type(error).__name__}: {error}"
        ) from error


def _of(study: Study, function: Callable[..., Any]) -> Any:
    """What `function` makes of the study, or of nothing if it takes nothing."""
    return function(study) if inspect.signature(function).parameters else function()


# --- writing -------------------------------------------------------------------------------------


def write_all(study: Study, folder: Path) -> None:
    """Every exhibit into `folder`. HialignError names the first one that cannot be drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # statsmodels collects garbage at each correction, and need not look at all modules
    try:
        for name in EXHIBITS:
            write(study, name, folder)
    finally:
        gc.unfreeze()


def write(study: Study, name: str, folder: Path) -> list[Path]:
    """`<name>.csv` and `.json`, and the picture: `.svg` and `.png` of a figure, a table's `.html`."""
    shown, exhibit = draw(study, name), EXHIBITS[name]
    kinds = ("png", "svg") if exhibit.is_figure else ("html",)
    paths_written = [folder / f"{name}.{kind}" for kind in kinds]
    for path in paths_written:
        if exhibit.is_figure:
            save(shown, path)
        else:
            with whole_file(path) as temporary:
                temporary.write_text(shown._repr_html_(), encoding="utf-8")
    frame = shown
    if exhibit.is_figure:
        frame = _of(study, exhibit.data) if exhibit.data else None
    if frame is not None:
        values = numbers(frame)
        with whole_file(folder / f"{name}.csv") as temporary:
            values.to_csv(temporary, index=False)
        content = about(study, name) | {"rows": json.loads(values.to_json(orient="records"))}
        content["empty"] = _empty(shown)
        write_json(folder / f"{name}.json", content)
        paths_written += [folder / f"{name}.csv", folder / f"{name}.json"]
    return paths_written


def _empty(shown: Any) -> str:
    """What a table or figure that has nothing to show says instead. Otherwise empty."""
    if isinstance(shown, pd.DataFrame):
        return str(shown.attrs.get("empty", "" if len(shown) else "none yet"))
    return "not measured yet" if shown.get_label() == EMPTY else ""


def save(figure: Any, path: Path) -> None:
    """A matplotlib figure as SVG or PNG, the same bytes for the same figure."""
    import matplotlib

    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "hialign"}), whole_file(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)
    figure.set_layout_engine("none")  # its layout stays as it is, whatever kind is saved next


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` for a program: an interval in words becomes two columns of numbers."""
    found = pd.DataFrame(frame).copy()
    for name in list(found.columns):
        texts = found[name].dropna()
        ends = [INTERVAL.fullmatch(t) if isinstance(t, str) else None for t in texts]
        if ends and all(ends):
            place = list(found.columns).index(name)
            for i, end in enumerate(("low", "high")):
                values = [float(m[i + 1].replace("−", "-").replace(",", "")) for m in ends if m]
                column = pd.Series(values, index=texts.index, dtype=float)
                found.insert(place + 1 + i, f"{name}, {end}", column.reindex(found.index))
            found = found.drop(columns=name)
    return found


def about(study: Study, name: str) -> dict[str, Any]:
    """Where an exhibit comes from: function, source line, commit, runs, and how to make it again."""
    exhibit = EXHIBITS[name]
    lines, first = inspect.getsourcelines(exhibit.draw)
    if exhibit.registered:
        with answering(study) as shown:
            study = shown or study
    return {
        "name": name,
        "title": exhibit.title,
        "study": study.name,
        "function": f"{exhibit.draw.__module__}.{exhibit.draw.__name__}",
        "file": source_file(exhibit.draw),
        "line": first,
        "last_line": first + len(lines) - 1,
        "commit": provenance.commit(),
        "version": provenance.hialign_version(),
        "runs": list(runs_behind(study, name)),
        "command": f"hialign show {study.name} {name}",
    }


def runs_behind(study: Study, name: str) -> Iterator[dict[str, str]]:
    """The records that an exhibit shows, where they are there: model, block (empty for a probe),
    stage, file."""
    folder = paths.study_dir(study.name)
    for record in EXHIBITS[name].records.split():
        if record in PROBES:
            stage = f"probe-{record}"
            runs = [
                (model.name, "", paths.probe_record(study.name, model.name, record, study.seed))
                for model in study.models
            ]
        else:
            stage = record
            runs = [(c.model.name, c.block, stage_manifest(c, record)) for c in study.cells()]
        for model, block, file in runs:
            if file.is_file():
                place = str(file.relative_to(folder))
                yield {"model": model, "block": block, "stage": stage, "file": place}


def source_file(function: Callable[..., Any]) -> str:
    """The file of a function's module, from the package's folder on: `hialign/report/score_tables.py`."""
    place = Path(inspect.getsourcefile(function) or "")
    return place.relative_to(paths.package().parent).as_posix()
