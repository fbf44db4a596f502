"""The paper's text beside its own numbers: each statement, what the tables say, and a verdict.

A statement says that some means lie above others. A statement about printed numbers is held against
them as printed. One about strategies is tested, and all such comparisons are one family. The
verdicts are the words of `hialign.report.audit.tables`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hialign.report import paper
from hialign.report.audit.tables import (
    AGREES,
    ALL,
    ANCHOR,
    DISAGREES,
    LLAMA,
    UNSETTLED,
    Side,
    compare,
    gains,
    listed_models,
    means,
    within,
)
from hialign.report.display import Columns, Row, Table, table_of, view
from hialign.statistics.intervals import ALPHA, p_text
from hialign.study.blocks import STRATEGIES, strategy_of

Pair = tuple[Side, Side]  # the first mean lies above the second
NAMED: Columns = {
    "Where": "where", "Said to be above": "above", "Said to be below": "below",
    "Difference": "difference",
}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """What the text says, in our words, and what must then lie above what."""

    text: str
    place: str
    pairs: tuple[Pair, ...] = ()
    printed: bool = False  # it is about the numbers as printed
    other: Callable[[], tuple[str, str]] | None = None  # numbers and verdict, if not about means


def statements() -> list[Statement]:
    """Each statement of v2's text that its tables speak to, in the text's order."""
    first, *others = listed = listed_models(means())
    groups = (*listed, LLAMA)
    tuned = [block for block in STRATEGIES if block != "base"]
    rest = [block for block in tuned if block != "global"]
    above_base = [(block, "base") for block in rest]
    return [
        Statement("Mid-Align matches or exceeds Full-DPO throughout", "abstract, §1",
                  _across(groups, "mid", "full")),
        Statement("Tuning the last third alone does not suffice: it stays below Full-DPO",
                  "abstract, §4.2.1", _across(groups, "full", "global")),
        Statement("Global-Align is clearly below the other trained strategies", "§1",
                  _within(ALL, *((block, "global") for block in rest))),
        Statement("The intermediate third drives preference learning more than the others", "§1",
                  _within(ALL, ("mid", "local"), ("mid", "global"))),
        Statement("The intermediate third loses nothing against tuning all layers", "§1",
                  _within(ALL, ("mid", "full"))),
        Statement("Mid-Align updates far fewer parameters than Full-DPO", "abstract, §4.2.1",
                  other=_parameters),
        Statement("The gradient of an objective is concentrated in one block", "§3.1", other=_none),
        Statement("The baseline that tunes everything is full-parameter DPO", "abstract",
                  other=_adapters),
        Statement("Full-DPO is highest, then Local-Align, then Mid-Align", "§4.2.1, Table 2",
                  _within(ALL, ("full", "local"), ("local", "mid"))),
        Statement("Global-Align alone of the trained strategies is below the baseline; the baseline "
                  "read as Base, as Table 1 has it", "§4.2.1",
                  _within(ALL, ("base", "global"), *above_base), printed=True),
        Statement("The same, the baseline read as the judge's anchor of 3", "§4.2.1",
                  ((ANCHOR, (ALL, "global")), *(((ALL, block), ANCHOR) for block in rest))),
        Statement("Local-Align, Mid-Align and Full-DPO are above Base", "§4.2.1, Table 2",
                  _within(ALL, *above_base)),
        Statement(f"{first} is best under every strategy", "§4.2.1, Figure 2",
                  tuple(((first, b), (model, b)) for b in STRATEGIES for model in others)),
        Statement(f"On {first}, Mid-Align is above Full-DPO", "§4.2.1, Table 3",
                  _within(first, ("mid", "full"))),
        Statement(f"{first} untuned is above tuned variants of other models", "§4.2.1, Table 3",
                  tuple(((first, "base"), (model, b)) for model in others for b in tuned),
                  printed=True),
        Statement("Local-Align gains most in fluency, conciseness and robustness; Mid-Align in "
                  "coherence and depth; Full-DPO and Local-Align in following instructions",
                  "§4.2.1, Figure 3", other=_none),
        Statement("Safety and EthicsSensitivity are above 4.0 under every condition",
                  "§4.2.1, Figure 3", other=_none),
    ]  # fmt: skip


def _across(groups: tuple[str, ...], upper: str, lower: str) -> tuple[Pair, ...]:
    return tuple(((models, upper), (models, lower)) for models in groups)


def _within(models: str, *blocks: tuple[str, str]) -> tuple[Pair, ...]:
    return tuple(((models, upper), (models, lower)) for upper, lower in blocks)


def _none() -> tuple[str, str]:
    return "no number is printed", UNSETTLED


def _parameters() -> tuple[str, str]:
    """Adapters of equal size in each layer: the share of layers is the share of parameters."""
    rows = paper.rows("table_4")
    shares = [(row["mid"][1] - row["mid"][0] + 1) / row["layers"] for row in rows]
    text = f"{100 * min(shares):.0f}% to {100 * max(shares):.0f}% of the layers (Table 4), and so "
    return text + "of the adapters", AGREES if max(shares) < 0.5 else DISAGREES


def _adapters() -> tuple[str, str]:
    rank = {row["key"]: row["value"] for row in paper.rows("table_5")}.get("lora_rank")
    if rank is None:
        return "Table 5 has no rank of adapters", UNSETTLED
    return f"Table 1 and Table 5: adapters of rank {rank} on all layers", DISAGREES


# --- what the tests say --------------------------------------------------------------------------


def compared(correlation: float = 0.0) -> pd.DataFrame:
    """Each comparison that a tested statement makes, once, as the text first has it.

    The columns are those of `audit.tables.compare`. Holm's correction is over all rows.
    """
    pairs: dict[frozenset[Side], Pair] = {}
    for statement in statements():
        for pair in () if statement.printed else statement.pairs:
            pairs.setdefault(frozenset(pair), pair)
    return compare(list(pairs.values()), correlation)


def comparisons() -> Table:
    """Each comparison as the text has it: positive where the numbers lie as it says."""
    columns: Columns = {
        "Standard error": "standard_error", "z": "z", "p": lambda row: p_text(row["p"]),
        "p (Holm)": lambda row: p_text(row["p_holm"]), "95% interval": ("low", "high"),
    }  # fmt: skip
    return view(_named(compared()), NAMED | columns)


def pairing() -> Table:
    """What each comparison becomes if the two scores of a prompt are correlated."""
    rows = compared().assign(half=compared(0.5).z, most=compared(0.9).z).dropna(subset="needed")
    columns: Columns = {
        "z, r = 0": "z", "z, r = 0.5": "half", "z, r = 0.9": "most", "r for z = 1.96": _needed,
    }  # fmt: skip
    return view(_named(rows), NAMED | columns)


def _needed(row: Row) -> str:
    needed = row["needed"]
    return "any" if needed <= 0 else "none" if needed >= 1 else f"{needed:.3f}"


def sizes() -> Table:
    """The size of each difference: in standard deviations, and in responses a point apart."""

    def one_in(row: Row) -> float:
        return 1 / abs(row["difference"]) if row["difference"] else float("nan")

    return view(_named(compared()), NAMED | {"Cohen's d": "d", "One response in": one_in})


def disagreements() -> Table:
    """Each statement of the text, its place, what the numbers say, and a verdict.

    The last column is what the verdict would be if a prompt's scores were correlated by 0.5.
    """
    unpaired, paired = _by_pair(), _by_pair(0.5)
    rows = []
    for statement in statements():
        numbers, verdict = judge(statement, unpaired)
        rows.append(
            {
                "What the text says": statement.text,
                "Place in v2": statement.place,
                "What its numbers say": numbers,
                "Verdict": verdict,
                "Verdict, r = 0.5": judge(statement, paired)[1],
            }
        )
    return table_of(rows)


def _by_pair(correlation: float = 0.0) -> dict[Pair, dict[str, Any]]:
    """The tested comparisons by pair, in either direction."""
    tests: dict[Pair, dict[str, Any]] = {}
    for row in compared(correlation).to_dict("records"):
        pair = row["upper"], row["lower"]
        tests[pair] = {str(name): value for name, value in row.items()}
        turned = {name: -row[name] for name in ("difference", "z")}
        tests[pair[1], pair[0]] = tests[pair] | turned
    return tests


def judge(statement: Statement, tests: dict[Pair, dict[str, Any]]) -> tuple[str, str]:
    """What the numbers say to a statement, and the verdict.

    As printed, a statement agrees if each mean lies above the other, and else disagrees. If it is
    tested, only differences with a Holm's adjusted p below 5% count. The statement disagrees if one
    of them is against it, agrees if all are for it, and else is not settled.
    """
    if statement.other:
        return statement.other()
    printed = means() if statement.printed else {}
    parts: dict[str, list[str]] = {}
    signs = []
    for upper, lower in statement.pairs:
        what, where = _phrase(upper, lower)
        if statement.printed:
            difference, z, sure = printed[upper].mean - printed[lower].mean, "", True
        else:
            test = tests[upper, lower]
            difference, sure = test["difference"], test["p_holm"] < ALPHA
            z = f" (z\u00a0{signed(test['z'], 1)})"
        signs.append((1 if difference > 0 else -1) if sure else 0)
        parts.setdefault(what, []).append(f"{signed(difference)}{where}{z}")
    text = "; ".join(f"{what}: {', '.join(values)}" for what, values in parts.items())
    return text, DISAGREES if -1 in signs else AGREES if set(signs) == {1} else UNSETTLED


# --- v1 and v2 -----------------------------------------------------------------------------------


def versions() -> Table:
    """What v1's abstract says beside v2, and a verdict on whether the two agree."""
    content, by_side = paper.load_paper(), means()
    models = {name: content["versions"][name]["models"] for name in ("v1", "v2")}
    shared = [name for name in models["v1"] if name in models["v2"]]
    ranked = sorted(STRATEGIES, key=lambda block: -by_side[ALL, block].mean)
    best, place = ranked[0], ranked.index("global") + 1
    gap = _by_pair()[(ALL, "full"), (ALL, "global")]
    verdict = DISAGREES if gap["difference"] > 0 else AGREES
    verdict = verdict if gap["p_holm"] < ALPHA else UNSETTLED
    overall = (
        f"{strategy_of(best)} has the highest mean ({by_side[ALL, best].mean:.3f}); Global-Align is "
        f"number {place} of {len(ranked)}, {signed(-gap['difference'])} from Full-DPO "
        f"(z\u00a0{signed(-gap['z'], 1)})"
    )
    silent = "no number; the text does not say"
    rows = [
        ("Models", ", ".join(models["v1"]),
         f"{', '.join(models['v2'])}: {len(shared)} in common ({', '.join(shared) or 'none'})", None),
        ("Global-Align against all", "above every baseline", overall, verdict),
        ("Best for logic", "Global-Align", "Mid-Align (§4.2.1; no number)", DISAGREES),
        ("Global-Align and facts", "raises factuality", silent, UNSETTLED),
        ("Local-Align and fluency", "raises it", "raises it (§4.2.1; no number)", AGREES),
        ("Alignment tax", "standard DPO pays it, no third does",
         "argued for (§3.2, Figure 1), not measured", UNSETTLED),
    ]  # fmt: skip
    names = ["Question", "v1 (abstract)", "v2 (text and Table 2)", "Verdict"]
    return Table([dict(zip(names, row, strict=True)) for row in rows])


