"""Does the gradient probe find where a preference was planted? Random models with hidden teachers.

    python benchmarks/planted_gradients.py [--models 20] [--out benchmarks/results/planted_gradients.json]

A base model has random weights. A teacher is the base with small random changes in the attention of
one third of its layers, or of all layers, each as large as the others in what they do to margins. Of
two random responses, the teacher's preferred one is that whose log-probability it raises more
(the implicit reward of DPO). The labels of a null model are chance. From gradients of the base model
alone the probe then says where the preference is. The families are in no test of the project.

The same command with the same `--out` goes on where it was stopped.
"""

import argparse
import copy
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hialign import load_model
from hialign.engine import environment
from hialign.engine.decoder import pair_log_probs
from hialign.engine.modules import decoder_layers, target_modules
from hialign.engine.tokens import tokenize_pair
from hialign.probes.gradients import signal
from hialign.probes.gradients.meter import Grams, Meter
from hialign.probes.gradients.sketch import Sketch
from hialign.probes.pairs import ProbePair
from hialign.records.files import read_json, write_json
from hialign.statistics import gram
from hialign.statistics.intervals import wilson
from hialign.study.blocks import split_layers

FAMILIES = ("granite", "starcoder2", "smollm3", "arcee")
LAYERS, PAIRS = 9, 400
SIZES = (60, 100, 200, 400)  # pairs that the probe is given
CHANGES = (0.02, 0.1)  # of the standard deviation of a matrix's weights
CHANCE = 20  # labellings by chance of each null model
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
WORDS = ["rain", "bread", "compass", "the", "moon", "chess", "iron", "orchard", "tea", "is", "a"]
WORDS += [
    "of",
    "and",
    "very",
    "cold",
    "bright",
    "old",
    "river",
    "never",
    "always",
    "green",
    "stone",
]
THIRDS = ("local", "mid", "global")
# What is counted: the third that is found (or none), the most probable account, the most probable third,
# and the third with the largest signal, and with the largest one over chance
SAID = ("found", "likeliest", "likeliest_third", "most_signal", "most_over_chance")


def base_model(family: str, seed: int) -> Any:
    """A tiny model with random weights, as the `random:` models of the package."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    sizes |= {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, initializer_range=0.2, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


def made_up_pairs(tokenizer: Any, seed: int) -> list[ProbePair]:
    """Pairs of random words."""
    rng = random.Random(seed)

    def turn(role: str, least: int, most: int) -> list[dict[str, str]]:
        words = [rng.choice(WORDS) for _ in range(rng.randint(least, most))]
        return [{"role": role, "content": " ".join(words)}]

    pairs = []
    for i in range(PAIRS):
        row: dict[str, Any] = {"prompt": turn("user", 2, 4)}
        row |= {side: turn("assistant", 4, 9) for side in ("chosen", "rejected")}
        tokens = tokenize_pair(tokenizer, row)
        pairs.append(ProbePair(str(i), "preference", str(i), tokens))
    return pairs


def margins(model: Any, pairs: Sequence[ProbePair]) -> np.ndarray:
    """log p(first) - log p(second) of each pair (nats)."""
    values = np.array(pair_log_probs(model, [pair.tokens for pair in pairs], 0, packed=True))
    return np.asarray(values[:, 0] - values[:, 1])


def taught(
    model: Any, pairs: Sequence[ProbePair], layers: range, change: float, seed: int
) -> np.ndarray:
    """How far a teacher with changes in some layers moves each pair's margin."""
    teacher, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for name in target_modules(teacher, layers, PROJECTIONS):
        weight = teacher.get_submodule(name).weight
        noise = torch.randn(weight.shape, generator=generator)
        weight.data += change * weight.data.std() * noise
    return np.asarray(margins(teacher, pairs) - margins(model, pairs))


def labellings(model: Any, pairs: Sequence[ProbePair], seed: int) -> dict[str, np.ndarray]:
    """By what made them, labels of all pairs: 1 if the first response is preferred, else -1."""
    labels: dict[str, np.ndarray] = {}
    for change in CHANGES:
        moved = {
            third: taught(model, pairs, inside, change, seed + 1)
            for third, inside in split_layers(LAYERS).items()
        }
        for third, values in moved.items():
            labels[f"{third}, {change}"] = np.sign(values)
        alike = np.sum([values / values.std() for values in moved.values()], axis=0)
        labels[f"all, {change}"] = np.sign(alike)
    rng = np.random.default_rng(seed)
    for number in range(CHANCE):
        labels[f"none, {number}"] = rng.choice([-1.0, 1.0], len(pairs))
    return labels


