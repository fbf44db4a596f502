"""The paper's tables, and those of our judge-free evaluation, as DataFrames.

Every table has a row for each cell (or strategy) of the study, run or not: what is missing is NaN,
shown as "–". Intervals are 95% and stand in a column after the figure that they belong to.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from hialign import paper, records
from hialign.blocks import split_layers, strategy_of
from hialign.contrasts import OBJECTIVES
from hialign.statistics import pooled_interval
from hialign.study import Study

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

DASH = "–"
OVERALL = "Overall"  # the dimension that Tables 2 and 3 are about
DIGITS = {  # decimals, where they are not three
    "KL from Base (nats/token)": 4,
    "Response length (tokens)": 1,
    "Training (min)": 2,
    "Peak memory (GiB)": 2,
}


class Table(pd.DataFrame):
    """A DataFrame that notebooks and the book display as `show` has it."""

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return Table

    def _repr_html_(self) -> str:
        # A table wider than a phone scrolls by itself instead of the whole page.
        return f'<div style="overflow-x: auto">{show(self).to_html()}</div>'


def show(frame: pd.DataFrame) -> "Styler":
    """`frame` for a reader: no index, missing values as "–", numbers aligned, all text escaped.

    Model names, devices and the like come from outside and may hold anything, HTML included.
    """
    numbers = [c for c in frame.columns if is_numeric_dtype(frame[c])]
    texts = [i for i, c in enumerate(frame.columns) if c not in numbers]
    formats = {c: f"{{:,.{DIGITS.get(c, 3)}f}}" for c in numbers}
    formats |= {c: "{:,}" for c in numbers if is_integer_dtype(frame[c])}
    formats |= {c: "{:d}" for c in numbers if c == "Seed"}  # a name, not an amount
    # The theme styles `table.dataframe` for light and dark; other tables get a white box in dark.
    style = pd.DataFrame(frame).style.set_table_attributes('class="dataframe"')
    left = [{"selector": f".col{i}", "props": "text-align: left"} for i in texts]
    # The same table has the same id in each build (pandas would draw one).
    key = hashlib.sha256(repr(list(frame.columns)).encode()).hexdigest()[:8]
    return (
        style.format(formats, na_rep=DASH, escape="html")  # type: ignore[arg-type]
        .format_index(escape="html", axis="columns")
        .hide(axis="index")
        .set_table_styles(left)  # type: ignore[arg-type]
        .set_uuid(key)
    )


# --- the paper's tables --------------------------------------------------------------------------


def table1() -> Table:
    """Table 1: the five conditions and the layers that get adapters."""
    return Table(
        {
            "Strategy": row["strategy"],
            "Block": row["block"],
            "Kind": DASH if row["kind"] == "none" else row["kind"],
            "Layers with adapters": row["tuned"],
        }
        for row in paper.rows("table_1")
    )


def table2(study: Study) -> Table:
    """Table 2: the judge's Overall score by strategy, over all models of the study.

    Means are over all scored responses, as in the paper; their intervals draw prompts, since the
    models answer the same ones. The difference from Base is within model and prompt. Failed
    judgments are counted and enter no mean.
    """
    scores = overall(study)
    reference = {row["block"]: row for row in paper.rows("table_2")}
    rows = []
    for block in study.blocks:
        asked = scores[scores.block == block]
        scored = asked.dropna(subset="score")
        ours = scored.score
        difference = against_base(scores, block)
        theirs = reference.get(block, {})
        rows.append(
            {
                "Strategy": strategy_of(block),
                "Mean Overall": ours.mean(),
                "95% interval": _range(*_pooled(study, scored)),
                "Minus Base": difference.score.mean(),
                "Minus Base, 95% interval": _range(*_pooled(study, difference)),
                "Std": ours.std(),
                "Median": ours.median(),
                "Models": scored.model.nunique(),
                "Scored": len(scored),
                "Failed": len(asked) - len(scored),
                "Paper: mean": theirs.get("mean"),
                "Paper: std": theirs.get("std"),
            }
        )
    return _table(rows)


def table3(study: Study, top: int = 10) -> Table:
    """Table 3: the `top` model-strategy combinations by mean Overall score.

    The paper's rank and mean stand beside where it has a combination of the same model name.
    """
    reference = {(r["model"].casefold(), r["block"]): r for r in paper.rows("table_3")}
    scores = overall(study)
    rows: list[dict[str, Any]] = []
    for cell in study.cells():
        asked = scores[(scores.model == cell.model.label) & (scores.block == cell.block)]
        scored = asked.dropna(subset="score")
        theirs = reference.get((cell.model.label.casefold(), cell.block), {})
        if len(scored):
            rows.append(
                {
                    "Rank": 0,
                    "Model": cell.model.label,
                    "Strategy": cell.strategy,
                    "Mean Overall": scored.score.mean(),
                    "95% interval": _range(*_pooled(study, scored)),
                    "Scored": len(scored),
                    "Failed": len(asked) - len(scored),
                    "Paper: rank": theirs.get("rank"),
                    "Paper: mean": theirs.get("mean"),
                }
            )
    rows = sorted(rows, key=lambda row: -float(row["Mean Overall"]))[:top]
    for rank, row in enumerate(rows, 1):
        row["Rank"] = rank
    columns = ["Rank", "Model", "Strategy", "Mean Overall", "95% interval", "Scored", "Failed"]
    frame = _table(rows, [*columns, "Paper: rank", "Paper: mean"])
    return Table(frame.astype({"Paper: rank": "Int64"}))


def table4(study: Study) -> Table:
    """Table 4: first and last layer of each block (counted from 0) and how many they are.

    Depths are the paper's, or what the study's runs wrote down; never looked up on a network.
    """
    known = paper.depths()
    measured = depths(study)
    ours = {model.label: measured.get(model.label) for model in study.models}
    rows = []
    for name in [*known, *(label for label in ours if label not in known)]:
        depth = known.get(name) or ours[name]
        row: dict[str, Any] = {
            "Model": name,
            "In": " and ".join(
                place for place, has in (("paper", known), ("this study", ours)) if name in has
            ),
            "Layers": depth,
        }
        for block in ("local", "mid", "global"):
            layers = split_layers(depth)[block] if depth and depth >= 3 else None
            row[f"{block.title()} block"] = f"{span(layers)} ({len(layers)})" if layers else None
        rows.append(row)
    return Table(_table(rows).astype({"Layers": "Int64"}))


def table5(study: Study) -> Table:
    """Table 5: each hyper-parameter, the paper's value and this study's."""
    settings = study.training.model_dump()
    used = records.manifests(study).reindex(columns=["precision"]).precision.dropna()
    asked = [model.precision for model in study.models]
    settings["precision"] = ", ".join(dict.fromkeys(used if len(used) else asked))
    rows = []
    for row in paper.rows("table_5"):
        theirs, ours = row["value"], settings.get(row["key"])
        same = theirs == ours
        if row["key"] == "optimizer":  # AdamW; transformers has several that compute it
            same = str(ours).startswith(theirs.lower())
        rows.append(
            {
                "Hyper-parameter": row["name"],
                "Paper": _setting(theirs),
                "This study": _setting(ours),
                "Same": "yes" if same else "no",
            }
        )
    return _table(rows)


def table6() -> Table:
    """Table 6: the judge's dimensions by group, with our definitions."""
    from hialign.judge.rubric import load_rubric

    rubric = load_rubric()
    return Table(
        {"Group": group, "Dimension": name, "Definition": rubric.dimensions[name]}
        for group, names in rubric.groups.items()
        for name in names
    )


