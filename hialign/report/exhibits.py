"""The book's figures and tables by name: what draws each, its data, and the runs behind it.

A build writes them all once (`write_all`), as picture, CSV and JSON, and pages show what was
written (`hialign.book.build.show`). Outside a build they are drawn when asked for.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from hialign.report.where import gradients, ila, overview, patching, sweep
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import PROBES, Study

INTERVAL = re.compile(r"([−-]?[\d.,]+) to ([−-]?[\d.,]+)")


@dataclass(frozen=True)
class Exhibit:
    """A figure or table of the book."""

    name: str
    title: str
    draw: Callable[..., Any]  # of the study, or of nothing: a Table, or a matplotlib Figure
    stages: str = ""  # the stages whose records it shows
    data: Callable[..., pd.DataFrame] | None = None  # a figure's numbers, of the same
    probes: str = ""  # the probes whose records it shows

    @property
    def is_figure(self) -> bool:
        return self.name.startswith("figure")

    @property
    def has_data(self) -> bool:
        return not self.is_figure or self.data is not None


def _curves(study: Study) -> pd.DataFrame:
    return frames.training(study)[[*frames.CELL_COLUMNS, "step", "loss"]]


def _probe_exhibits() -> Iterator[Exhibit]:
    """Those of the probes: name, title, what draws it, a figure's numbers."""
    every = "gradients ila patching sweep weights"
    for name, title, draw, data, probes in (
        (
            "figure-where",
            "Every measure by layer",
            overview.overview,
            overview.layers,
            every,
        ),
        ("table-where", "Shares of each third", overview.shares, None, every),
        (
            "table-where-lacking",
            "Measures that are lacking",
            overview.lacking,
            None,
            every,
        ),
        (
            "table-where-correlations",
            "Measures compared",
            overview.correlations,
            None,
            every,
        ),
        ("figure-windows", "Windows", sweep.windows, sweep.curve, "sweep"),
        ("table-windows", "Windows and controls", sweep.controls, None, "sweep"),
        (
            *("figure-gradients", "Gradient norm by layer"),
            *(gradients.curves, gradients.layers, "gradients"),
        ),
        ("table-gradients-modules", "By module", gradients.modules, None, "gradients"),
        ("table-inequality", "Hypothesis 2", gradients.inequality, None, "gradients"),
        (
            *("figure-gradients-along", "Gradients along training"),
            *(gradients.along, gradients.shares, "gradients"),
        ),
        ("figure-matrix", "Strategy by objective", sweep.matrix, sweep.cells, "matrix"),
        ("table-effects", "Own third against others", sweep.effects, None, "matrix"),
        ("figure-ila-gates", "Matrices by gate", ila.gates, ila.layers, "ila"),
        ("table-ila-rankings", "Data sets and losses", ila.rankings, None, "ila"),
        ("table-ila-overlaps", "Overlap of data sets", ila.overlaps, None, "ila"),
        (
            *("figure-ila-interventions", "Tuned by rank"),
            *(ila.interventions, ila.variants, "ila"),
        ),
        ("table-ila-differences", "Interventions compared", ila.differences, None, "ila"),
        ("table-patching", "What was patched", patching.made, None, "patching"),
        (
            *("figure-patching", "Recovery by layer"),
            *(patching.recovery, patching.layers, "patching"),
        ),
        ("table-patching-thirds", "The middle third", patching.thirds, None, "patching"),
        (
            *("figure-patching-windows", "Recovery by windows"),
            *(patching.windows, patching.layers, "patching"),
        ),
        (
            *("figure-patching-lasso", "LASSO with stability selection"),
            *(patching.lasso, patching.kept, "patching"),
        ),
        ("table-patching-regression", "Regression", patching.regression, None, "patching"),
        (
            *("figure-patching-rank", "Recovery against rank"),
            *(patching.rank, patching.ranks, "patching"),
        ),
    ):
        yield Exhibit(name, title, draw, "", data, probes)