def measured(family: str, seed: int) -> dict[str, Any]:
    """What the probe says of one model: by number of pairs and labelling."""
    _, tokenizer = load_model("random:llama:2")
    model, pairs = base_model(family, seed), made_up_pairs(tokenizer, seed)
    began = time.perf_counter()
    meter = Meter(model)
    _, grams = meter.compare(pairs, 0.1, Sketch(None))
    prefix, _ = decoder_layers(model)
    names = target_modules(model, range(LAYERS), PROJECTIONS)
    tuned = sorted({name.removeprefix(f"{prefix}.").partition(".")[2] for name in names})
    labels = labellings(model, pairs, seed)
    rows = []
    for size in SIZES:
        some = [{m: of[m][:size, :size] for m in tuned} for of in grams]
        rows += _said(some, size, labels, meter.sizes, tuned)
    row = {"family": family, "seed": seed, "seconds": time.perf_counter() - began}
    return row | {"rows": rows}


def _said(
    grams: Grams, size: int, labels: dict[str, np.ndarray], sizes: Any, tuned: list[str]
) -> list[dict[str, Any]]:
    """By what made the labels: how often what is said of them (`SAID`)."""
    one = signal.signal_of("made up", grams, [str(i) for i in range(size)], sizes, tuned)
    accounts = signal.accounts_of(one)
    of_pairs = np.stack([values[:size] for values in labels.values()])
    logs = accounts.log_evidence(of_pairs)
    thirds = np.stack([one.layers[inside].sum(0) for inside in one.blocks.values()])
    over = one.layers / gram.deviation(one.layers)[:, None, None]
    over = np.stack([over[inside].sum(0) for inside in one.blocks.values()])
    rows: dict[str, dict[str, Any]] = {}
    for i, (name, found) in enumerate(zip(labels, accounts.found(of_pairs), strict=True)):
        sign = of_pairs[i : i + 1]
        said = {"found": found, "likeliest": accounts.names[int(np.argmax(logs[i]))]}
        said["likeliest_third"] = THIRDS[int(np.argmax(logs[i, :3]))]
        said["most_signal"] = THIRDS[int(np.argmax(gram.flipped(thirds, sign)[0]))]
        said["most_over_chance"] = THIRDS[int(np.argmax(gram.flipped(over, sign)[0]))]
        kind = "none" if name.startswith("none") else name
        empty = {"pairs": size, "made_in": kind} | {what: {} for what in SAID}
        row = rows.setdefault(kind, empty)
        for what, value in said.items():
            row[what][value] = row[what].get(value, 0) + 1
    return list(rows.values())


def summary(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By number of pairs and what made the labels: how often what was said, over all models."""
    every = [row for model in models for row in model["rows"]]
    lines = []
    for pairs, kind in dict.fromkeys((row["pairs"], row["made_in"]) for row in every):
        rows = [row for row in every if (row["pairs"], row["made_in"]) == (pairs, kind)]
        counts: dict[str, Counter[str]] = {what: Counter() for what in SAID}
        for row in rows:
            for what in SAID:
                counts[what].update(row[what])
        truth, n = kind.partition(",")[0], counts["found"].total()
        wrong = n - counts["found"][""] - counts["found"][truth]
        line = {"pairs": pairs, "made_in": kind, "n": n, "found_there": counts["found"][truth]}
        line |= {"found_elsewhere": wrong, "found_elsewhere_interval": wilson(wrong, n)}
        lines.append(line | {what: dict(sorted(counts[what].items())) for what in SAID})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=20)
    default = Path(__file__).parent / "results" / "planted_gradients.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    done = read_json(args.out)["models"] if args.out.is_file() else []
    for seed in range(len(done), args.models):
        done.append(measured(FAMILIES[seed % len(FAMILIES)], seed))
        content = {"pairs": PAIRS, "layers": LAYERS, "families": list(FAMILIES)}
        content |= {"summary": summary(done), "models": done, **environment.environment()}
        write_json(args.out, content)
        print(f"{seed + 1} of {args.models}: {done[-1]['seconds']:.0f} s", flush=True)
    for line in summary(done):
        found = f"{line['found_there']} and {line['found_elsewhere']} of {line['n']}"
        print(f"{line['pairs']:4} pairs, {line['made_in']:12}: found there and elsewhere {found}")


if __name__ == "__main__":
    main()