# --- ours ----------------------------------------------------------------------------------------


def accuracy(study: Study) -> Table:
    """Likelihood accuracy, reward accuracy and reward margin on the study's held-out pairs.

    Accuracies are shares of pairs. Base has no reward accuracy: its implicit reward is always 0.
    """
    found = records.evaluations(study)
    return _cells_table(study, found[found.objective == "all"], _PREFERENCES)


def objectives(study: Study) -> Table:
    """The same on the built-in contrasts, whose two responses differ in one objective."""
    found = records.evaluations(study)
    parts = []
    for name in objective_names(found):
        part = _cells_table(study, found[found.objective == name], _PREFERENCES)
        part.insert(2, "Objective", name)
        parts.append(part)
    if not parts:
        return Table(columns=["Model", "Strategy", "Objective", *_PREFERENCES, "Pairs"])
    return Table(pd.concat(parts).sort_index(kind="stable").reset_index(drop=True))


def divergence(study: Study) -> Table:
    """KL divergence from Base along the cell's own responses, and how long these are."""
    columns = {"KL from Base (nats/token)": "kl", "Response length (tokens)": "response_tokens"}
    return _cells_table(study, records.divergences(study), columns, "Responses")


def cells(study: Study) -> Table:
    """What each cell is, whether it has run, and what that took."""
    extra = [*records.CELL_COLUMNS, *records.MANIFEST_COLUMNS, "final_loss"]
    rows = []
    for row in records.manifests(study).reindex(columns=extra).to_dict("records"):
        trained = row["status"] == "done" and row["block"] != "base"
        row |= {} if trained else dict.fromkeys(("pairs", "seconds", "tokens", "final_loss"))
        stale = row["status"] == "done" and row["stale"] is True
        layers = row["layers"] if isinstance(row["layers"], list) else None
        rows.append(
            {
                "Model": row["model"],
                "Strategy": row["strategy"],
                "Status": "done, with older settings" if stale else row["status"],
                "Layers": None if layers is None else span(layers) or "none",
                "Pairs": row["pairs"],
                "Steps": row["steps"],
                "Final loss": row["final_loss"],
                "Training (min)": _over(row["seconds"], 60),
                "Tokens": row["tokens"],
                "Peak memory (GiB)": _over(row["peak_memory_bytes"], 2**30),
                "Device": row["device"],
                "Seed": row["seed"],
            }
        )
    whole = dict.fromkeys(("Pairs", "Steps", "Tokens", "Seed"), "Int64")
    return Table(_table(rows).astype(whole))


