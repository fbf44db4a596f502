"""The numbers and sentences that the book's prose uses, from the records of a study.

Every fact is a short text. What has not been measured reads "not measured", so that the prose of a
partial study stays true.
"""

import datetime
from typing import Any

import pandas as pd

from hialign.records import frames, provenance
from hialign.records.files import read_json
from hialign.report import judge_tables, paper, run_tables
from hialign.report.audit import statements
from hialign.report.claims import ledger
from hialign.report.replication import sentences as registered
from hialign.report.scores import overall
from hialign.report.sentences import (
    joined,
    judge_agreement_text,
    overall_finding,
    reward_finding,
    tax_finding,
)
from hialign.report.where.signal import with_signal
from hialign.study import paths
from hialign.study.blocks import OBJECTIVES, STRATEGIES, strategy_of
from hialign.study.pair_files import source_name
from hialign.study.study import Study

NONE = "not measured"
VERDICTS = {
    "n_supported": ledger.SUPPORTED,
    "n_contradicted": ledger.CONTRADICTED,
    "n_refuted": ledger.REFUTED,
    "n_inconclusive": ledger.INCONCLUSIVE,
    "n_untested": ledger.UNTESTED,
}
TRAINED = [block for block in STRATEGIES if block != "base"]


def facts(study: Study) -> dict[str, str]:
    """All facts by name. With several models, figures of a strategy are means over the models."""
    return {
        **_design(study),
        **_runs(study),
        **_preferences(study),
        **_judge(study),
        **_claims(study),
        **statements.facts(),
        **registered.facts(study),
        "frontier_measured": "yes" if frames.probes(study, "frontier") else "",
        "gradients_see_labels": "yes" if with_signal(study) else "no",
        "paper_best": _paper_best(),
        "margin": f"{study.analysis.margin:g}",
        "shared_with_paper": _shared(study),
        "null_studies": _null_studies(),
        "hours_total": _number(run_tables.hours(study), 2),
        "cost_total": _money(study),
        "version": provenance.hialign_version(),
        "commit": provenance.commit() or "unknown",
        "built_on": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


SOURCES = {
    "builtin": "the built-in set",
    "contrasts": "the built-in set and contrasts made from answers of hh-rlhf",
}


def _design(study: Study) -> dict[str, str]:
    training, source = study.training, source_name(study.preferences)
    return {
        "study_name": study.name,
        "study_title": study.title,
        "models": ", ".join(m.label for m in study.models),
        "n_models": str(len(study.models)),
        "n_cells": str(len(study.cells())),
        "preference_source": SOURCES.get(source, source),
        "learning_rate": f"{training.learning_rate:g}",
        "epochs": f"{training.epochs:g}",
        "batch": str(training.effective_batch),
        "beta": f"{training.beta:g}",
        "lora_rank": str(training.lora_rank),
        "seed": str(training.seed),
    }


def _runs(study: Study) -> dict[str, str]:
    runs = frames.manifests(study)
    done = runs[runs["status"] == "done"]
    trained = done[done["block"] != "base"]
    pairs = {str(int(n)) for n in trained["pairs"].dropna()}
    steps = {str(int(n)) for n in trained["steps"].dropna()}
    responses = frames.responses(study)
    first = done.iloc[0] if len(done) else None
    minutes = f"{frames.training_seconds(trained) / 60:.1f}" if len(trained) else NONE
    facts = {
        "n_cells_done": str(len(done)),
        "n_cells_failed": str(int((runs["status"] == "failed").sum())),
        "n_train_pairs": _join(pairs) if pairs else f"{study.preferences.train or 'all'}",
        "steps": _join(steps),
        "device": _join(set(done["device"].dropna())),
        "training_minutes_total": minutes,
        "n_eval_prompts": str(responses["prompt_id"].nunique()) if len(responses) else NONE,
        "n_layers": str(int(first["depth"])) if first is not None and "depth" in done else NONE,
    }
    for block in ("local", "mid", "global"):
        layers = [row for row in trained[trained["block"] == block]["layers"] if row]
        facts[f"{block}_layers"] = _join({f"{row[0]}–{row[-1]}" for row in layers})
    return facts


def _preferences(study: Study) -> dict[str, str]:
    table = frames.evaluations(study)
    moved = frames.divergences(study)
    own = table[table["objective"] == "all"]
    facts = {"n_eval_pairs": _join({str(int(n)) for n in own["n"].dropna()})}
    base = own[own["block"] == "base"]["likelihood_accuracy"].mean()
    facts["base_accuracy"] = _percent(base)
    for block in TRAINED:
        rows = own[own["block"] == block]
        facts[f"{block}_accuracy"] = _percent(rows["reward_accuracy"].astype(float).mean())
        facts[f"{block}_margin"] = _number(rows["reward_margin"].mean())
        for objective in OBJECTIVES:
            which = (table["block"] == block) & (table["objective"] == objective)
            facts[f"{block}_{objective}_margin"] = _number(table[which]["reward_margin"].mean())
        kl = moved[moved["block"] == block]["kl"].astype(float).mean()
        facts[f"{block}_kl"] = _number(kl, 4)
    trained = own[own["block"].isin(TRAINED)].groupby("strategy")["reward_accuracy"]
    means = trained.mean().astype(float).dropna()
    best = str(means.idxmax()) if len(means) else None
    facts["best_accuracy_strategy"] = best or NONE
    facts["best_accuracy"] = _percent(means.max() if best else float("nan"))
    facts["overall_finding"] = reward_finding(study, best, facts)
    return facts


def _judge(study: Study) -> dict[str, str]:
    names = ("best_strategy_overall", "best_overall", "base_overall", "judge_failed", "tax_finding")
    facts = dict.fromkeys((*names, "judge_agreement", "judge_injection"), NONE)
    if study.judge is None:
        facts |= {"judge_name": "none", "judge_model": "no judge"}
        return facts | {"judge_finding": "This study has no judge."}
    agreement = judge_agreement_text(study)
    facts |= {"judge_name": study.judge.name, "judge_model": study.judge.model}
    facts |= {"judge_agreement": agreement or NONE, "judge_injection": judge_tables.gains(study)}
    scores = overall(study)
    means = scores[scores.block.isin(STRATEGIES)].groupby("block").score.mean().dropna()
    if means.empty:
        return facts | {"judge_finding": "No response of this study has been judged yet."}
    best = str(means.idxmax())
    told = "How far this judge agrees with people has not been measured."
    if agreement:
        told = f"This judge agrees with people on {agreement}. Guessing would agree on half."
    return facts | {
        "best_strategy_overall": strategy_of(best),
        "best_overall": _number(means[best]),
        "base_overall": _number(means.get("base")),
        "judge_failed": str(int(scores["score"].isna().sum())),
        "tax_finding": tax_finding(study),
        "judge_finding": f"{overall_finding(study)} {told}",
    }


def _claims(study: Study) -> dict[str, str]:
    verdicts = [finding.verdict for finding in ledger.findings(study)]
    counts = {name: str(verdicts.count(verdict)) for name, verdict in VERDICTS.items()}
    return {"n_claims": str(len(verdicts)), "seed_spread": _seed_spread(study)} | counts


def _seed_spread(study: Study) -> str:
    """What the verdicts leave out of the variation between training runs."""
    seeds = [one.seed for one in study.whole.single_runs() if not one.preferences.shuffled]
    if len(seeds) == 1:
        return (
            "This study has one seed, so the spread between seeds is not known: other training pairs "
            "and another initialization could change a verdict."
        )
    return (
        f"This study has {len(seeds)} seeds. The verdicts rest on one of them ({study.at().seed}) "
        "alone, so they leave out the spread between seeds."
    )


def _paper_best() -> str:
    best = max(paper.rows("table_2"), key=lambda row: float(row["mean"]))
    return f"{best['strategy']} ({best['mean']:.3f})"


def _shared(study: Study) -> str:
    """What a study has in common with v2's. Without that, numbers cannot be compared."""
    content = paper.load_paper()
    design, models = content["design"], {model["name"] for model in content["models"]}
    n = sum(model.label in models for model in study.models)
    judge = study.judge.model.casefold() if study.judge else ""
    same = {
        f"{n} of its {len(models)} models": n > 0,
        "its data set": source_name(study.preferences) == design["data_set"]["value"],
        "its judge": judge.startswith(design["judge"]["value"].casefold()),
    }
    shared = [text for text, holds in same.items() if holds]
    return joined(shared) if shared else "neither a model, nor the data set, nor the judge"


def _null_studies() -> str:
    """The results of benchmarks/null_studies.py in words. An installed wheel does not have them."""
    file = paths.root() / "benchmarks" / "results" / "null_studies.json"
    if not file.is_file():
        return f"{NONE} here (benchmarks/null_studies.py does)."
    content = read_json(file)
    null = content["scenarios"]["null, 100 prompts, 1 models"]
    share = {way: f"{100 * counts['share']:.1f}%" for way, counts in null["ways"].items()}
    covered = [
        (n, content["coverage"][f"{n} prompts, 1 models"]["ways"]["difference: t"])
        for n in (16, 100, 1000)
    ]
    shares = [f"{100 * counts['share']:.1f}% with {n:,} prompts" for n, counts in covered]
    return (
        f"in {null['studies']:,} studies of 100 prompts and one model in which no strategy has any "
        f"effect, this table reports a difference in {share['hialign: comparisons']} of them and "
        f"the rank ranges in {share['hialign: ranks']}. The same tests without correction do in "
        f"{share['paired, no correction']}, and whoever calls the highest mean the best does in "
        f"{share['the highest mean is called best']}. "
        f"95% intervals contain a true difference in {joined(shares)}."
    )


def _join(values: set[Any]) -> str:
    return ", ".join(sorted(str(v) for v in values)) or NONE


def _money(study: Study) -> str:
    paid = run_tables.cost(study)
    if study.judge is None:
        return "none, because there is no judge"
    if study.judge.backend == "local":
        return "none, because the judge runs on the same computer"
    return "not known, because the study states no prices" if paid is None else f"{paid:.2f} USD"


def _number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return NONE if pd.isna(value) else f"{100 * value:.0f}%"
