"""ILA: which matrices' changes matter for alignment? (a reconstruction, see `gates`)

Every attention matrix gets an adapter. Once the adapters are trained, gates on their changes are
learned on the same pairs, and rank matrices and layers. This is done for each data set, loss and
seed. Is the ranking stable over seeds, and do data sets agree on it beyond chance (`overlap`)? What
does it cost to tune only what ranks high (`interventions`)?

The paper's setting is SFT. DPO is added by this companion.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import linregress

from hialign.engine import dpo
from hialign.engine.models import identity
from hialign.engine.reference import Reference
from hialign.preferences.formats import Pair
from hialign.preferences.llmbar import SUBSETS, load_llmbar
from hialign.preferences.pairs import load_pairs
from hialign.probes.ila.gates import (
    Loss,
    Subject,
    change_of,
    learn_gates,
    nothing_in,
    subject_of,
    tuned_sft,
)
from hialign.probes.ila.interventions import interventions
from hialign.probes.ila.overlap import overlaps, ranked, stability
from hialign.probes.pairs import fitting, held_out
from hialign.probes.record import Parts, measured, probe_settings
from hialign.probes.tuned import tuned_blocks
from hialign.statistics.margins import rounded
from hialign.study import paths
from hialign.study.blocks import OBJECTIVES, Choice, share_of
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.probe_settings import IlaSettings
from hialign.study.settings import PreferenceSettings
from hialign.study.study import Cell


def ila(cell: Cell) -> dict[str, Any]:
    """The record of the ILA probe of the cell's model, measured now unless it is there.

    Fields of the record, beside those of every record:

    - `matrices`: `name`, `layer` and `parameters` (of its adapter) of each matrix. All other fields
      name a matrix by its place in this list.
    - `runs`: one for each `dataset`, `loss` and `seed`, with the `gates` s, the `ranking` (best first,
      None if `nothing` says why), the norm of each matrix's `change`, `training_loss` and `gate_loss`
      by step (nats), and whether training is `settled`.
    - `rankings`: for each `dataset` and `loss`, `scores`, `ranking` and `layer_scores` from the mean
      over `seeds`, and the `stability` over seeds.
    - `overlaps`: see `overlap.overlaps`.
    - `interventions`: see `interventions.interventions`.
    - `layer_scores`: those of data set `study` under DPO, or under SFT if DPO is not run. None if
      `nothing` says why.

    Raises:
        HialignError: for a data set that cannot be read or has fewer than two pairs that fit, and for
            a model whose blocks cannot be trained in one pass.
    """
    settings = probe_settings(cell).ila or IlaSettings()
    study = load_pairs(cell.study.preferences)
    rows = {name: rows_of(name, cell) for name in settings.datasets}
    came_from = {
        "model": identity(cell.model),
        "preferences": study.fingerprint,
        "datasets": {name: json_sha256(pairs) for name, pairs in rows.items()},
    }
    return measured(cell, "ila", came_from, lambda parts: _compute(cell, settings, rows, parts))


def rows_of(name: str, cell: Cell) -> list[Pair]:
    """The training pairs of a data set of `ila.datasets`, in an order drawn from the study's seed."""
    if name == "study":
        return [dict(p) for p in load_pairs(cell.study.preferences).train]
    seed = cell.study.preferences.seed
    if name in ("builtin", *OBJECTIVES):
        pairs = load_pairs("builtin", train=None, evaluation=None, seed=seed).train
        return [dict(p) for p in pairs if name in ("builtin", p["objective"])]
    folder = Path(name).expanduser()
    folder = folder if folder.is_absolute() else paths.root() / folder
    subsets = [
        key
        for key, theirs in SUBSETS.items()
        if (folder / theirs / "dataset.json").is_file() or (folder / f"{key}.json").is_file()
    ]
    if subsets:
        return _llmbar(folder, subsets, seed)
    other = PreferenceSettings(source=name, train=None, evaluation=1, seed=seed)
    return [dict(p) for p in load_pairs(other).train]


def _llmbar(folder: Path, subsets: Sequence[str], seed: int) -> list[Pair]:
    """The pairs of some subsets of LLMBar, in an order drawn from `seed`."""
    pairs: list[Pair] = []
    for subset in subsets:
        for number, (chosen, rejected) in enumerate(load_llmbar(folder, subset)):
            pairs.append(
                {
                    "id": f"llmbar-{subset}-{number}",
                    "objective": "preference",
                    "prompt": [{"role": "user", "content": chosen["prompt"]}],
                    "chosen": [{"role": "assistant", "content": chosen["response"]}],
                    "rejected": [{"role": "assistant", "content": rejected["response"]}],
                }
            )
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]


# --- the record ----------------------------------------------------------------------------------


def _compute(
    cell: Cell, settings: IlaSettings, rows: Mapping[str, list[Pair]], parts: Parts
) -> dict[str, Any]:
    subject = subject_of(cell)
    taken = {name: _taken(subject, name, pairs, settings.train) for name, pairs in rows.items()}
    tested, _ = held_out(cell, subject.tokenizer, settings.pairs)  # refuses before it trains
    prepared = _prepared(subject, taken)
    sizes = subject.parameters(cell.study.training.lora_rank)
    matrices = [
        {"name": name, "layer": layer, "parameters": size}
        for name, layer, size in zip(subject.names, subject.layers, sizes, strict=True)
    ]
    runs = [
        {"dataset": name, "loss": loss, "seed": seed}
        | parts.part(
            f"{number}-{loss}-{seed}",
            partial(run, subject, prepared[name], loss, seed, settings),
        )
        for number, name in enumerate(settings.datasets)
        for loss in settings.losses
        for seed in settings.seeds
    ]
    percents = (100 - settings.freeze, max(settings.top))
    rankings = [
        ranking_of(subject, runs, name, loss, percents[0])
        for name in settings.datasets
        for loss in settings.losses
    ]
    loss = "dpo" if "dpo" in settings.losses else "sft"
    own = next(r for r in rankings if (r["dataset"], r["loss"]) == ("study", loss))
    return {
        "matrices": matrices,
        "runs": runs,
        "rankings": rankings,
        "overlaps": overlaps(runs, settings, percents, probe_settings(cell)),
        "interventions": parts.part(
            "interventions",
            lambda: interventions(subject, own, prepared["study"], tested, settings),
        ),
        "layer_scores": own["layer_scores"],
        "nothing": own["nothing"],
    }