# --- shared with the figures -----------------------------------------------------------------------


def overall(study: Study) -> pd.DataFrame:
    """The judge's Overall scores: model, block, strategy, prompt_id, score (NaN where it failed)."""
    found = records.judgments(study)
    return found[found.dimension == OVERALL]


def against_base(scores: pd.DataFrame, block: str) -> pd.DataFrame:
    """`score` of `block` minus Base's for the same model and prompt, where both were scored.

    Nothing for Base itself.
    """
    key = ["model", "prompt_id"]
    both = scores[scores.block == block].merge(
        scores.loc[scores.block == "base", [*key, "score"]], on=key, suffixes=("", "_base")
    )
    both["score"] -= both.score_base
    return both.dropna(subset="score")[: 0 if block == "base" else None]


def depths(study: Study) -> dict[str, int]:
    """Layers of each of the study's models (by label), where a run wrote them down."""
    found = records.manifests(study).reindex(columns=["model", "depth"]).dropna()
    return {model: int(depth) for model, depth in zip(found.model, found.depth, strict=True)}


def objective_names(evaluations: pd.DataFrame) -> list[str]:
    """The objectives that were evaluated apart, ours first, without the study's own pairs."""
    present = [o for o in dict.fromkeys(evaluations.objective) if o != "all"]
    return [o for o in OBJECTIVES if o in present] + [o for o in present if o not in OBJECTIVES]


def span(layers: Iterable[int]) -> str:
    """Layers as text: `10–18`, or `0–3, 8` where they are not in one piece."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


# --- helpers -----------------------------------------------------------------------------------------

_PREFERENCES = {  # column: in evaluation.json
    "Likelihood accuracy": "likelihood_accuracy",
    "Reward accuracy": "reward_accuracy",
    "Reward margin": "reward_margin",
}


def _cells_table(
    study: Study, found: pd.DataFrame, columns: Mapping[str, str], count: str = "Pairs"
) -> Table:
    """A row a cell with each of `columns` and its interval, and `n` as `count` at the end."""
    measured = {(row.model, row.block): row for row in found.itertuples()}
    rows = []
    for cell in study.cells():
        row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
        values = measured.get((cell.model.label, cell.block))
        for title, name in columns.items():
            value, low, high = (getattr(values, name + end, None) for end in ("", "_low", "_high"))
            given = cell.block == "base" and value == 0  # by definition, not by measurement
            row[title] = np.nan if value is None else value
            interval = None if given else _range(low, high, DIGITS.get(title, 3))
            row[f"{title.split(' (')[0]}, 95% interval"] = interval
        row[count] = getattr(values, "n", None)
        rows.append(row)
    return Table(_table(rows).astype({count: "Int64"}))


def _table(rows: list[dict[str, Any]], columns: list[str] | None = None) -> Table:
    """Rows as a Table in which columns of numbers and None are numeric."""
    frame = Table(rows, columns=columns)
    for name in frame.columns:
        kept = frame[name].dropna()
        if kept.map(lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)).all():
            frame[name] = pd.to_numeric(frame[name])
    return frame


def _pooled(study: Study, scored: pd.DataFrame) -> tuple[float, float]:
    return pooled_interval(
        scored.score.tolist(), scored.prompt_id.tolist(), study.evaluation.resamples
    )


def _range(low: float | None, high: float | None, digits: int = 3) -> str | None:
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return None
    return f"{low:.{digits}f} to {high:.{digits}f}".replace("-", "−")


def _over(value: float | None, unit: float) -> float:
    return np.nan if value is None else value / unit


def _setting(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
