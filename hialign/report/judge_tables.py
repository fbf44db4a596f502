"""The judge as tables and a figure of the book (Appendix D): how it was measured, and what it took.

A table of the measurements shows the study's own validation. For parts that it lacks, it shows the
validation that the package ships for the same judge and rubric. If there is none either, a single
row says that it was not measured.
"""

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from hialign.records import frames
from hialign.records.agreement import OTHERS, measured
from hialign.report.display import Columns, Table, table_of, view
from hialign.report.plots import canvas, missing, name_judge, nothing, plain
from hialign.report.sentences import judge_agreement_text
from hialign.statistics.intervals import interval_text
from hialign.study.study import Study

NOT = "not measured"
COUNTS = ("Pairs", "Ties", "Missing", "Responses", "Words", "Failed")
OF_JUDGMENTS = ["Judged", "Failed", "Asked again", "Repaired", "Shared", "Tokens in", "Tokens out"]
LONGEST = 160  # characters of a raw answer that are shown
MOST = 50  # failed judgments that are listed


# --- how it was measured -------------------------------------------------------------------------


def made(study: Study) -> Table:
    """When and by which command the judge was measured, and what that took, or how to measure it."""
    record = measured(study) or {}
    columns = ["Measured on", "Command", "Judgments", "Tokens", "Minutes"]
    if "injection" not in record:
        return Table(
            [[NOT, f"hialign judge {study.name} --validate"]], columns=columns[:2]
        ).reindex(columns=columns)
    costs = record["costs"]
    tokens, minutes = sum(costs["usage"].values()), round(costs["seconds"] / 60)
    row = [record["date"], record["command"], costs["calls"], tokens, minutes]
    return Table([row], columns=columns)


def judge_agreement(study: Study) -> Table:
    """How often the study's judge sides with people on LLMBar, by its Overall score and the others.

    `attrs["text"]` has it in a phrase, unless it was not measured for these weights (or this
    snapshot) and this rubric.
    """
    columns: Columns = {"LLMBar subset": "subset", "Score": "score", "Accuracy": "accuracy"}
    columns |= {"95% interval": ("low", "high"), "Pairs": "n", "Ties": "ties", "Missing": "missing"}
    table = view((measured(study) or {}).get("rows", []), columns, NOT)
    table = Table(table.astype(dict.fromkeys(("Pairs", "Ties", "Missing"), "Int64")))
    if text := judge_agreement_text(study):
        table.attrs["text"] = text
    return table


def preferences(study: Study) -> Table:
    """How often the judge sides with people on held-out preference pairs."""
    source = _part(study, "preferences").get("source")
    columns: Columns = {
        "Pairs of": lambda row: source, "Score": "score", "Accuracy": "accuracy",
        "95% interval": ("low", "high"), "Pairs": "n", "Ties": "ties", "Missing": "missing",
    }  # fmt: skip
    return _counted(_part(study, "preferences").get("rows", []), columns)


def reliability(study: Study) -> Table:
    """How far the judge agrees with itself, asked twice, and with other judges."""
    record = measured(study) or {}
    retest = record.get("retest")
    rows: list[dict[str, Any]] = []
    others = [(other["judge"], other) for other in record.get("judges", [])]
    if retest and retest["deterministic"]:
        row = {"name": "itself: nothing is drawn", "equal": retest["equal"]}
        rows.append(row | {"dimension": "all dimensions", "n": retest["items"]})
    elif retest:
        others.insert(0, ("itself, asked again", retest))
    rows += [{"name": name} | row for name, other in others for row in other["rows"]]
    columns: Columns = {
        "Compared with": "name", "Dimension": "dimension", "Alpha": "alpha",
        "95% interval": ("low", "high"), "Equal": "equal", "Responses": "n",
    }  # fmt: skip
    return _counted(rows, columns)


def length(study: Study) -> Table:
    """Whether the judge prefers longer responses."""
    columns: Columns = {
        "Responses of": "data", "Measure": "measure", "Value": "value",
        "95% interval": ("low", "high"), "Responses": "responses", "Pairs": "pairs", "Ties": "ties",
    }  # fmt: skip
    return _counted(list(_by_length(study)), columns)


def _by_length(study: Study) -> Iterator[dict[str, Any]]:
    for part in (measured(study) or {}).get("length", []):
        name = part["data"]
        data = _part(study, "preferences").get("source") if name == "preferences" else name
        ends = {"data": data, "low": part["low"], "high": part["high"]}
        rho = {"measure": "rank correlation of words and score", "value": part["spearman"]}
        yield ends | rho | {"responses": part["n"]}
        for measure, field in {
            "judge: the longer wins": "longer",
            "people: the longer wins": "people",
            "accuracy where people prefer the longer": "preferred_longer",
            "accuracy where people prefer the shorter": "preferred_shorter",
        }.items():
            row = part[field]
            values = {"data": data, "measure": measure, "value": row["accuracy"]}
            yield row | values | {"pairs": row["n"]}


def injection(study: Study) -> Table:
    """How far each attack moves the judge's scores, and how far its control does."""
    net = "Overall.over_control"
    columns: Columns = {
        "Attack": "attack", "Where": "where", "Words": "words", "Overall": "Overall.change",
        "95% interval": ("Overall.low", "Overall.high"), "Minus control": f"{net}.change",
        "Its 95% interval": (f"{net}.low", f"{net}.high"), "Others": f"{OTHERS}.change",
        "Raised": "Overall.raised", "Responses": "Overall.n", "Failed": "Overall.failed",
    }  # fmt: skip
    return _counted(_part(study, "injection").get("rows", []), columns)


