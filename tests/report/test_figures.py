"""Figures: every one draws whatever a study holds, says what is missing, and labels its axes."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers import (
    EFFECT,
    make_study,
    measurement,
    published,
    scores_of,
    write_all,
    write_evaluation,
    write_judgments,
    write_training,
)

from hialign.records.files import read_jsonl
from hialign.report import figures, plots, scores
from hialign.study.rubric import load_rubric
from hialign.study.study import Study

matplotlib.use("Agg")

OF_A_STUDY: list[Callable[[Study], Any]] = [
    *(figures.figure2, figures.figure3, figures.figure4, figures.figure5),
    *(figures.accuracy, figures.objectives, figures.divergence),
]
every_figure = pytest.mark.parametrize("draw", OF_A_STUDY, ids=lambda f: f.__name__)


@pytest.fixture
def demo(outputs: Path) -> Study:
    study = make_study()
    write_all(study)
    return study


@pytest.fixture
def partial(outputs: Path) -> Study:
    """Two models, of which one has two strategies; no judgments of one of them."""
    study = make_study(["one", "two"], blocks=[*EFFECT, "layers:8-12,20"])
    for block in ("base", "mid"):
        write_training(study.cell("one", block))
        write_evaluation(study.cell("one", block))
    write_judgments(study.cell("one", "mid"), failed=(1,))
    return study


def texts(figure: Any) -> list[str]:
    found = [t for axes in figure.axes for t in axes.texts]
    return [t.get_text() for t in [*found, *figure.texts]]


def draw_it(figure: Any) -> None:
    assert figure.get_figwidth() <= 8
    assert figure.get_facecolor() == (1, 1, 1, 1)  # opaque: readable on a dark page
    figure.canvas.draw()


def test_figure1_draws_the_four_tuned_conditions() -> None:
    figure = figures.figure1()
    draw_it(figure)
    assert {"Full-DPO", "Local-Align", "Mid-Align", "Global-Align"} <= set(texts(figure))


@every_figure
def test_a_whole_study(demo: Study, draw: Any) -> None:
    figure = draw(demo)
    draw_it(figure)
    assert "missing" not in " ".join(texts(figure))
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel()


@every_figure
def test_a_partial_study_shows_what_is_missing(partial: Study, draw: Any) -> None:
    figure = draw(partial)
    draw_it(figure)
    hatched = [p for axes in figure.axes for p in axes.patches if p.get_hatch()]
    assert hatched or any("missing" in text for text in texts(figure))


@every_figure
def test_an_empty_study_says_so(outputs: Path, draw: Any) -> None:
    figure = draw(make_study())
    draw_it(figure)
    assert any("in this study yet" in text for text in texts(figure))


@every_figure
def test_without_a_judge(outputs: Path, draw: Any) -> None:
    draw_it(draw(make_study(judge=None)))


@every_figure
def test_names_from_outside_do_no_harm(outputs: Path, draw: Any) -> None:
    name = "a $model_{$ with mathematics" + " and no end" * 9
    study = make_study([{"source": "random:x", "label": name}])
    write_all(study)
    draw_it(draw(study))


@every_figure
def test_a_figure_leaves_nothing_open(demo: Study, draw: Any) -> None:
    import matplotlib.pyplot as plt

    draw(demo)
    assert plt.get_fignums() == []


def test_the_papers_grid_renders_quickly(outputs: Path) -> None:
    names = ["Llama-2-7B", "Llama-3.1-8B", "Qwen2.5-7B", "Qwen3-8B"]
    study = make_study(names)
    write_all(study, prompts=200, steps=417, whole=True)
    started = time.perf_counter()
    for draw in OF_A_STUDY:
        draw_it(draw(study))
    assert time.perf_counter() - started < 90  # some 10 s on two idle cores


def test_seven_models_get_rows_of_their_own(outputs: Path) -> None:
    study = make_study([f"model-{i}" for i in range(7)])
    write_all(study, prompts=3, steps=3)
    for draw in (figures.figure2, figures.figure5):
        figure = draw(study)
        draw_it(figure)
        ticks = [t.get_text() for axes in figure.axes for t in axes.get_xticklabels()]
        assert ticks == [f"model-{i}" for i in range(7)]


# --- what is drawn is what was measured ------------------------------------------------------------


def points(axes: Any) -> list[tuple[float, float]]:
    """Where markers stand."""
    marked = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marked]


def test_figure2_has_the_means_the_scale_and_the_anchor(demo: Study) -> None:
    axes = figures.figure2(demo).axes[0]
    expected = [scores_of(demo, block).score.mean() for block in EFFECT]
    assert [y for _, y in points(axes)] == pytest.approx(expected)
    assert axes.get_ylim() == (1, 5)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert {float(line.get_ydata()[0]) for line in dashed} == {3.0}


def test_figure2_has_the_standard_deviation_within_the_scale(demo: Study) -> None:
    axes = figures.figure2(demo).axes[0]
    scores = scores_of(demo, "base").score
    thin = next(line for line in axes.lines if line.get_linewidth() == 0.9)
    mean, std = scores.mean(), scores.std()
    assert list(thin.get_ydata()) == pytest.approx([max(mean - std, 1), min(mean + std, 5)])


def test_figures_of_scores_name_the_judge_and_its_agreement(
    demo: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draw in (figures.figure2, figures.figure3):
        head = draw(demo)._suptitle.get_text()
        assert "local-judge" in head
        assert "not measured" in head
    published(monkeypatch, measurement(rubric_sha256=load_rubric().sha256))
    for draw in (figures.figure2, figures.figure3):
        assert "54% of 100 everyday pairs" in " ".join(draw(demo)._suptitle.get_text().split())


def test_failed_judgments_do_not_enter_means(outputs: Path) -> None:
    study = make_study(blocks=["base"])
    write_judgments(study.cell(None, "base"), failed=range(0, 24, 2))
    kept = scores_of(study, "base").score
    assert kept.isna().sum() == 12
    ((_, mean),) = points(figures.figure2(study).axes[0])
    assert mean == pytest.approx(kept.mean())


def test_figure3_has_the_means_of_fifteen_dimensions(demo: Study) -> None:
    axes, differences = figures.figure3(demo).axes[:2]
    names = [t.get_text() for t in differences.get_xticklabels()]
    assert len(names) == 15
    assert "Overall" not in names
    grid = np.asarray(axes.images[0].get_array().filled(math.nan))
    assert np.isnan(grid[0]).all()  # the line with the model's name
    for y, block in enumerate(EFFECT, 1):
        expected = [scores_of(demo, block, name).score.mean() for name in names]
        assert list(grid[y]) == pytest.approx(expected)


def test_figure3_keeps_the_groups_of_the_rubric_together(demo: Study) -> None:
    names = [t.get_text() for t in figures.figure3(demo).axes[1].get_xticklabels()]
    grouped = [n for members in load_rubric().groups.values() for n in members if n != "Overall"]
    assert names == grouped


def test_figure3_frames_what_is_found_and_nothing_else(outputs: Path) -> None:

    study = make_study()
    write_all(study, prompts=150)
    found = scores.dimension_differences(study)
    panel = figures.figure3(study).axes[1]
    names = [t.get_text() for t in panel.get_xticklabels()]
    rows = [t.get_text() for t in panel.get_yticklabels()]
    framed = {
        (rows[round(p.get_y() + 0.47)], names[round(p.get_x() + 0.47)])
        for p in panel.patches
        if p.get_linewidth() == 1.8
    }
    told = found[found.verdict.isin(["better", "worse"])]
    expected = {(study.cell(None, r.block).strategy, r.dimension) for r in told.itertuples()}
    assert framed == expected
    assert 0 < len(framed) < 60
    grid = np.asarray(panel.images[0].get_array())
    by_cell = found.set_index(["block", "dimension"])
    for y, block in enumerate(b for b in EFFECT if b != "base"):
        for x, name in enumerate(names):
            row = by_cell.loc[(block, name)]
            assert grid[y, x] == pytest.approx(row.difference)
            texts_here = [t.get_text() for t in panel.texts if t.get_position()[0] == x]
            assert f"{row.low:+.2f}".replace("-", "−") in texts_here


def test_figure3_says_when_nothing_is_found(outputs: Path) -> None:
    study = make_study()
    write_all(study, prompts=4)
    panel = figures.figure3(study).axes[1]
    assert panel.get_title(loc="left").endswith("framed: found (none)")
    assert not panel.patches


def test_figure4_draws_the_loss_and_not_base(demo: Study) -> None:

    axes = figures.figure4(demo).axes[0]
    curves = [line for line in axes.lines if line.get_linewidth() == 1.8]
    assert len(curves) == 4
    loss = [r["loss"] for r in read_jsonl(demo.cell(None, "full").folder / "training.jsonl")]
    assert list(curves[0].get_ydata()) == pytest.approx(loss)
    assert any(float(line.get_ydata()[0]) == pytest.approx(math.log(2)) for line in axes.lines)


def test_figure4_says_how_it_smooths(outputs: Path) -> None:
    study = make_study(blocks=["base", "full"])
    write_training(study.cell(None, "full"), steps=200)
    figure = figures.figure4(study)
    curve = next(line for line in figure.axes[0].lines if line.get_linewidth() == 1.8)
    raw = next(line for line in figure.axes[0].lines if line.get_linewidth() == 0.6)
    expected = pd.Series(raw.get_ydata()).rolling(10, min_periods=1, center=True).mean()
    assert list(curve.get_ydata()) == pytest.approx(list(expected))
    assert "running mean of 10 steps" in figure.legends[0].get_title().get_text()


def test_figure5_has_minutes_and_not_base(demo: Study) -> None:
    bars = figures.figure5(demo).axes[0].patches
    expected = [9 * 6.0 * (1 + EFFECT[block]) / 60 for block in EFFECT if block != "base"]
    assert [bar.get_height() for bar in bars] == pytest.approx(expected)


def test_accuracy_leaves_base_out_of_reward_accuracy(demo: Study) -> None:
    share, margin = figures.accuracy(demo).axes
    trained = [block for block in EFFECT if block != "base"]
    expected = [0.6 + EFFECT[block] for block in trained]
    assert [x for x, _ in points(share)] == pytest.approx(expected)
    assert [x for x, _ in points(margin)] == pytest.approx([4 * e for e in EFFECT.values()])
    assert "none: it is the reference" in [t.get_text() for t in share.texts]


def test_objectives_shade_what_the_paper_expects(demo: Study) -> None:
    panels = figures.objectives(demo).axes
    assert [p.get_title(loc="left") for p in panels] == ["grammar", "coherence", "factuality"]
    order = list(EFFECT)
    for panel, block in zip(panels, ("local", "mid", "global"), strict=True):
        (band,) = panel.patches
        assert band.get_y() + 0.5 == order.index(block) + 1


def test_a_strategy_has_one_colour_throughout(demo: Study) -> None:
    from matplotlib.colors import to_hex

    bars = figures.figure5(demo).axes[0].patches
    trained = [block for block in EFFECT if block != "base"]
    palette = [figures.PALETTE[block].lower() for block in trained]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == palette
    curves = [c for c in figures.figure4(demo).axes[0].lines if c.get_linewidth() == 1.8]
    assert [to_hex(c.get_color()) for c in curves] == palette
    assert len(set(figures.PALETTE.values())) == 5


def test_style_is_opaque_and_can_be_set_twice() -> None:
    with matplotlib.rc_context():
        plots.style()
        plots.style()
        assert matplotlib.rcParams["figure.facecolor"] == "white"
