"""The numbers and sentences that the book's prose uses, from the records of a study.

Every fact is a short text; what has not been measured reads "not measured", so that the prose of a
partial study stays true.
"""

import datetime
from typing import Any

import pandas as pd

from hialign.records import frames, provenance
from hialign.records.files import read_json
from hialign.report import paper, run_tables
from hialign.report.audit import statements
from hialign.report.claims import ledger
from hialign.report.scores import overall
from hialign.report.sentences import joined, overall_finding, reward_finding, tax_finding
from hialign.report.where import concordance
from hialign.study import paths
from hialign.study.blocks import OBJECTIVES, STRATEGIES, strategy_of
from hialign.study.study import Study

NONE = "not measured"
VERDICTS = {
    "n_supported": ledger.SUPPORTED,
    "n_contradicted": ledger.CONTRADICTED,
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
        "where_answer": " ".join(concordance.answer(study, m.label) for m in study.models),
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
    runs = frames.manifests(study)
    done = runs[runs["status"] == "done"]
    trained = done[done["block"] != "base"]
    pairs = {str(int(n)) for n in trained["pairs"].dropna()}
    steps = {str(int(n)) for n in trained["steps"].dropna()}
    responses = frames.responses(study)
    first = done.iloc[0] if len(done) else None
    found = {
        "n_cells_done": str(len(done)),
        "n_cells_failed": str(int((runs["status"] == "failed").sum())),
        "n_train_pairs": _join(pairs) if pairs else f"{study.preferences.train or 'all'}",
        "steps": _join(steps),
        "device": _join(set(done["device"].dropna())),
        "training_minutes_total": f"{frames.training_seconds(trained) / 60:.1f}"
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
    table = frames.evaluations(study)
    moved = frames.divergences(study)
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
    found["overall_finding"] = reward_finding(study, best, found)
    return found


def _judge(study: Study) -> dict[str, str]:
    found = dict.fromkeys(
        (
            *("best_strategy_overall", "best_overall", "base_overall", "judge_failed"),
            *("tax_finding",),
        ),
        NONE,
    )
    from hialign.report import judge_tables

    if study.judge is None:
        found |= {"judge_name": "none", "judge_model": "no judge", "judge_agreement": NONE}
        found["judge_injection"] = NONE
        return found | {"judge_finding": "This study has no judge."}
    found |= {"judge_name": study.judge.name, "judge_model": study.judge.model}
    found["judge_agreement"] = agreement_text(study)
    found["judge_injection"] = judge_tables.gains(study)
    scores = overall(study)
    means = scores.groupby("block").score.mean().dropna()
    if means.empty:
        return found | {"judge_finding": "No response of this study has been judged yet."}
    best = str(means.idxmax())
    found |= {
        "best_strategy_overall": strategy_of(best),
        "best_overall": _number(means[best], 3),
        "base_overall": _number(means.get("base", float("nan")), 3),
        "judge_failed": str(int(scores["score"].isna().sum())),
        "tax_finding": tax_finding(study),
    }
    text = overall_finding(study)
    agreement = found["judge_agreement"]
    if agreement == NONE:
        text += " How far this judge agrees with people has not been measured."
    else:
        text += f" This judge agrees with people on {agreement}; guessing would agree on half."
    return found | {"judge_finding": text}


def _claims(study: Study) -> dict[str, str]:
    found = [finding.verdict for finding in ledger.findings(study)]
    counts = {name: found.count(verdict) for name, verdict in VERDICTS.items()}
    return {"n_claims": str(len(found))} | {name: str(n) for name, n in counts.items()}


def agreement_text(study: Study) -> str:
    """The judge's measured agreement with human labels, in one phrase."""
    from hialign.report import judge_tables

    return str(judge_tables.judge_agreement(study).attrs.get("text", NONE))


def _paper_best() -> str:
    best = max(paper.rows("table_2"), key=lambda row: float(row["mean"]))
    return f"{best['strategy']} ({best['mean']:.3f})"


def _shared(study: Study) -> str:
    """What a study has in common with v2's, without which numbers cannot be compared."""
    design, models = paper.load_paper()["design"], {m["name"] for m in paper.load_paper()["models"]}
    n = sum(model.label in models for model in study.models)
    judge = study.judge.model.casefold() if study.judge else ""
    known = {
        f"{n} of its {len(models)} models": n > 0,
        "its data set": study.preferences.source == design["data_set"]["value"],
        "its judge": judge.startswith(design["judge"]["value"].casefold()),
    }
    shared = [text for text, has in known.items() if has]
    return joined(shared) if shared else "neither a model, nor the data set, nor the judge"


def _null_studies() -> str:
    """What benchmarks/null_studies.py found, in words; in an installed wheel its results are not."""
    file = paths.root() / "benchmarks" / "results" / "null_studies.json"
    if not file.is_file():
        return f"{NONE} here (benchmarks/null_studies.py does)."
    content = read_json(file)
    null, text = content["scenarios"]["null, 100 prompts, 1 models"], []
    share = {way: f"{100 * found['share']:.1f}%" for way, found in null["ways"].items()}
    text.append(
        f"in {null['studies']:,} studies of 100 prompts and one model in which no strategy has any "
        f"effect, this table reports a difference in {share['hialign: comparisons']} of them and "
        f"the rank ranges in {share['hialign: ranks']}; the same tests without correction do in "
        f"{share['paired, no correction']}, and a highest mean to call the best is there in "
        f"{share['the highest mean is called best']}."
    )
    covered = {
        n: content["coverage"][f"{n} prompts, 1 models"]["ways"]["difference: BCa (hialign)"]
        for n in (16, 100, 1000)
    }
    shares = [f"{100 * covered[n]['share']:.1f}% with {n:,} prompts" for n in covered]
    text.append(f"95% intervals of a true difference hold it in {joined(shares)}.")
    return " ".join(text)


def _join(values: set[Any]) -> str:
    return ", ".join(sorted(str(v) for v in values)) or NONE


def _money(study: Study) -> str:
    paid = run_tables.cost(study)
    if study.judge is None:
        return "nothing, there is no judge"
    if study.judge.backend == "local":
        return "nothing, the judge runs on the same computer"
    return "not known, the study states no prices" if paid is None else f"{paid:.2f} USD"


def _number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return NONE if pd.isna(value) else f"{100 * value:.0f}%"
