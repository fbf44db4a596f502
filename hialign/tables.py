"""The paper's tables, and those of our judge-free evaluation, as DataFrames.

Every table has a row for each cell (or strategy) of the study, run or not: what is missing is NaN,
shown as "–". Intervals are 95% and stand in a column after the figure that they belong to.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from hialign import paper, records
from hialign.blocks import split_layers, strategy_of
from hialign.contrasts import OBJECTIVES
from hialign.statistics import against_base, interval_text, pooled_interval, wilson
from hialign.study import Study

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

DASH = "–"
OVERALL = "Overall"  # the dimension that Tables 2 and 3 are about
DIGITS = {"KL from Base (nats/token)": 4, "Response length (tokens)": 1}  # decimals, if not three
DIGITS |= {"Training (min)": 2, "Peak memory (GiB)": 2}


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
    formats, css = {}, [{"selector": "th, td", "props": "text-align: right"}]
    for i, name in enumerate(frame.columns):
        if is_numeric_dtype(frame[name]):
            digits = f",.{DIGITS.get(name, 3)}f"
            whole = "d" if name == "Seed" else ","  # a seed is a name, not an amount
            formats[name] = f"{{:{whole if is_integer_dtype(frame[name]) else digits}}}"
            continue
        short = frame[name].astype(str).str.len().max() <= 24
        props = "text-align: left" + ("; white-space: nowrap" if short else "")
        css.append({"selector": f".col{i}", "props": props})
    # The same table has the same id in each build (pandas would draw one).
    key = hashlib.sha256(repr(list(frame.columns)).encode()).hexdigest()[:8]
    # The theme styles `table.dataframe` for light and dark; other tables get a white box in dark.
    style = pd.DataFrame(frame).style.set_table_attributes('class="dataframe"').set_uuid(key)
    style.format(formats, na_rep=DASH, escape="html")  # type: ignore[arg-type]
    style.format_index(escape="html", axis="columns").hide(axis="index")
    if "caption" in frame.attrs:
        style.set_caption(escape(frame.attrs["caption"]))
    return style.set_table_styles(css)  # type: ignore[arg-type]


# --- the paper's tables --------------------------------------------------------------------------


def table1() -> Table:
    """Table 1: the five conditions and the layers that get adapters."""
    titles = {"strategy": "Strategy", "block": "Block", "kind": "Kind"}
    titles["tuned"] = "Layers with adapters"
    frame = pd.DataFrame(paper.rows("table_1"), columns=list(titles)).replace("none", DASH)
    return Table(frame.rename(columns=titles))


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
        difference = against_base(scores, block)
        row = {"Strategy": strategy_of(block), **_mean(study, asked)}
        row |= _mean(study, difference, "Minus Base", "Minus Base, 95% interval")
        row |= {"Std": asked.score.std(), "Median": asked.score.median()}
        row |= {"Models": asked.dropna(subset="score").model.nunique(), **_counts(asked)}
        row |= {f"Paper: {name}": reference.get(block, {}).get(name) for name in ("mean", "std")}
        rows.append(row)
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
        theirs = reference.get((cell.model.label.casefold(), cell.block), {})
        if asked.score.notna().any():
            row = {"Model": cell.model.label, "Strategy": cell.strategy}
            row |= _mean(study, asked) | _counts(asked)
            rows.append(row | {f"Paper: {name}": theirs.get(name) for name in ("rank", "mean")})
    rows = sorted(rows, key=lambda row: -float(row["Mean Overall"]))[:top]
    columns = ["Model", "Strategy", *_mean(study, scores[:0]), *_counts(scores[:0])]
    frame = _table(rows, [*columns, "Paper: rank", "Paper: mean"])
    frame.insert(0, "Rank", range(1, len(frame) + 1))
    return Table(frame.astype({"Paper: rank": "Int64"}))


def table4(study: Study) -> Table:
    """Table 4: first and last layer of each block (counted from 0) and how many they are.

    Depths are the paper's, or what the study's runs wrote down; never looked up on a network.
    """
    known = paper.depths()
    runs = records.manifests(study).reindex(columns=["model", "depth"]).dropna()
    measured = {name: int(depth) for name, depth in zip(runs.model, runs.depth, strict=True)}
    labels = [model.label for model in study.models]
    rows = []
    for name in dict.fromkeys([*known, *labels]):
        depth = measured.get(name) or known.get(name)
        places = ["paper"] * (name in known) + ["this study"] * (name in labels)
        row: dict[str, Any] = {"Model": name, "In": " and ".join(places), "Layers": depth}
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
        row = {"Hyper-parameter": row["name"], "Paper": _setting(theirs)}
        rows.append(row | {"This study": _setting(ours), "Same": "yes" if same else "no"})
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
    """What each cell is, whether it has run, and what that took.

    "Shared" is what one pass did for all its strategies together, beside each one's own time.
    """
    titles = {"model": "Model", "strategy": "Strategy", "status": "Status", "layers": "Layers"}
    titles |= {"pairs": "Pairs", "steps": "Steps", "final_loss": "Final loss"}
    titles |= {"seconds": "Training (min)", "shared_seconds": "Shared (min)", "tokens": "Tokens"}
    titles |= {"peak_memory_bytes": "Peak memory (GiB)", "device": "Device", "seed": "Seed"}
    runs = records.manifests(study).reindex(columns=["block", "stale", *titles])
    untrained = (runs.status != "done") | (runs.block == "base")
    runs.loc[untrained, ["pairs", "seconds", "shared_seconds", "tokens", "final_loss"]] = None
    runs.loc[runs.stale.eq(True), "status"] = "done, with older settings"
    runs["layers"] = [(span(v) or "none") if isinstance(v, list) else None for v in runs.layers]
    for name, unit in (
        *(("final_loss", 1), ("seconds", 60), ("shared_seconds", 60)),
        ("peak_memory_bytes", 2**30),
    ):
        runs[name] = pd.to_numeric(runs[name]) / unit
    whole = dict.fromkeys(("pairs", "steps", "tokens", "seed"), "Int64")
    return Table(runs[list(titles)].astype(whole).rename(columns=titles))


def judge_agreement(study: Study) -> Table:
    """How often the study's judge sides with people on LLMBar, by its Overall score and the others.

    `attrs["text"]` has it in a phrase, unless it was not measured for these weights (or this
    snapshot) and this rubric: a judge is only known to be as good as it was found to be.
    """
    from hialign.judge.agreement import measured

    record = measured(study) or {}
    titles = {"subset": "LLMBar subset", "score": "Score", "accuracy": "Accuracy"}
    titles |= {"interval": "95% interval", "n": "Pairs", "ties": "Ties", "missing": "Missing"}
    rows = [dict(row) for row in record.get("rows", [])]
    for row in rows:
        row["interval"] = interval_text(row["low"], row["high"])
    frame = _table(rows or [{"subset": "not measured"}], list(titles))
    whole = dict.fromkeys(("n", "ties", "missing"), "Int64")
    table = Table(frame.astype(whole).rename(columns=titles))
    parts = []
    for kind, ones in (("everyday", "natural"), ("adversarial", "adversarial-")):
        kept = [
            r for r in rows if r["score"] == OVERALL and r["subset"].startswith(ones) and r["n"]
        ]
        if n := sum(row["n"] for row in kept):
            share = sum(row["accuracy"] * row["n"] for row in kept) / n
            low, high = wilson(share * n, n)
            parts.append(f"{share:.0%} of {n} {kind} pairs ({low:.0%} to {high:.0%})")
    if parts:
        table.attrs["text"] = " and ".join(parts)
    return table


def judge_line(study: Study) -> str:
    """The judge's name and its agreement with people, which stand wherever its scores do."""
    known = judge_agreement(study).attrs.get("text", "not measured")
    name = study.judge.name if study.judge else "none"
    return f"Judge: {name}; agreement with human labels (LLMBar): {known}"


# --- shared with the figures ---------------------------------------------------------------------


def overall(study: Study) -> pd.DataFrame:
    """The judge's Overall scores: model, block, strategy, prompt_id, score (NaN where it failed)."""
    found = records.judgments(study)
    return found[found.dimension == OVERALL]


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
    title: title.lower().replace(" ", "_")
    for title in ("Likelihood accuracy", "Reward accuracy", "Reward margin")
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
            row[title] = value
            interval = None if given else interval_text(low, high, DIGITS.get(title, 3))
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


def _mean(
    study: Study, scores: pd.DataFrame, mean: str = "Mean Overall", interval: str = "95% interval"
) -> dict[str, Any]:
    kept = scores.dropna(subset="score")
    points, prompts = kept.score.tolist(), kept.prompt_id.tolist()
    ends = pooled_interval(points, prompts, study.evaluation.resamples)
    return {mean: kept.score.mean(), interval: interval_text(*ends)}


def _counts(asked: pd.DataFrame) -> dict[str, int]:
    scored = int(asked.score.notna().sum())
    return {"Scored": scored, "Failed": len(asked) - scored}


def _setting(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