def _prepared(subject: Subject, taken: Mapping[str, list[Pair]]) -> dict[str, dpo.TrainingPairs]:
    """The pairs of each data set, ready for all trainings.

    Raises HialignError for a model whose blocks cannot be trained in one pass: the interventions,
    which come last, need that.
    """
    prepared: dict[str, dpo.TrainingPairs] = {}
    why: str | None = None
    for name, rows in taken.items():
        pairs = Dataset.from_list(rows)
        ready = dpo.prepare(subject.model, subject.tokenizer, pairs, subject.training(0), why)
        prepared[name], why = ready, ready.why_stock
    if why:
        raise HialignError(
            f"the ILA probe needs a model whose blocks can be trained in one pass: {why}; "
            "set probes.ila to null, or training.disable_dropout to true if it is dropout"
        )
    return prepared


def _taken(subject: Subject, name: str, rows: list[Pair], wanted: int) -> list[Pair]:
    """The first `wanted` pairs that training does not cut."""
    longest = subject.cell.study.training.max_length
    fit = {p.id for p in fitting(rows, subject.tokenizer, longest, wanted)}
    if len(fit) < 2:
        raise HialignError(
            f"ila.datasets: of the {len(rows)} pairs of {name!r} only {len(fit)} have at most "
            f"{longest} tokens: raise training.max_length, or leave it out"
        )
    return [row for row in rows if row["id"] in fit]


def run(
    subject: Subject, prepared: dpo.TrainingPairs, loss: str, seed: int, settings: IlaSettings
) -> dict[str, Any]:
    """Train an adapter for every matrix, then learn its gates: one entry of `runs`."""
    model, training = subject.model, subject.training(seed)
    pairs = prepared.pairs.tokens
    choice = Choice(tuple(range(subject.depth)))
    if loss == "dpo":
        reference = Reference(model, subject.weights, pairs)
        dpo.fill_reference(reference, model, subject.tokenizer, packed=True)  # training reads it
        objective = Loss(pairs, training.beta, [both for both in reference.values if both])
        trained = tuned_blocks(
            model, subject.tokenizer, prepared, {"full": choice}, training, subject.weights
        )
    else:
        objective = Loss(pairs, training.beta)
        trained = tuned_sft(model, pairs, choice.layers, subject.names, training)
    with trained as adapted:
        change = change_of(adapted.decoder_of, adapted.strategies["full"].adapter, subject.names)
        s, gate_loss = learn_gates(adapted, subject.names, objective, settings, seed, "gates")
        training_loss = list(adapted.losses["full"])
    nothing = nothing_in(change, s)
    gates = rounded(s)
    return {
        "pairs": len(pairs),
        "gates": gates,
        "ranking": None if nothing else ranked(gates),
        "nothing": nothing,
        "change": rounded(change),
        "training_loss": rounded(training_loss),
        "settled": settled(training_loss),
        "gate_loss": rounded(gate_loss),
    }


def settled(losses: Sequence[float]) -> dict[str, Any]:
    """Whether the losses of a training have stopped falling in its last third.

    `slope` (nats per step) and `p`, one-sided, are those of a line through the last third. The losses
    still fall if p is below 0.05. `settled` is None, with the `reason`, if the last third has fewer
    than three steps.
    """
    last = np.asarray(losses[-(-2 * len(losses) // 3) :])
    if len(last) < 3:
        return {"settled": None, "slope": None, "p": None, "reason": "fewer than 9 training steps"}
    if np.ptp(last) == 0:
        return {"settled": True, "slope": 0.0, "p": 1.0, "reason": None}
    line = linregress(range(len(last)), last, alternative="less")
    p = float(line.pvalue)
    return {"settled": p >= 0.05, "slope": float(line.slope), "p": p, "reason": None}


def ranking_of(
    subject: Subject, runs: Sequence[Mapping[str, Any]], name: str, loss: str, percent: int
) -> dict[str, Any]:
    """The mean of a data set's gates under a loss, over the seeds that rank anything."""
    own = [r for r in runs if (r["dataset"], r["loss"]) == (name, loss)]
    gates = [r["gates"] for r in own if r["nothing"] is None]
    entry = {"dataset": name, "loss": loss, "seeds": len(gates)}
    if not gates:
        keys = ("scores", "ranking", "layer_scores", "stability")
        return entry | dict.fromkeys(keys) | {"nothing": own[0]["nothing"]}
    scores = np.mean(gates, axis=0)
    layers = np.asarray(subject.layers)
    return entry | {
        "scores": rounded(scores.tolist()),
        "ranking": ranked(rounded(scores.tolist())),
        "layer_scores": rounded([float(scores[layers == i].mean()) for i in range(subject.depth)]),
        "stability": stability(gates, share_of(percent, len(scores))),
        "nothing": None,
    }
