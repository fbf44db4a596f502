"""The numbers and sentences that the book's prose uses, from the records of a study.

Every fact is a short text; what has not been measured reads "not measured", so that the prose of a
partial study stays true.
"""

import datetime
from typing import Any

import numpy as np
import pandas as pd

from hialign import paper, records
from hialign.blocks import STRATEGIES
from hialign.contrasts import OBJECTIVES
from hialign.statistics import mean_interval, pooled_interval
from hialign.study import Study

NONE = "not measured"
TRAINED = [block for block in STRATEGIES if block != "base"]


def facts(study: Study) -> dict[str, str]:
    """All facts by name. With several models, figures of a strategy are means over the models."""
    return {
        **_design(study),
        **_runs(study),
        **_preferences(study),
        **_judge(study),
        "paper_best": _paper_best(),
        "version": records.hialign_version(),
        "commit": records.commit() or "unknown",
        "built_on": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _design(study: Study) -> dict[str, str]:
    training = study.training
    return {
        "study_name": study.name,
        "study_title": study.title,
        "models": ", ".join(m.label for m in study.models),
        "n_models": str(len(study.models)),
        "n_cells": str(len(study.cells())),
        "preference_source": {"builtin": "the built-in set"}.get(
            study.preferences.source, study.preferences.source
        ),
        "learning_rate": f"{training.learning_rate:g}",
        "epochs": f"{training.epochs:g}",
        "batch": str(training.effective_batch),
        "beta": f"{training.beta:g}",
        "lora_rank": str(training.lora_rank),
        "seed": str(training.seed),
    }


def _runs(study: Study) -> dict[str, str]:
    runs = records.manifests(study)
    done = runs[runs["status"] == "done"]
    trained = done[done["block"] != "base"]
    pairs = {str(int(n)) for n in trained["pairs"].dropna()}
    steps = {str(int(n)) for n in trained["steps"].dropna()}
    responses = records.responses(study)
    first = done.iloc[0] if len(done) else None
    found = {
        "n_cells_done": str(len(done)),
        "n_cells_failed": str(int((runs["status"] == "failed").sum())),
        "n_train_pairs": _join(pairs) if pairs else f"{study.preferences.train or 'all'}",
        "steps": _join(steps),
        "device": _join(set(done["device"].dropna())),
        "training_minutes_total": f"{records.training_seconds(trained) / 60:.1f}"
        if len(trained)
        else NONE,
        "n_eval_prompts": str(responses["prompt_id"].nunique()) if len(responses) else NONE,
        "n_layers": str(int(first["depth"])) if first is not None and "depth" in done else NONE,
    }
    for block in ("local", "mid", "global"):
        layers = [row for row in trained[trained["block"] == block]["layers"] if row]
        found[f"{block}_layers"] = _join({f"{row[0]}–{row[-1]}" for row in layers})
    return found


def _preferences(study: Study) -> dict[str, str]:
    table = records.evaluations(study)
    moved = records.divergences(study)
    own = table[table["objective"] == "all"]
    found = {"n_eval_pairs": _join({str(int(n)) for n in own["n"].dropna()})}
    base = own[own["block"] == "base"]["likelihood_accuracy"].mean()
    found["base_accuracy"] = _percent(base)
    for block in TRAINED:
        rows = own[own["block"] == block]
        found[f"{block}_accuracy"] = _percent(rows["reward_accuracy"].astype(float).mean())
        found[f"{block}_margin"] = _number(rows["reward_margin"].mean())
        for objective in OBJECTIVES:
            which = (table["block"] == block) & (table["objective"] == objective)
            found[f"{block}_{objective}_margin"] = _number(table[which]["reward_margin"].mean())
        kl = moved[moved["block"] == block]["kl"].astype(float).mean()
        found[f"{block}_kl"] = _number(kl, 4)
    trained = own[own["block"] != "base"].groupby("strategy")["reward_accuracy"]
    means = trained.mean().astype(float).dropna()
    best = str(means.idxmax()) if len(means) else None
    found["best_accuracy_strategy"] = best or NONE
    found["best_accuracy"] = _percent(means.max() if best else float("nan"))
    found["overall_finding"] = _finding(study, best, found)
    return found


def _finding(study: Study, best: str | None, found: dict[str, str]) -> str:
    """Which strategy's reward is right most often, and which ones cannot be told from it."""
    if best is None:
        return "No tuned cell of this study has been evaluated yet, so there is nothing to report."
    hits = _reward_hits(study)
    tied: list[str] = []
    behind: list[str] = []
    for strategy in [c for c in hits.columns if c != best]:
        both = hits[[best, strategy]].dropna()
        groups = [f"{m} {pair.rsplit('-', 1)[0]}" for m, pair in both.index]
        low, _ = mean_interval(list(both[best] - both[strategy]), groups)
        (behind if low > 0 else tied).append(strategy)
    text = (
        f"On {found['n_eval_pairs']} held-out pairs the implicit reward of {best} is right most "
        f"often: {found['best_accuracy']} of the time."
    )
    if tied:
        text += f" These pairs cannot tell {_and(tied)} from it"
        text += f"; {_and(behind)} did worse." if behind else "."
    elif behind:
        text += f" {_and(behind)} did worse, by more than chance over prompts explains."
    return text


def _reward_hits(study: Study) -> pd.DataFrame:
    """Whether each held-out pair is ranked right by the implicit reward: model, pair x strategy."""
    rows = []
    for cell in study.cells():
        file = records.stage_manifest(cell, "evaluate")
        if cell.block == "base" or not file.is_file():
            continue
        content = records.read_json(file)
        for p in content["pairs"]:
            if "all" in p["groups"]:
                gain = p["chosen"] - p["chosen_base"] - p["rejected"] + p["rejected_base"]
                hit = 0.5 + 0.5 * float(np.sign(gain))
                rows.append((cell.model.label, p["id"], cell.strategy, hit))
    frame = pd.DataFrame(rows, columns=["model", "id", "strategy", "hit"])
    return frame.pivot_table(index=["model", "id"], columns="strategy", values="hit")


def _judge(study: Study) -> dict[str, str]:
    found = dict.fromkeys(
        ("best_strategy_overall", "best_overall", "base_overall", "judge_failed"), NONE
    )
    from hialign.judge import report

    if study.judge is None:
        found |= {"judge_name": "none", "judge_model": "no judge", "judge_agreement": NONE}
        found["judge_injection"] = NONE
        return found | {"judge_finding": "This study has no judge."}
    found |= {"judge_name": study.judge.name, "judge_model": study.judge.model}
    found["judge_agreement"] = agreement_text(study)
    found["judge_injection"] = report.gains(study)
    table = records.judgments(study)
    overall = table[table["dimension"] == "Overall"]
    scores = overall.pivot_table(index=["model", "prompt_id"], columns="strategy", values="score")
    if scores.empty:
        return found | {"judge_finding": "No response of this study has been judged yet."}
    means = scores.mean()
    best = str(means.idxmax())
    found |= {
        "best_strategy_overall": best,
        "best_overall": _number(means[best], 3),
        "base_overall": _number(means.get("Base", float("nan")), 3),
        "judge_failed": str(int(overall["score"].isna().sum())),
    }
    others = [s for s in means.index if s != "Base"]
    if "Base" not in means or not others:
        return found | {"judge_finding": "Too few strategies have been judged to compare them."}
    told = []
    for strategy in others:
        both = scores[["Base", strategy]].dropna()
        gains = both[strategy] - both["Base"]
        prompts = list(gains.index.get_level_values("prompt_id"))  # models share the prompts
        low, high = pooled_interval(list(gains), prompts)
        if low > 0 or high < 0:
            told.append(f"{strategy} ({both[strategy].mean() - both['Base'].mean():+.3f})")
    if not told:
        text = (
            "The judge tells none of the strategies from Base: every 95% interval of a difference "
            "in Overall, paired by prompt, holds zero."
        )
    else:
        text = (
            f"By the judge's Overall score, paired by prompt, {_and(told)} differ"
            f"{'s' if len(told) == 1 else ''} from Base with a 95% interval that leaves out zero "
            "(intervals are not corrected for the number of comparisons)."
        )
    agreement = found["judge_agreement"]
    if agreement == NONE:
        text += " How far this judge agrees with people has not been measured."
    else:
        text += f" This judge agrees with people on {agreement}; guessing would agree on half."
    return found | {"judge_finding": text}


def agreement_text(study: Study) -> str:
    """The judge's measured agreement with human labels, in one phrase."""
    from hialign import tables

    return str(tables.judge_agreement(study).attrs.get("text", NONE))


def _paper_best() -> str:
    best = max(paper.rows("table_2"), key=lambda row: float(row["mean"]))
    return f"{best['strategy']} ({best['mean']:.3f})"


def _join(values: set[Any]) -> str:
    return ", ".join(sorted(str(v) for v in values)) or NONE


def _number(value: float, digits: int = 3) -> str:
    return NONE if pd.isna(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return NONE if pd.isna(value) else f"{100 * value:.0f}%"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
