"""The report on the judge as tables and a figure of the book (Appendix D).

Each shows the study's own validation or, for parts that it lacks, the one that the package ships for
the same judge and rubric; else a single row says that it was not measured.
"""

from typing import TYPE_CHECKING, Any

from hialign.records.agreement import OTHERS, measured
from hialign.report.display import Table
from hialign.statistics.intervals import interval_text
from hialign.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from hialign.records import frames
from hialign.report.display import table_of

NOT = "not measured"
COUNTS = ("Pairs", "Ties", "Missing", "Responses", "Words", "Failed")


def preferences(study: Study) -> Table:
    """How often the judge sides with people on held-out preference pairs."""
    found = _part(study, "preferences")
    rows = [
        {"Pairs of": found["source"], "Score": row["score"], "Accuracy": row["accuracy"]}
        | {"95% interval": interval_text(row["low"], row["high"])}
        | {"Pairs": row["n"], "Ties": row["ties"], "Missing": row["missing"]}
        for row in found.get("rows", [])
    ]
    return _table(
        rows, ["Pairs of", "Score", "Accuracy", "95% interval", "Pairs", "Ties", "Missing"]
    )


def reliability(study: Study) -> Table:
    """How far the judge agrees with itself, asked twice, and with other judges."""
    record = measured(study) or {}
    retest = record.get("retest")
    rows = []
    parts = [(found["judge"], found) for found in record.get("judges", [])]
    if retest and retest["deterministic"]:
        row = {"Compared with": "itself: nothing is drawn", "Equal": retest["equal"]}
        rows.append(row | {"Dimension": "all dimensions", "Responses": retest["items"]})
    elif retest:
        parts.insert(0, ("itself, asked again", retest))
    for name, part in parts:
        for row in part["rows"]:
            shown = {"Compared with": name, "Dimension": row["dimension"], "Alpha": row["alpha"]}
            shown |= {"95% interval": interval_text(row["low"], row["high"])}
            rows.append(shown | {"Equal": row["equal"], "Responses": row["n"]})
    columns = ["Compared with", "Dimension", "Alpha", "95% interval", "Equal", "Responses"]
    return _table(rows, columns)


def length(study: Study) -> Table:
    """Whether the judge goes by the number of words."""
    record = measured(study) or {}
    source = record.get("preferences", {}).get("source")
    rows = []
    for found in record.get("length", []):
        data = source if found["data"] == "preferences" else found["data"]
        row = {"Responses of": data, "Measure": "rank correlation of words and score"}
        row |= {"Value": found["spearman"]}
        row |= {"95% interval": interval_text(found["low"], found["high"])}
        rows.append(row | {"Responses": found["n"]})
        for title, name in LENGTH.items():
            part = found[name]
            row = {"Responses of": data, "Measure": title, "Value": part["accuracy"]}
            row |= {"95% interval": interval_text(part["low"], part["high"])}
            rows.append(row | {"Pairs": part["n"], "Ties": part["ties"]})
    columns = ["Responses of", "Measure", "Value", "95% interval", "Responses", "Pairs", "Ties"]
    return _table(rows, columns)


LENGTH = {
    "judge: the longer wins": "longer",
    "people: the longer wins": "people",
    "accuracy where people prefer the longer": "preferred_longer",
    "accuracy where people prefer the shorter": "preferred_shorter",
}


def injection(study: Study) -> Table:
    """How far each attack moves the judge's scores, and how far its control does."""
    rows = []
    for found in _part(study, "injection").get("rows", []):
        overall, others = found["Overall"], found.get(OTHERS, {})
        net = overall.get("over_control", {})
        row = {"Attack": found["attack"], "Where": found["where"], "Words": found["words"]}
        row |= {"Overall": overall["change"]}
        row |= {"95% interval": interval_text(overall["low"], overall["high"])}
        row |= {"Minus control": net.get("change")}
        row |= {"Its 95% interval": interval_text(net.get("low"), net.get("high"))}
        row |= {"Others": others.get("change"), "Raised": overall["raised"]}
        rows.append(row | {"Responses": overall["n"], "Failed": overall["failed"]})
    columns = ["Attack", "Where", "Words", "Overall", "95% interval"]
    columns += ["Minus control", "Its 95% interval", "Others", "Raised"]
    return _table(rows, [*columns, "Responses", "Failed"])