def injection_figure(study: Study) -> Figure:
    """The change of the Overall score by attack: against the plain response and the control."""
    rows = _attacks(study)
    if not any(row["Overall"]["n"] for row in rows):
        return nothing("attacks on the judge")
    figure, (axes,) = canvas(7.0, 1.4 + 0.3 * len(rows))
    looks = {"change": ("#0072B2", "o", -0.14), "over_control": ("#D55E00", "D", 0.14)}
    names = {"change": "with the attack, minus without", "over_control": "minus the control"}
    for y, row in enumerate(rows):
        for which, (colour, marker, shift) in looks.items():
            moved = row["Overall"] if which == "change" else row["Overall"]["over_control"]
            if moved["change"] is None:
                missing(axes, 0.5, y + shift, transform=axes.get_yaxis_transform())
                continue
            if moved["low"] is not None:
                ends = [moved["low"], moved["high"]]
                axes.plot(ends, [y + shift] * 2, color=colour, linewidth=3, alpha=0.5)
            dot: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6}
            dot |= {"label": names[which]} if y == 0 else {}
            axes.plot(moved["change"], y + shift, ls="none", markeredgecolor="white", **dot)
    axes.axvline(0, color="#555555", linestyle=":", linewidth=1, zorder=1)
    axes.set_yticks(range(len(rows)), [plain(row["attack"], 30) for row in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="change of the Overall score (points of 1 to 5)")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    name_judge(figure, study)
    return figure


def gains(study: Study) -> str:
    """How many attacks raise the Overall score over their control, and which one raises it most."""
    over_control = {row["attack"]: row["Overall"]["over_control"] for row in _attacks(study)}
    if not over_control:
        return NOT
    over_control = {name: net for name, net in over_control.items() if net["low"] is not None}
    if not over_control:
        return "each attack was tried on too few responses for an interval"
    up = sum(net["low"] > 0 for net in over_control.values())
    most, net = max(over_control.items(), key=lambda item: float(item[1]["change"]))
    points = f"{net['change']:+.2f} points, {interval_text(net['low'], net['high'], 2)}"
    return (
        f"{up} of {len(over_control)} attacks raise the Overall score over their control with a 95% "
        f"interval above zero; {most} gains the most ({points})"
    )


def judge_line(study: Study) -> str:
    """The judge's name and its agreement with people, which stand wherever its scores do."""
    name = study.judge.name if study.judge else "none"
    agreement = judge_agreement_text(study) or NOT
    return f"Judge: {name}; agreement with human labels (LLMBar): {agreement}"


def _part(study: Study, name: str) -> dict[str, Any]:
    part: dict[str, Any] = (measured(study) or {}).get(name, {})
    return part


def _attacks(study: Study) -> list[dict[str, Any]]:
    return [row for row in _part(study, "injection").get("rows", []) if row["kind"] != "control"]


def _counted(rows: list[dict[str, Any]], columns: Columns) -> Table:
    """`view`, in which counts are whole numbers."""
    table = view(rows, columns, NOT)
    return Table(table.astype({name: "Int64" for name in COUNTS if name in table}))


# --- what the study's judgments took -------------------------------------------------------------


def usage(study: Study) -> Table:
    """Calls, tokens and USD of each cell's judgments, and which models answered.

    "Asked again" counts answers that could not be used. "Repaired" counts those whose JSON was
    repaired, and "Shared" the responses equal to one that was judged already. More than one model
    (or fingerprint) under "Answered by" means that the provider changed it during the study.
    """
    rows = []
    for cell in study.cells() if study.judge else ():
        row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
        if judgments := frames.judgments_of(cell):
            own = [judgment for judgment in judgments if not judgment.get("shared")]
            judged = sum(bool(judgment["scores"]) for judgment in judgments)
            tokens = [judgment.get("usage", {}) for judgment in own]
            costs = [judgment["cost"] for judgment in own if "cost" in judgment]
            row |= {
                "Judged": judged,
                "Failed": len(judgments) - judged,
                "Asked again": sum(judgment.get("attempts", 1) - 1 for judgment in own),
                "Repaired": sum(bool(judgment.get("repaired")) for judgment in judgments),
                "Shared": len(judgments) - len(own),
                "Tokens in": sum(of_call.get("prompt_tokens", 0) for of_call in tokens),
                "Tokens out": sum(of_call.get("completion_tokens", 0) for of_call in tokens),
                "USD": sum(costs) if costs else None,
                "Answered by": ", ".join(frames.answered_by(judgments)),
            }
        rows.append(row)
    frame = table_of(rows, ["Model", "Strategy", *OF_JUDGMENTS, "USD", "Answered by"])
    return Table(frame.astype(dict.fromkeys(OF_JUDGMENTS, "Int64")))


def failures(study: Study) -> Table:
    """The first `MOST` missing judgments: what was wrong with each, and how the answer began."""
    rows = [
        {
            "Model": cell.model.label,
            "Strategy": cell.strategy,
            "Prompt": str(judgment["prompt_id"]),
            "Problem": judgment.get("error"),
            "Answer": " ".join(str(judgment.get("raw", "")).split())[:LONGEST] or None,
        }
        for cell in (study.cells() if study.judge else ())
        for judgment in frames.judgments_of(cell)
        if not judgment["scores"]
    ]
    more = len(rows) - MOST
    rows = rows[:MOST] + ([{"Model": f"and {more} more"}] if more > 0 else [])
    columns = ["Model", "Strategy", "Prompt", "Problem", "Answer"]
    return table_of(rows or [{"Model": "none"}], columns)