# --- words ---------------------------------------------------------------------------------------


def facts() -> dict[str, str]:
    """What prose uses of all this, by name."""
    tests = _by_pair()
    mean = {side: of_side.mean for side, of_side in means().items()}
    words = [judge(statement, tests)[1] for statement in statements()]
    qwen = tests[("Qwen2.5-7B", "mid"), ("Qwen2.5-7B", "full")]
    to_full = tests[(ALL, "mid"), (ALL, "full")]
    spans = {}
    for name in listed_models(means()):
        of_model = [mean[name, block] for block in STRATEGIES]
        spans[name] = max(of_model) - min(of_model)
    spreads = within().values()
    table5 = {row["key"]: row["value"] for row in paper.rows("table_5")}
    batch = table5["batch_size"] * table5["gradient_accumulation_steps"]
    pairs = paper.load_paper()["design"]["training_pairs"]["value"]
    shares = gains().set_index("Strategy")["Llama share (%)"]
    table = {
        **{f"paper_llama_{b}": f"{mean[LLAMA, b]:.3f}" for b in STRATEGIES},
        "paper_llama_share": f"{shares['Full-DPO']:.0f}%",
        "paper_full_base": f"{mean[ALL, 'full'] - mean[ALL, 'base']:.3f}",
        "paper_full_mid": f"{mean[ALL, 'full'] - mean[ALL, 'mid']:.3f}",
        "paper_full_error": f"{to_full['standard_error']:.3f}",
        "paper_mid_global": f"{mean[ALL, 'mid'] - mean[ALL, 'global']:.3f}",
        "paper_llama_mid_full": signed(mean[LLAMA, "mid"] - mean[LLAMA, "full"]),
        "paper_qwen25_mid_full": signed(qwen["difference"]),
        "paper_qwen25_error": f"{qwen['standard_error']:.3f}",
        "paper_qwen25_span": f"{spans['Qwen2.5-7B']:.3f}",
        "paper_qwen3_span": f"{spans['Qwen3-8B']:.3f}",
        "paper_within": f"{min(spreads):.2f} to {max(spreads):.2f}",
        "paper_steps": str(-(-pairs // batch)),
        "paper_statements": str(len(words)),
    }
    counted = {AGREES: "agree", UNSETTLED: "unsettled", DISAGREES: "disagree"}
    return table | {f"paper_{name}": str(words.count(word)) for word, name in counted.items()}


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _name(block: str) -> str:
    return "the anchor" if block == ANCHOR[1] else strategy_of(block)


def _named(comparisons: pd.DataFrame) -> Iterator[Row]:
    """Comparisons with what they compare in words: two strategies, or two models under one."""
    for row in comparisons.to_dict("records"):
        (a, upper), (b, lower) = row["upper"], row["lower"]
        names = {"where": a or b, "above": _name(upper), "below": _name(lower)}
        if a and b and a != b:
            names = {"where": f"under {_name(upper)}", "above": a, "below": b}
        yield row | names


def _phrase(upper: Side, lower: Side) -> tuple[str, str]:
    """A difference in words, and where: `Mid-Align minus Full-DPO`, ` on Qwen3-8B`."""
    (a, first), (b, second) = upper, lower
    if not a or not b or a == b:
        where = a or b
        on = "" if where == ALL else f" on {'the two Llama models' if where == LLAMA else where}"
        return f"{_name(first)} minus {_name(second)}", on
    if first == second:
        return f"{a} minus {b}", f" under {_name(first)}"
    return f"{_name(first)} of {a} minus {b}", f" under {_name(second)}"