# As a reader meets them. "table-3" is the paper's Table 3; names without a number are ours.
EXHIBITS = {
    exhibit.name: exhibit
    for exhibit in (
        Exhibit("table-1", "Table 1: the strategies", tables.table1),
        Exhibit("table-2", "Table 2: Overall score by strategy", score_tables.table2, "judge"),
        Exhibit("table-3", "Table 3: the best combinations", score_tables.table3, "judge"),
        Exhibit("table-4", "Table 4: the partition", tables.table4),
        Exhibit("table-5", "Table 5: hyper-parameters", tables.table5, "train"),
        Exhibit("table-6", "Table 6: the judge's dimensions", tables.table6),
        Exhibit("figure-1", "Figure 1: the scheme", figures.figure1),
        Exhibit("figure-2", "Figure 2: Overall by model", figures.figure2, "judge", scores.by_cell),
        Exhibit("figure-3", "Figure 3: dimensions", heatmap.figure3, "judge", heatmap.squares),
        Exhibit("figure-4", "Figure 4: training loss", figures.figure4, "train", _curves),
        Exhibit("figure-5", "Figure 5: training time", figures.figure5, "train", tables.cells),
        Exhibit("table-comparisons", "Strategies compared", score_tables.comparisons, "judge"),
        Exhibit("table-power", "Prompts needed", score_tables.power, "judge"),
        Exhibit("table-dimensions", "Differences by dimension", score_tables.dimensions, "judge"),
        Exhibit("table-alignment-tax", "The alignment tax", score_tables.alignment_tax, "judge"),
        Exhibit("table-beside-paper", "The paper beside ours", score_tables.beside_paper, "judge"),
        Exhibit("table-accuracy", "Held-out preferences", tables.accuracy, "evaluate"),
        Exhibit(
            *("figure-accuracy", "Held-out preferences", figures.accuracy, "evaluate"),
            data=tables.accuracy,
        ),
        Exhibit("table-objectives", "Margins by objective", tables.objectives, "evaluate"),
        Exhibit(
            *("figure-objectives", "Margins by objective", figures.objectives, "evaluate"),
            data=tables.objectives,
        ),
        Exhibit("table-divergence", "Distance from Base", tables.divergence, "respond evaluate"),
        Exhibit(
            *("figure-divergence", "Distance from Base", figures.divergence, "respond evaluate"),
            data=tables.divergence,
        ),
        Exhibit("table-cells", "The cells", tables.cells, "train"),
        Exhibit("table-claims", "Verdicts by paper", ledger.overview, "train evaluate judge"),
        Exhibit("table-headlines", "The main claims", ledger.headlines, "train evaluate judge"),
        Exhibit("table-stages", "The stages", run_tables.stages, "train respond evaluate judge"),
        Exhibit("table-totals", "Time and cost", run_tables.totals, "train respond evaluate judge"),
        Exhibit("table-failures", "Failed stages", run_tables.failures),
        Exhibit("table-probes", "The probes", run_tables.probes, probes=" ".join(PROBES)),
        Exhibit("table-judge-made", "How the judge was measured", judge_tables.made),
        Exhibit("table-judge-agreement", "The judge and people", judge_tables.judge_agreement),
        Exhibit("table-judge-preferences", "The judge and preferences", judge_tables.preferences),
        Exhibit("table-judge-reliability", "The judge and itself", judge_tables.reliability),
        Exhibit("table-judge-length", "The judge and length", judge_tables.length),
        Exhibit(
            *("figure-judge-injection", "Attacks on the judge", judge_tables.injection_figure),
            data=judge_tables.injection,
        ),
        Exhibit("table-judge-injection", "Attacks on the judge", judge_tables.injection),
        Exhibit("table-judge-usage", "What judging took", judge_tables.usage, "judge"),
        Exhibit("table-judge-failures", "Missing judgments", judge_tables.failures, "judge"),
        Exhibit("table-audit-statements", "Text and tables", statements.disagreements),
        Exhibit(
            *("figure-audit-models", "The Llama models beside the others", audit_tables.by_models),
            data=audit_tables.points,
        ),
        Exhibit("table-audit-llama", "What is left for the Llama models", audit_tables.llama),
        Exhibit("table-audit-gains", "Gains over Base by model", audit_tables.gains),
        Exhibit("table-audit-comparisons", "The text's comparisons", statements.comparisons),
        Exhibit("table-audit-pairing", "The same, if paired", statements.pairing),
        Exhibit("table-audit-sizes", "How large the differences are", statements.sizes),
        Exhibit("table-audit-versions", "v1 beside v2", statements.versions),
        Exhibit("table-audit-checks", "Checks that assume nothing", audit_tables.checks),
        *_probe_exhibits(),
    )
}


def draw(study: Study, name: str) -> Any:
    """The exhibit called `name`: a Table or a matplotlib Figure."""
    if name not in EXHIBITS:
        raise HialignError(f"there is no exhibit {name!r}: they are {', '.join(EXHIBITS)}")
    return _of(study, EXHIBITS[name].draw)


def _of(study: Study, function: Callable[..., Any]) -> Any:
    """What `function` makes of the study, or of nothing if it takes nothing."""
    return function(study) if inspect.signature(function).parameters else function()


# --- writing -------------------------------------------------------------------------------------


def write(study: Study, name: str, folder: Path) -> list[Path]:
    """`<name>.csv` and `.json`, and the picture: `.svg` and `.png` of a figure, a table's `.html`."""
    drawn, exhibit, made = draw(study, name), EXHIBITS[name], []
    if exhibit.is_figure:
        for kind in ("svg", "png"):
            path = folder / f"{name}.{kind}"
            save(drawn, path)
            made.append(path)
        frame = _of(study, exhibit.data) if exhibit.data else None
    else:
        frame = drawn
        path = folder / f"{name}.html"
        with whole_file(path) as temporary:
            temporary.write_text(drawn._repr_html_(), encoding="utf-8")
        made.append(path)
    if frame is not None:
        values = numbers(frame)
        with whole_file(folder / f"{name}.csv") as temporary:
            values.to_csv(temporary, index=False)
        content = about(study, name) | {"rows": json.loads(values.to_json(orient="records"))}
        write_json(folder / f"{name}.json", content)
        made += [folder / f"{name}.csv", folder / f"{name}.json"]
    return made


def save(figure: Any, path: Path) -> None:
    """A matplotlib figure as SVG or PNG, the same bytes for the same figure."""
    import matplotlib

    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "hialign"}), whole_file(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)


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
    """The cells whose records of the exhibit's stages are there, and its probes' records: model, block
    (empty for a probe), stage, file."""
    for stage in EXHIBITS[name].stages.split():
        for cell in study.cells():
            file = stage_manifest(cell, stage)
            if file.is_file():
                place = str(file.relative_to(paths.study_dir(study.name)))
                yield {"model": cell.model.name, "block": cell.block, "stage": stage, "file": place}
    for probe in EXHIBITS[name].probes.split():
        for model in study.models:
            file = paths.probe_record(study.name, model.name, probe)
            if file.is_file():
                place = str(file.relative_to(paths.study_dir(study.name)))
                yield {"model": model.name, "block": "", "stage": f"probe-{probe}", "file": place}


def source_file(function: Callable[..., Any]) -> str:
    """The file of a function's module, from the package's folder on: `hialign/report/score_tables.py`."""
    place = Path(inspect.getsourcefile(function) or "")
    return place.relative_to(paths.package().parent).as_posix()
