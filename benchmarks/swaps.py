"""Do swaps of layers find what was planted, and nothing where nothing is? On models made for it.

    python benchmarks/swaps.py [--seeds 20] [--own-words 0.9] [--pairs 60] [--out FILE.json]

Each seed makes a tiny random model of a family that no test of hialign uses, pairs whose responses
come from two distributions of tokens, and adapters on all of its layers. Every adapted matrix changes
by the same share of its norm. The adapters are

- `planted`: in one third of the layers a step against the gradient of the DPO loss on training pairs,
  and random directions of equal norm in all others.
- `null`: random directions in all layers.
- `shuffled`: the step in all layers, on training pairs whose labels were drawn at random.

The swaps are measured on other pairs, beside a few more random adapters, and the rule of
`hialign.report.where.concordance` is asked which third they point to. Beside it stands the measure that
had this vote before: the recovery by layers' contributions, by the rule without a null.

How much there is to learn depends on `--own-words`, the share of words that are not drawn at random. The
same command with the same `--out` goes on where it was stopped.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from hialign.engine import environment
from hialign.engine.decoder import Decoder, layouts
from hialign.engine.modules import target_modules
from hialign.engine.tokens import TokenPair, Tokens
from hialign.probes.pairs import ProbePair
from hialign.probes.patching.effects import swap_record
from hialign.probes.patching.nulls import randomized
from hialign.probes.patching.recovery import margins
from hialign.probes.patching.rows import rows
from hialign.probes.patching.runs import Runs, Side, run_row
from hialign.probes.patching.swaps import swap_row
from hialign.records.files import read_json, write_json
from hialign.report.where import concordance, swaps
from hialign.report.where.concordance import Measure
from hialign.statistics.intervals import wilson
from hialign.statistics.margins import gained
from hialign.study.blocks import split_layers

FAMILIES = ("arcee", "granite", "starcoder2", "exaone4", "hunyuan_v1_dense")  # in no test
SEEDS_OF_A_MODEL = 4
CONDITIONS = ("planted", "null", "shuffled")
DEPTH, WORDS, SPECIAL = 9, 96, 3
TRAINED, DRAWS = 256, 4
SHARE = 0.05  # of each matrix's norm, by which it changes
ROW = 4096


# --- models with something in them -----------------------------------------------------------------


def model_of(family: str, seed: int, depth: int = DEPTH) -> Any:
    """A tiny random model. Its embeddings are large, so that no layer overwrites the stream."""
    sizes = {"vocab_size": WORDS + SPECIAL, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": depth, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1}
    config = AutoConfig.for_model(
        family, **sizes, eos_token_id=2, initializer_range=0.2, tie_word_embeddings=False
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.get_input_embeddings().weight.mul_(10)
    return model


@dataclass(frozen=True)
class Language:
    """Two distributions of tokens, which are in part uniform: of chosen and of rejected responses."""

    chosen: np.ndarray
    rejected: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, own_words: float) -> "Language":
        one, other = rng.dirichlet(np.full(WORDS, 0.3), size=2)
        rest = (1 - own_words) / WORDS
        return cls(own_words * one + rest, own_words * other + rest)

    def pairs(self, rng: np.random.Generator, count: int) -> list[TokenPair]:
        """Pairs of unequal lengths, each with a prompt of its own."""

        def words(share: np.ndarray | None = None) -> tuple[int, ...]:
            drawn = rng.choice(WORDS, rng.integers(6, 14), p=share)
            return tuple((SPECIAL + drawn).tolist())

        def pair() -> TokenPair:
            prompt = words()
            chosen, rejected = (prompt + words(p) for p in (self.chosen, self.rejected))
            return Tokens(chosen, len(prompt)), Tokens(rejected, len(prompt))

        return [pair() for _ in range(count)]


def adapted(model: Any) -> tuple[Any, list[list[Any]]]:
    """The model with LoRA adapters on the attention of all layers, and these by layer."""
    depth = model.config.num_hidden_layers
    names = target_modules(model, range(depth), ["q_proj", "k_proj", "v_proj", "o_proj"])
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names)).eval()
    size = len(names) // depth
    modules = [model.get_submodule(name) for name in names]
    return tuned, [modules[i * size : (i + 1) * size] for i in range(depth)]


def fill(
    model: Any,
    modules: list[list[Any]],
    stepped: Sequence[int],
    pairs: Sequence[TokenPair],
    seed: int,
) -> None:
    """Let the layers `stepped` change against the gradient of DPO's first step, and all others at random."""
    generator = torch.Generator().manual_seed(seed)
    gradients = _gradients(model, [modules[layer] for layer in stepped], pairs)
    for layer, of_layer in enumerate(modules):
        for module in of_layer:
            a, b = (getattr(module, f"lora_{name}")["default"].weight for name in "AB")
            if layer in stepped:
                u, values, v = torch.linalg.svd(-gradients[module])
                new_a, new_b = v[: len(a)], u[:, : len(a)] * values[: len(a)]
            else:
                new_a, new_b = (torch.randn(x.shape, generator=generator) for x in (a, b))
            length = (module.scaling["default"] * new_b @ new_a).norm()
            a.data = new_a.clone()
            b.data = new_b * SHARE * module.get_base_layer().weight.norm() / length


def _gradients(
    model: Any, modules: list[list[Any]], pairs: Sequence[TokenPair]
) -> dict[Any, torch.Tensor]:
    """The gradient of minus the summed margin, which is DPO's at its first step but for a factor."""
    weights = {module: module.get_base_layer().weight for of in modules for module in of}
    if not weights:
        return {}
    for module, weight in weights.items():
        module.lora_B["default"].weight.data.zero_()
        weight.requires_grad_(True)
    with Decoder(model) as decoder:
        for _, layout in layouts(pairs, decoder.device, ROW):
            top = decoder.run(layout, [decoder.depth])[decoder.depth]
            chosen, rejected = decoder.log_probs(top, layout).view(-1, 2).T
            (rejected - chosen).sum().backward()
    found = {}
    for module, weight in weights.items():
        found[module], weight.grad = weight.grad.clone(), None
        weight.requires_grad_(False)
    return found


