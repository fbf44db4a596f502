"""What learning rate, beta and seed change: each setting trained on a part of the pool, tested on another.

    python benchmarks/settings_table.py STUDY [--rates 3e-4 1e-3 3e-3] [--betas 0.05 0.3] [--seeds 0 1]
        [--train 160] [--validate 200] [--out benchmarks/results/<study>_settings.json]

The held-out pairs of the study are not looked at. Pairs for validation are drawn from the pool by
conversation, and training pairs from what is left of it. Each setting is one pass over all blocks of
the study that no probe chooses. The first rate and the study's own beta are the reference of the
others. Every finished setting is written at once, and the same command goes on from there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from hialign.engine import dpo, environment
from hialign.engine.measures import choice
from hialign.engine.models import depth_of, identity, load_model
from hialign.preferences.formats import conversation_id
from hialign.preferences.pairs import load_pairs
from hialign.probes.pairs import fitting
from hialign.probes.tuned import probe_training, tuned_blocks
from hialign.records.files import write_json
from hialign.statistics.log_loss import gains
from hialign.study.blocks import probe_of
from hialign.study.study import Cell, load_study


def split_pool(pool: list[dict[str, Any]], validate: int) -> tuple[list[Any], list[Any]]:
    """Training and validation pairs of the pool, which share no conversation."""
    order = np.random.default_rng(0).permutation(len(pool))
    by_conversation: dict[str, list[dict[str, Any]]] = {}
    for i in order:
        by_conversation.setdefault(conversation_id(pool[i]["prompt"]), []).append(pool[i])
    train: list[Any] = []
    held: list[Any] = []
    for group in by_conversation.values():
        (held if len(held) < validate else train).extend(group)
    return train, held


def measured(margins: dict[str, list[float]], conversations: list[str]) -> dict[str, Any]:
    """By block: accuracy, mean margin and gain in log loss, each with its standard error."""
    rows = {}
    for block, values in margins.items():
        data = np.array(values)
        figures = {"accuracy": data > 0, "margin": data, "gain": gains(data, conversations)}
        rows[block] = {
            name: [float(np.mean(of)), float(np.std(of, ddof=1) / np.sqrt(len(of)))]
            for name, of in figures.items()
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--betas", type=float, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=160)
    parser.add_argument("--validate", type=int, default=200)
    parser.add_argument("--blocks", nargs="*", default=None)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    study = load_study(chosen.study).at()
    out = chosen.out or Path(__file__).parent / "results" / f"{study.name}_settings.json"
    cell = Cell(study, study.models[0], "base")
    depth = depth_of(cell.model)
    names = chosen.blocks or [b for b in study.blocks if b != "base" and not probe_of(b)]
    everything = study.preferences.model_copy(update={"train": None, "draw": None})
    train, held = split_pool([dict(p) for p in load_pairs(everything).train], chosen.validate)
    model, tokenizer = load_model(cell.model)
    weights = identity(cell.model)
    longest = study.training.max_length
    validation = fitting(held, tokenizer, longest, None)
    by_id = {str(pair["id"]): conversation_id(pair["prompt"]) for pair in held}
    conversations = [by_id[pair.id] for pair in validation]
    settings = [(rate, study.training.beta, seed) for rate in chosen.rates for seed in chosen.seeds]
    settings += [(chosen.rates[0], beta, seed) for beta in chosen.betas for seed in chosen.seeds]
    about = {"study": study.name, "train": chosen.train, "validation": len(validation)}
    done = json.loads(out.read_text())["rows"] if out.is_file() else []
    for rate, beta, seed in settings:
        key = {"learning_rate": rate, "beta": beta, "seed": seed}
        if any(row["setting"] == key for row in done):
            continue
        update = key | {"learning_rates": {}}
        training = probe_training(study.training).model_copy(update=update)
        of_seed = study.model_copy(update={"training": training})
        choices = {b: choice(Cell(of_seed, cell.model, b), depth) for b in names}
        drawn = np.random.default_rng([seed, 2]).permutation(len(train))[: chosen.train]
        pairs = [train[i] for i in drawn]
        prepared = dpo.prepare(model, tokenizer, pairs, training, why="")  # type: ignore[arg-type]
        with tuned_blocks(model, tokenizer, prepared, choices, training, weights) as tuned:
            margins = tuned.margins(validation, beta, f"rate {rate:g}, beta {beta:g}, seed {seed}")
            losses = {block: values[-1] for block, values in tuned.losses.items()}
        done.append(
            {"setting": key, "final_loss": losses, "blocks": measured(margins, conversations)}
        )
        write_json(out, about | {"rows": done} | environment.environment())
        for block, row in done[-1]["blocks"].items():
            figures = ", ".join(f"{name} {mean:.4f} ± {se:.4f}" for name, (mean, se) in row.items())
            print(f"rate {rate:g}, beta {beta:g}, seed {seed}, {block}: {figures}", flush=True)


if __name__ == "__main__":
    main()
