"""The paper's tables under each other: hand-computed values, references, and changed numbers."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hialign.report import paper
from hialign.report.audit import statements
from hialign.report.audit import tables as audit_tables
from hialign.report.audit.tables import AGREES, ALL, DISAGREES, LLAMA, UNSETTLED
from hialign.study.errors import HialignError

Change = Callable[[Callable[[dict[str, Any]], None]], None]


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Have the paper print something else: give it what changes the content of paper.yml."""
    content = paper.load_paper()

    def change(edit: Callable[[dict[str, Any]], None]) -> None:
        edit(content)
        monkeypatch.setattr("hialign.report.paper.load_paper", lambda: copy.deepcopy(content))

    return change


def set_mean(content: dict[str, Any], block: str, mean: float, model: str | None = None) -> None:
    rows = content["table_3" if model else "table_2"]["rows"]
    (row,) = (r for r in rows if r["block"] == block and r.get("model") == model)
    row["mean"] = mean


def row_of(frame: pd.DataFrame, **where: str) -> pd.Series:
    """The only row with these values, the columns' spaces written as underscores."""
    for name, value in where.items():
        frame = frame[frame[name.replace("_", " ")] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def verdict(says: str, column: str = "Verdict") -> str:
    frame = statements.disagreements()
    found = frame[frame["What the text says"].str.startswith(says)]
    assert len(found) == 1
    return str(found.iloc[0][column])


# --- the Llama models ----------------------------------------------------------------------------

LLAMA_MEANS = {"full": 2.745, "local": 2.675, "mid": 2.602, "global": 2.245, "base": 2.170}


def test_llama_means_by_hand() -> None:
    table = audit_tables.llama().set_index("Strategy")
    for block, mean in LLAMA_MEANS.items():
        assert audit_tables.means()[LLAMA, block].mean == pytest.approx(mean, abs=1e-9)
    full = table.loc["Full-DPO"]
    steps = ["Table 2", "4 × Table 2", "less Qwen2.5-7B", "less Qwen3-8B", "over 2: Llama mean"]
    # 3.067; x 4; - 3.514; - 3.264; / 2
    assert full[steps].tolist() == pytest.approx([3.067, 12.268, 8.754, 5.490, 2.745])
    assert full["Rounding, ±"] == pytest.approx((4 * 0.0005 + 2 * 0.0005) / 2) == 0.0015
    assert audit_tables.means()[LLAMA, "full"].error == pytest.approx(1.253 / math.sqrt(2000))
    # 2.745 ± 1.96 x 0.02802; the other Llama at 3.240 at most: 2 x 2.745 - 3.240
    assert full["95% interval"] == "2.690 to 2.800"
    assert full["Each Llama model"] == "2.250 to 3.240"


def test_the_rounding_bound_is_reached_and_never_passed() -> None:
    off = [(4 * a - b - c) / 2 for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    assert audit_tables.means()[LLAMA, "mid"].rounding == pytest.approx(0.0005 * max(off))


def test_all_four_models_average_to_table_2() -> None:
    known = audit_tables.means()
    for row in paper.rows("table_2"):
        parts = [known[name, row["block"]].mean for name in ("Qwen2.5-7B", "Qwen3-8B")]
        total = sum(parts) + 2 * known[LLAMA, row["block"]].mean
        assert total / 4 == pytest.approx(row["mean"], abs=1e-9)


def test_gains_and_the_llama_share_by_hand() -> None:
    row = audit_tables.gains().set_index("Strategy").loc["Full-DPO"]
    # 3.067 - 2.765; 3.514 - 3.414; 3.264 - 3.306; 2.745 - 2.170; 2 x 0.575 / (4 x 0.302)
    assert row.tolist() == pytest.approx([0.302, 0.100, -0.042, 0.575, 115 / 1.208])


def test_the_spread_within_models_is_what_mixing_them_leaves() -> None:
    """Scores made with these means and some spread: Table 2's std takes the models' means in."""
    known, rng = audit_tables.means(), np.random.default_rng(0)
    means = [known[m, "base"].mean for m in ("Qwen2.5-7B", "Qwen3-8B", LLAMA, LLAMA)]
    inside = audit_tables.within()["base"]
    scores = [rng.normal(mean, inside, 200_000) for mean in means]
    assert np.concatenate(scores).std() == pytest.approx(1.340, abs=0.005)


def test_a_hole_in_table_3_is_named(changed: Change) -> None:
    changed(lambda content: content["table_3"]["rows"].pop())
    with pytest.raises(HialignError, match=r"table_3 .* lacks \['Qwen3-8B'\] under Local-Align"):
        audit_tables.llama()


# --- comparisons ---------------------------------------------------------------------------------


def test_differences_by_hand() -> None:
    table = statements.comparisons()
    mid = row_of(
        table, Where="Qwen2.5-7B", Said_to_be_above="Mid-Align", Said_to_be_below="Full-DPO"
    )
    assert mid["Difference"] == pytest.approx(0.020)
    assert mid["Standard error"] == pytest.approx(math.sqrt((1.273**2 + 1.253**2) / 1000))
    assert mid["Standard error"] == pytest.approx(1.25 * math.sqrt(2 / 1000), abs=0.001)  # 0.056
    local = row_of(
        table, Where="all four", Said_to_be_above="Full-DPO", Said_to_be_below="Local-Align"
    )
    assert local["Difference"] == pytest.approx(0.054)
    assert local["z"] == pytest.approx(0.054 / math.sqrt((1.253**2 + 1.269**2) / 4000))
    assert local["z"] == pytest.approx(1.9, abs=0.05)
    llama = row_of(
        table, Where="the two Llama", Said_to_be_above="Mid-Align", Said_to_be_below="Full-DPO"
    )
    assert llama["Difference"] == pytest.approx(-0.143)
    assert llama["z"] == pytest.approx(-0.143 / math.sqrt((1.273**2 + 1.253**2) / 2000))
    anchor = row_of(
        table, Where="all four", Said_to_be_above="Mid-Align", Said_to_be_below="the anchor"
    )
    assert anchor["z"] == pytest.approx(0.002 / (1.273 / math.sqrt(4000)))


def test_what_was_typed_before_still_holds() -> None:
    """The differences, errors and spans that stood in paper.yml as typed numbers."""
    known = statements.facts()
    expected = {"full_mid": "0.065", "full_error": "0.028"}
    expected |= {"mid_global": "0.194", "full_base": "0.302", "llama_mid_full": "−0.143"}
    expected |= {"qwen25_mid_full": "+0.020", "qwen25_error": "0.056", "steps": "417"}
    expected |= {"qwen25_span": "0.121", "qwen3_span": "0.089", "llama_global": "2.245"}
    assert {name: known[f"paper_{name}"] for name in expected} == expected
    ((row),) = audit_tables.compare([((ALL, "global"), (ALL, "base"))]).to_dict("records")
    assert row["difference"] == pytest.approx(0.043)
    assert row["standard_error"] == pytest.approx(0.030, abs=0.0005)


def test_p_intervals_and_holm_against_references() -> None:
    found = statements.compared()
    assert found.p.to_list() == pytest.approx(2 * stats.norm.sf(found.z.abs()))
    reference = multipletests(found.p, method="holm")[1]
    assert found.p_holm.to_list() == pytest.approx(reference)
    low, high = stats.norm.interval(0.95, found.difference, found.standard_error)
    assert found.low.to_list() == pytest.approx(low, abs=1e-6)
    assert found.high.to_list() == pytest.approx(high, abs=1e-6)
    # A t-test from summary statistics at such n is the same test
    t = stats.ttest_ind_from_stats(3.067, 1.253, 4000, 3.013, 1.269, 4000, equal_var=False)
    (row,) = found[(found.upper == (ALL, "full")) & (found.lower == (ALL, "local"))].to_dict(
        "records"
    )
    assert row["z"] == pytest.approx(t.statistic)
    assert row["p"] == pytest.approx(t.pvalue, abs=1e-4)


def test_each_comparison_stands_once() -> None:
    found = statements.compared()
    pairs = [frozenset(pair) for pair in zip(found.upper, found.lower, strict=True)]
    assert len(set(pairs)) == len(pairs)
    tested = [s for s in statements.statements() if not s.printed]
    assert {frozenset(pair) for s in tested for pair in s.pairs} == set(pairs)


def test_correlated_scores_sharpen_a_difference_as_simulated() -> None:
    """Pairs drawn with a correlation: the error of their mean difference is the formula's."""
    pair = [(("Qwen2.5-7B", "mid"), ("Qwen2.5-7B", "full"))]
    rng = np.random.default_rng(1)
    for r in (0.0, 0.5, 0.9):
        shared = r * 1.273 * 1.253
        drawn = rng.multivariate_normal([0, 0], [[1.273**2, shared], [shared, 1.253**2]], 400_000)
        error = (drawn[:, 0] - drawn[:, 1]).std() / math.sqrt(1000)
        found = audit_tables.compare(pair, r).iloc[0]
        assert found.standard_error == pytest.approx(error, rel=0.01)
        assert found.z == pytest.approx(0.020 / error, rel=0.01)


def test_at_the_correlation_needed_z_is_196() -> None:
    found = statements.compared().dropna(subset="needed")
    for row in found.to_dict("records"):
        if -1 < row["needed"] < 1:
            again = audit_tables.compare([(row["upper"], row["lower"])], row["needed"]).iloc[0]
            assert abs(again.z) == pytest.approx(1.96, abs=1e-4)
    table = statements.pairing()
    assert (
        row_of(table, Where="all four", Said_to_be_above="Full-DPO", Said_to_be_below="Base")[
            "r for z = 1.96"
        ]
        == "any"
    )
    near = row_of(
        table, Where="Qwen2.5-7B", Said_to_be_above="Mid-Align", Said_to_be_below="Full-DPO"
    )
    # (1.273² + 1.253² - 1000 x 0.02² / 1.96²) / (2 x 1.273 x 1.253)
    assert near["r for z = 1.96"] == "0.967"
    assert not table["Said to be below"].str.contains("anchor").any()


def test_cohens_d_by_hand() -> None:
    row = row_of(
        statements.sizes(), Where="all four", Said_to_be_above="Full-DPO", Said_to_be_below="Base"
    )
    assert row["Cohen's d"] == pytest.approx(0.302 / math.sqrt((1.253**2 + 1.340**2) / 2))
    assert row["One response in"] == pytest.approx(1 / 0.302)
    alone = row_of(
        statements.sizes(),
        Where="all four",
        Said_to_be_above="Full-DPO",
        Said_to_be_below="the anchor",
    )
    assert alone["Cohen's d"] == pytest.approx(0.067 / 1.253)


# --- verdicts ------------------------------------------------------------------------------------


def test_verdicts_of_the_paper_as_it_is() -> None:
    assert verdict("Mid-Align matches or exceeds") == DISAGREES
    assert verdict("On Qwen2.5-7B, Mid-Align is above") == UNSETTLED
    assert verdict("Full-DPO is highest") == UNSETTLED
    assert verdict("Global-Align alone of the trained") == DISAGREES
    assert verdict("Local-Align, Mid-Align and Full-DPO are above Base") == AGREES
    loses = "The intermediate third loses nothing"
    assert verdict(loses) == UNSETTLED
    assert verdict(loses, "Verdict, r = 0.5") == DISAGREES
    counts = statements.disagreements()["Verdict"].value_counts()
    known = statements.facts()
    assert [counts[w] for w in (AGREES, UNSETTLED, DISAGREES)] == [
        int(known[f"paper_{name}"]) for name in ("agree", "unsettled", "disagree")
    ]


def test_a_larger_lead_on_qwen_would_be_found(changed: Change) -> None:
    changed(lambda content: set_mean(content, "mid", 3.834, "Qwen2.5-7B"))
    assert verdict("On Qwen2.5-7B, Mid-Align is above") == AGREES


def test_a_lower_mid_on_qwen_would_disagree(changed: Change) -> None:
    changed(lambda content: set_mean(content, "mid", 3.234, "Qwen2.5-7B"))
    assert verdict("On Qwen2.5-7B, Mid-Align is above") == DISAGREES


def test_a_global_below_base_would_agree(changed: Change) -> None:
    changed(lambda content: set_mean(content, "global", 2.700))
    assert verdict("Global-Align alone of the trained") == AGREES


def test_a_mid_above_full_everywhere_would_agree(changed: Change) -> None:
    def edit(content: dict[str, Any]) -> None:
        set_mean(content, "mid", 3.467)
        set_mean(content, "mid", 3.914, "Qwen2.5-7B")
        set_mean(content, "mid", 3.664, "Qwen3-8B")

    changed(edit)
    assert verdict("Mid-Align matches or exceeds") == AGREES
    assert verdict("The intermediate third loses nothing") == AGREES


def test_wide_scores_would_settle_nothing(changed: Change) -> None:
    def edit(content: dict[str, Any]) -> None:
        for row in content["table_2"]["rows"]:
            row["std"] = 40.0

    changed(edit)
    assert verdict("Local-Align, Mid-Align and Full-DPO are above Base") == UNSETTLED
    assert verdict("Mid-Align matches or exceeds") == UNSETTLED
    assert verdict("Global-Align alone of the trained") == DISAGREES, "it is about printed numbers"


def test_v1_and_v2(changed: Change) -> None:
    row = row_of(statements.versions(), Question="Global-Align against all")
    assert row["Verdict"] == DISAGREES
    assert "number 4 of 5" in row["v2 (text and Table 2)"]
    models = row_of(statements.versions(), Question="Models")["v2 (text and Table 2)"]
    assert models.endswith("1 in common (Llama-3.1-8B)")
    changed(lambda content: set_mean(content, "global", 3.500))
    row = row_of(statements.versions(), Question="Global-Align against all")
    assert row["Verdict"] == AGREES
    assert "number 1 of 5" in row["v2 (text and Table 2)"]


# --- checks --------------------------------------------------------------------------------------


def test_all_checks_hold_of_the_paper() -> None:
    assert set(audit_tables.checks()["Verdict"]) == {AGREES}


@pytest.mark.parametrize(
    ("check", "table", "row", "key", "value"),
    [
        ("Table 2: the counts", "table_2", 2, "count", 3999),
        ("Table 2: the medians", "table_2", 0, "median", 3.2),
        ("Table 2: the medians", "table_2", 0, "median", 5.0),
        ("Table 2: the standard deviations", "table_2", 0, "std", 2.1),
        ("Table 2: the standard deviations", "table_2", 0, "std", 0.3),
        ("Table 3: the ranks", "table_3", 4, "mean", 3.414001),
        ("Table 3: the ranks", "table_3", 4, "rank", 6),
        ("Tables 2 and 3: no Llama model in Table 3", "table_2", 4, "mean", 3.400),
        ("Table 4: the blocks", "table_4", 3, "mid", [10, 19]),
    ],
)
def test_a_check_can_fail(
    changed: Change, check: str, table: str, row: int, key: str, value: Any
) -> None:
    changed(lambda content: content[table]["rows"][row].update({key: value}))
    failed = audit_tables.checks().set_index("Check")["Verdict"]
    assert list(failed[failed == DISAGREES].index) == [check]


def test_appendix_a_is_an_even_split() -> None:
    for layers in (3, 28, 32, 36, 100):
        n, r = divmod(layers, 3)  # Appendix A: n + [r > 0], n + [r > 1], the rest
        first, second = n + (r > 0), n + (r > 1)
        ends = [[0, first - 1], [first, first + second - 1], [first + second, layers - 1]]
        assert audit_tables._even(layers) == audit_tables._rule(layers) == ends


# --- the figure ----------------------------------------------------------------------------------


def test_the_figure_draws_its_numbers() -> None:
    values, figure = audit_tables.points(), audit_tables.by_models()
    assert len(values) == 15
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == [
        *("Qwen2.5-7B", "Qwen3-8B", "the two Llama models"),
    ]
    drawn = [
        float(line.get_ydata()[0])
        for axes in figure.axes
        for line in axes.lines
        if len(line.get_ydata()) == 1
    ]
    assert drawn == pytest.approx(values["mean"].tolist())
    errors = values.standard_error
    assert (values.high - values.low).tolist() == pytest.approx(2 * 1.959964 * errors)