# --- what they are measured by ---------------------------------------------------------------------


def measured(model: Any, tuned: Any, pairs: Sequence[TokenPair], draws: int, seed: int) -> Any:
    """The record of the swaps, and how far each layer's contribution brings a pair (pairs x layers)."""
    probed = [ProbePair(str(i), "preference", str(i), pair) for i, pair in enumerate(pairs)]
    with Decoder(model) as decoder:
        sides = {"base": Side(decoder, tuned.disable_adapter), "tuned": Side(decoder)}
        planned = list(rows(pairs, decoder.device, ROW))
        runs, nulls = Runs.joined([swap_row(sides, row) for row in planned]), {}
        for number in range(1_000 * seed, 1_000 * seed + draws):
            with randomized(sides, number):
                nulls[number] = Runs.joined([swap_row(sides, row, ["layers"]) for row in planned])
        patched = Runs.joined([run_row(sides, row, ["contribution"], 1) for row in planned])
    depth = model.config.num_hidden_layers
    record = {"depth": depth, "swaps": swap_record(runs, nulls, probed, 100, seed)}
    record["layer_scores"] = swaps.effects(record).mean(axis=0).tolist()
    base, after = (margins(patched.unpatched[s], probed)["summed"] for s in ("base", "tuned"))
    into_base = patched.patched["tuned_into_base"]["contribution"]
    by_layer = [margins(values, probed)["summed"] for values in into_base]
    return record, gained(by_layer, base, after).T


def pointed(record: Mapping[str, Any], contributions: np.ndarray) -> dict[str, str]:
    """The third that the swaps point to, and the one that the recoveries did."""
    swapped = concordance.READ["patching"](dict(record))
    assert isinstance(swapped, Measure)
    prompts = tuple(swaps.prompts(dict(record)))
    before = Measure(
        "recovery", tuple(contributions.mean(axis=0)), draws=contributions, prompts=prompts
    )
    every = {"swaps": swapped, "recovery": before}
    return {
        name: concordance._points(measure, measure.shares(), measure.resampled())
        for name, measure in every.items()
    }


def tried(
    seed: int,
    condition: str,
    own_words: float = 0.9,
    pairs: int = 60,
    draws: int = DRAWS,
    depth: int = DEPTH,
) -> dict[str, Any]:
    """One adapter of one seed: what was planted, what was named, and the leads in nats."""
    number = seed // SEEDS_OF_A_MODEL
    family, third = FAMILIES[number % len(FAMILIES)], list(split_layers(depth))[seed % 3]
    rng = np.random.default_rng(number)
    model, language = model_of(family, number, depth), Language.drawn(rng, own_words)
    tested = language.pairs(rng, pairs)
    training = language.pairs(np.random.default_rng([number, seed]), TRAINED)
    if condition == "shuffled":
        flipped = np.random.default_rng([seed, 7]).random(TRAINED) < 0.5
        training = [(p[1], p[0]) if flip else p for p, flip in zip(training, flipped, strict=True)]
    stepped = {"planted": split_layers(depth)[third], "null": [], "shuffled": range(depth)}
    tuned, modules = adapted(model)
    fill(model, modules, stepped[condition], training, 97 * seed + 5)
    record, contributions = measured(model, tuned, tested, draws, seed + 1)
    effects = np.array(record["layer_scores"])
    means = {name: float(effects @ mean) for name, mean in swaps.means(depth).items()}
    return {
        "seed": seed,
        "family": family,
        "condition": condition,
        "planted": third if condition == "planted" else "",
        "named": pointed(record, contributions),
        "thirds": means,
        "difference": record["swaps"]["difference"]["estimate"],
    }


# --- all of them -----------------------------------------------------------------------------------


def summary(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each condition and measure, how many adapters were named a third, and how many rightly."""
    result = []
    for condition in CONDITIONS:
        every = [one for one in found if one["condition"] == condition]
        if not every:
            continue
        for measure in ("swaps", "recovery"):
            names = [one["named"][measure] for one in every]
            named = sum(bool(name) for name in names)
            right = sum(
                bool(n) and n == one["planted"] for n, one in zip(names, every, strict=True)
            )
            counted = right if condition == "planted" else named
            low, high = wilson(counted, len(every))
            row = {"condition": condition, "measure": measure, "n": len(every)}
            row |= {"named": named, "right": right, "share": counted / len(every)}
            result.append(row | {"low": low, "high": high, "thirds": dict(Counter(names))})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--own-words", type=float, default=0.9)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/swaps.json"))
    args = parser.parse_args()
    found = read_json(args.out)["models"] if args.out.is_file() else []
    for seed in range(args.seeds):
        for condition in CONDITIONS:
            if any((one["seed"], one["condition"]) == (seed, condition) for one in found):
                continue
            found.append(tried(seed, condition, args.own_words, args.pairs))
            print({k: found[-1][k] for k in ("seed", "family", "condition", "planted", "named")})
            content = {"own_words": args.own_words, "pairs": args.pairs, "training_pairs": TRAINED}
            content |= {"draws": DRAWS, "layers": DEPTH, "share_of_norm": SHARE}
            content |= {"summary": summary(found)}
            write_json(args.out, content | {"models": found} | environment.environment())
    for row in summary(found):
        print(row)


if __name__ == "__main__":
    main()