def injection_figure(study: Study) -> "Figure":
    """The change of the Overall score by attack: against the plain response and the control."""
    from hialign.report.plots import canvas, missing, name_judge, nothing, plain

    rows = [r for r in _part(study, "injection").get("rows", []) if r["kind"] != "control"]
    if not any(row["Overall"]["n"] for row in rows):
        return nothing("attacks on the judge")
    figure, (axes,) = canvas(7.0, 1.4 + 0.3 * len(rows))
    looks = {"change": ("#0072B2", "o", -0.14), "over_control": ("#D55E00", "D", 0.14)}
    names = {"change": "with the attack, minus without", "over_control": "minus the control"}
    for y, row in enumerate(rows):
        for which, (colour, marker, shift) in looks.items():
            found = row["Overall"] if which == "change" else row["Overall"]["over_control"]
            if found["change"] is None:
                missing(axes, 0.5, y + shift, transform=axes.get_yaxis_transform())
                continue
            if found["low"] is not None:
                ends = [found["low"], found["high"]]
                axes.plot(ends, [y + shift] * 2, color=colour, linewidth=3, alpha=0.5)
            dot: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "linestyle": "none",
                "markersize": 6,
            }
            dot |= {"label": names[which]} if y == 0 else {}
            axes.plot(found["change"], y + shift, markeredgecolor="white", **dot)
    axes.axvline(0, color="#555555", linestyle=":", linewidth=1, zorder=1)
    axes.set_yticks(range(len(rows)), [plain(row["attack"], 30) for row in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="change of the Overall score (points of 1 to 5)")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    name_judge(figure, study)
    return figure


def made(study: Study) -> Table:
    """When and by which command the judge was measured, and what that took; or how to do it."""
    record = measured(study) or {}
    columns = ["Measured on", "Command", "Judgments", "Tokens", "Minutes"]
    if "injection" not in record:
        command = f"hialign judge {study.name} --validate"
        return Table([{"Measured on": NOT, "Command": command}], columns=columns)
    costs = record["costs"]
    row = {"Measured on": record["date"], "Command": record["command"], "Judgments": costs["calls"]}
    tokens, minutes = sum(costs["usage"].values()), round(costs["seconds"] / 60)
    return Table([row | {"Tokens": tokens, "Minutes": minutes}], columns=columns)


def gains(study: Study) -> str:
    """How many attacks raise the Overall score over their control, and which one the most."""
    rows = [r for r in _part(study, "injection").get("rows", []) if r["kind"] != "control"]
    known = {r["attack"]: r["Overall"]["over_control"] for r in rows}
    known = {name: net for name, net in known.items() if net["low"] is not None}
    if not known:
        return NOT
    up = sum(net["low"] > 0 for net in known.values())
    most, net = max(known.items(), key=lambda pair: float(pair[1]["change"]))
    said = f"{net['change']:+.2f} points, {interval_text(net['low'], net['high'], 2)}"
    return (
        f"{up} of {len(known)} attacks raise the Overall score over their control with a 95% interval "
        f"above zero; {most} gains the most ({said})"
    )


def _part(study: Study, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (measured(study) or {}).get(name, {})
    return found


def _table(rows: list[dict[str, Any]], columns: list[str]) -> Table:
    """`rows` with these columns, or one row that says there are none."""
    frame = Table(rows or [{columns[0]: NOT}], columns=columns)
    return Table(frame.astype({name: "Int64" for name in COUNTS if name in frame}))


def judge_agreement(study: Study) -> Table:
    """How often the study's judge sides with people on LLMBar, by its Overall score and the others.

    `attrs["text"]` has it in a phrase, unless it was not measured for these weights (or this
    snapshot) and this rubric: a judge is only known to be as good as it was found to be.
    """
    from hialign.records.agreement import measured, sides

    record = measured(study) or {}
    titles = {"subset": "LLMBar subset", "score": "Score", "accuracy": "Accuracy"}
    titles |= {"interval": "95% interval", "n": "Pairs", "ties": "Ties", "missing": "Missing"}
    rows = [dict(row) for row in record.get("rows", [])]
    for row in rows:
        row["interval"] = interval_text(row["low"], row["high"])
    frame = table_of(rows or [{"subset": "not measured"}], list(titles))
    whole = dict.fromkeys(("n", "ties", "missing"), "Int64")
    table = Table(frame.astype(whole).rename(columns=titles))
    parts = [
        f"{share:.0%} of {n} {kind} pairs ({low:.0%} to {high:.0%})"
        for kind, (share, low, high, n) in sides(study).items()
    ]
    if parts:
        table.attrs["text"] = " and ".join(parts)
    return table


def judge_line(study: Study) -> str:
    """The judge's name and its agreement with people, which stand wherever its scores do."""
    known = judge_agreement(study).attrs.get("text", "not measured")
    name = study.judge.name if study.judge else "none"
    return f"Judge: {name}; agreement with human labels (LLMBar): {known}"


LONGEST = 160  # characters of a raw answer that are shown
MOST = 50  # failed judgments that are listed


def usage(study: Study) -> Table:
    """Calls, tokens and USD of each cell's judgments, and which models answered.

    "Asked again" counts answers that could not be used; "Mended" those whose JSON was repaired;
    "Shared" responses equal to one that was judged already. More than one model (or fingerprint)
    under "Answered by" means that the provider changed it while the study was judged.
    """
    rows = []
    for cell in study.cells() if study.judge else ():
        found = frames.judgments_of(cell)
        row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
        row |= dict.fromkeys(_COUNTS) | {"USD": None, "Answered by": None}
        if found:
            own = [r for r in found if not r.get("shared")]
            row["Judged"] = sum(bool(r["scores"]) for r in found)
            row["Failed"] = len(found) - row["Judged"]
            row["Asked again"] = sum(r.get("attempts", 1) - 1 for r in own)
            row["Mended"] = sum(bool(r.get("repaired")) for r in found)
            row["Shared"] = len(found) - len(own)
            row["Tokens in"] = sum(r.get("usage", {}).get("prompt_tokens", 0) for r in own)
            row["Tokens out"] = sum(r.get("usage", {}).get("completion_tokens", 0) for r in own)
            costs = [r["cost"] for r in own if "cost" in r]
            row["USD"] = sum(costs) if costs else None
            row["Answered by"] = ", ".join(frames.answered_by(found))
        rows.append(row)
    frame = table_of(rows, ["Model", "Strategy", *_COUNTS, "USD", "Answered by"])
    return Table(frame.astype(dict.fromkeys(_COUNTS, "Int64")))


def failures(study: Study) -> Table:
    """The judgments that are missing (the first `MOST`), each with what was wrong and how the answer
    began."""
    rows: list[dict[str, Any]] = []
    for cell in study.cells() if study.judge else ():
        for record in frames.judgments_of(cell):
            if not record["scores"]:
                raw = " ".join(str(record.get("raw", "")).split())
                row: dict[str, Any] = {"Model": cell.model.label, "Strategy": cell.strategy}
                row |= {"Prompt": str(record["prompt_id"]), "Problem": record.get("error")}
                rows.append(row | {"Answer": raw[:LONGEST] or None})
    more = len(rows) - MOST
    rows = rows[:MOST] + ([{"Model": f"and {more} more"}] if more > 0 else [])
    columns = ["Model", "Strategy", "Prompt", "Problem", "Answer"]
    return table_of(rows or [{"Model": "none"}], columns)


_COUNTS = ["Judged", "Failed", "Asked again", "Mended", "Shared", "Tokens in", "Tokens out"]
