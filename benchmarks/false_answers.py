"""How often the rules of a study answer wrongly: simulated studies over crossed seeds and pairs.

    python benchmarks/false_answers.py [--studies 2000] [--out benchmarks/results/false_answers.json]

The rules are those of `hialign.statistics`: the gate, the contrasts with their margin, and whether a
third leads, in outcomes of trainings and in profiles of probes. Each scenario says what is true. Its
entries are the shares of studies in which something was said. An entry that starts with "false" should
be at most 5%. The others are power.

A gain is the sum of what the pair brings, what it brings under this strategy, what the seed does to
this strategy (its variance is what a study of one seed cannot see), and noise. Half of the scenarios
have conversations of several pairs or heavy tails. The same command with the same `--out` goes on where
it was stopped.
"""

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hialign.records.files import read_json, write_json
from hialign.statistics.contrasts import detectable, judge_contrasts
from hialign.statistics.crossed import MeanSquares, mean_squares, p_value
from hialign.statistics.gate import gate
from hialign.statistics.intervals import ALPHA, wilson
from hialign.statistics.leads import RANDOM, THIRDS, leads, profile_leads

PAIR, SEED, NOISE = 0.02, 0.008, 0.08  # standard deviations of a gain, in nats
LAYERS = {"local": range(0, 10), "mid": range(10, 20), "global": range(20, 30)}
FULL_GAIN = 0.04  # nats
Rng = np.random.Generator


def gains_of(
    rng: Rng,
    names: tuple[str, ...],
    seeds: int,
    pairs: int,
    heavy: bool = False,
    seed: float = SEED,
) -> dict[str, np.ndarray]:
    """Gains [seed, pair] of strategies without an effect. They share pairs, and not seeds' noise."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_t(3, shape) / np.sqrt(3) if heavy else rng.standard_normal(shape)

    common = PAIR * draw(1, pairs)
    return {
        name: common
        + PAIR * draw(1, pairs)
        + seed * rng.standard_normal((seeds, 1))
        + NOISE * draw(seeds, pairs)
        for name in names
    }


def conversations_of(pairs: int) -> list[int]:
    """Of 1, 2, 3, 1, … pairs."""
    return np.repeat(np.arange(pairs), np.resize([1, 2, 3], pairs))[:pairs].tolist()


# --- the gate ------------------------------------------------------------------------------------


def margins_of(
    rng: Rng, seeds: int, pairs: int, learned: float, artefact: float = 0.0, spread: float = 0.1
) -> np.ndarray:
    """Margins [seed, pair]: what seeds share, what a seed does to all pairs, and noise.

    `artefact` is what any training does to margins, whatever its labels.
    """
    of_seeds = spread * rng.standard_normal((seeds, 1))
    return learned + artefact + of_seeds + rng.standard_normal((seeds, pairs))


def gated(
    rng: Rng,
    seeds: int,
    pairs: int,
    learned: float,
    artefact: float,
    spread: float,
    controls: int = 2,
) -> dict[str, bool]:
    common = 0.5 * rng.standard_normal((1, pairs))  # a pair's margin, under any labels
    full = common + margins_of(rng, seeds, pairs, learned, artefact, spread)
    shuffled = common + margins_of(rng, controls, pairs, 0.0, artefact, spread)
    conversations = conversations_of(pairs)
    passed = gate(full, shuffled, conversations)["passed"]
    name = "passes" if learned else "false: passes"
    alone = gate(full[:1], None, conversations)["passed"]
    return {name: passed, "one seed, no control: passes": alone}


# --- contrasts -----------------------------------------------------------------------------------


def contrasted(
    rng: Rng, seeds: int, pairs: int, difference: float, heavy: bool = False
) -> dict[str, bool]:
    """Full against each third, and Mid against the others. `difference` is of Full from the thirds."""
    gains = gains_of(rng, ("full", *THIRDS), seeds, pairs, heavy)
    gains["full"] = gains["full"] + FULL_GAIN
    for third in THIRDS:
        gains[third] = gains[third] + FULL_GAIN - difference
    couples = [("full", third) for third in THIRDS] + [("mid", "local"), ("mid", "global")]
    differences = {(a, b): gains[a] - gains[b] for a, b in couples}
    rows = judge_contrasts(differences, conversations_of(pairs), gains["full"] / 2, power=None)
    told = [row["verdict"] for row in rows]
    of_full, of_mid = told[:3], told[3:]
    found = {"false: mid differs from a third": any(w in ("better", "worse") for w in of_mid)}
    if difference == 0:
        found["false: any differs"] = any(w in ("better", "worse") for w in told)
    if difference >= FULL_GAIN / 2:
        found["false: a third is within the margin"] = any(row["within"] for row in rows[:3])
    else:
        found["mid is within the margin of local"] = bool(rows[3]["within"])
    found["full is better than local"] = of_full[0] == "better"
    return found


def detected(rng: Rng, seeds: int, pairs: int, seed: float, contrasts: int) -> dict[str, bool]:
    """Whether a difference of the detectable size is found, its variances being known."""
    pair, noise = 2 * PAIR**2, 2 * NOISE**2
    between = noise + 2 * pairs * seed**2
    truth = (np.zeros(()), np.array(between), np.array(noise + seeds * pair), np.array(noise))
    least = detectable(MeanSquares(*truth, seeds - 1, pairs, seeds * pairs), contrasts)
    gains = gains_of(rng, ("a", "b"), seeds, pairs, seed=seed)
    p = p_value(mean_squares(gains["a"] - gains["b"] + least))
    return {"found (80% meant)": bool(p < ALPHA / contrasts)}


# --- thirds --------------------------------------------------------------------------------------


def led(
    rng: Rng,
    seeds: int,
    pairs: int,
    effect: float = 0.0,
    artefact: float = 0.0,
    heavy: bool = False,
    seed: float = SEED,
    controls: int = 2,
) -> dict[str, bool]:
    """`effect` of Mid over all others with true labels, `artefact` with any labels."""
    gains = gains_of(rng, (*THIRDS, RANDOM), seeds, pairs, heavy, seed)
    control = gains_of(rng, THIRDS, controls, pairs, heavy, seed)
    gains["mid"] = gains["mid"] + effect + artefact
    control["mid"] = control["mid"] + artefact
    found = leads(gains, control, conversations_of(pairs))["third"]
    highest = max(THIRDS, key=lambda third: float(gains[third].mean()))
    one = {name: values[0] for name, values in gains.items()}
    known = leads(one, {name: values[0] for name, values in control.items()})["third"]
    return _of_third(found, effect) | {
        "the highest mean is mid": highest == "mid",
        "one seed, over pairs alone: any third leads": known is not None,
    }


def profiled(
    rng: Rng,
    seeds: int,
    effect: float = 0.0,
    trend: float = 0.0,
    smooth: float = 0.0,
    fixed: float = 0.0,
    lasting: float = 0.0,
    controls: int = 2,
) -> dict[str, bool]:
    """A probe's profile: noise per seed and layer, of which `smooth` runs along the layers.

    `trend` rises over depth whatever the labels. `fixed` is a layer's own effect under every seed, and
    `lasting` one that runs along the layers. Neither of the two is in the control.
    """
    depth = np.linspace(-1, 1, 30)
    own = fixed * rng.standard_normal(30) + lasting * along(rng, 1)[0]

    def drawn(many: int) -> np.ndarray:
        rough = np.sqrt(1 - smooth**2) * rng.standard_normal((many, 30))
        return rough + smooth * along(rng, many) + trend * depth + rng.standard_normal((many, 1))

    profile = drawn(seeds) + own
    profile[:, LAYERS["mid"]] += effect
    found = profile_leads(profile, LAYERS, drawn(controls))["third"]
    if lasting:
        return {"any third leads": found is not None}
    return _of_third(found, effect)


def along(rng: Rng, many: int) -> np.ndarray:
    """Noise [seed, layer] of variance 1 that is correlated 0.9 from layer to layer."""
    steps = rng.standard_normal((many, 30))
    for layer in range(1, 30):
        steps[:, layer] = 0.9 * steps[:, layer - 1] + np.sqrt(1 - 0.81) * steps[:, layer]
    return steps


def _of_third(found: str | None, effect: float) -> dict[str, bool]:
    if effect:
        return {"mid leads": found == "mid", "false: another leads": found not in ("mid", None)}
    return {"false: any third leads": found is not None}


Scenario = tuple[Callable[..., dict[str, bool]], dict[str, Any], float]  # and share of --studies
SCENARIOS: dict[str, Scenario] = {}
for seeds, pairs in ((2, 150), (5, 150), (6, 700)):
    size, sized = f"{seeds} seeds, {pairs} pairs", {"seeds": seeds, "pairs": pairs}
    nothing: dict[str, Any] = sized | {"learned": 0.0, "artefact": 0.0, "spread": 0.1}
    SCENARIOS |= {
        f"gate, nothing learned, {size}": (gated, nothing, 1.0),
        f"gate, nothing learned, seeds far apart, {size}": (gated, nothing | {"spread": 0.5}, 1.0),
        f"gate, any labels do it, {size}": (gated, nothing | {"artefact": 0.4}, 1.0),
        f"gate, learned 0.2, {size}": (gated, nothing | {"learned": 0.2}, 0.25),
        f"gate, learned 0.4, {size}": (gated, nothing | {"learned": 0.4}, 0.25),
        f"thirds, no effect, {size}": (led, sized, 1.0),
        f"thirds, no effect, seeds alike, {size}": (led, sized | {"seed": 0.0}, 1.0),
        f"thirds, no effect, seeds far apart, {size}": (led, sized | {"seed": 0.03}, 1.0),
        f"thirds, no effect, heavy tails, {size}": (led, sized | {"heavy": True}, 1.0),
        f"thirds, mid by any labels, {size}": (led, sized | {"artefact": 0.04}, 1.0),
        f"thirds, mid by 0.02, {size}": (led, sized | {"effect": 0.02}, 0.25),
        f"thirds, mid by 0.04, {size}": (led, sized | {"effect": 0.04}, 0.25),
        f"thirds, mid by 0.04, as many controls, {size}": (
            led,
            sized | {"effect": 0.04, "controls": seeds},
            0.25,
        ),
        f"detectable, of one, {size}": (detected, sized | {"seed": SEED, "contrasts": 1}, 0.5),
        f"detectable, of six, {size}": (detected, sized | {"seed": SEED, "contrasts": 6}, 0.5),
    }
for seeds, pairs in ((5, 150), (6, 700)):
    size, sized = f"{seeds} seeds, {pairs} pairs", {"seeds": seeds, "pairs": pairs}
    heavy: dict[str, Any] = sized | {"difference": 0.0, "heavy": True}
    SCENARIOS[f"contrasts, heavy tails, {size}"] = (contrasted, heavy, 1.0)
    for ahead in (0.0, FULL_GAIN / 2, FULL_GAIN):
        name = f"contrasts, full ahead by {ahead}, {size}"
        SCENARIOS[name] = (contrasted, sized | {"difference": ahead}, 1.0)
for seeds in (2, 5):
    size = f"{seeds} seeds"
    profiles: dict[str, tuple[dict[str, Any], float]] = {
        "no effect": ({}, 1.0),
        "smooth": ({"smooth": 0.9}, 1.0),
        "depth trend": ({"trend": 2.0}, 1.0),
        "smooth and depth trend": ({"smooth": 0.9, "trend": 2.0}, 1.0),
        "layers differ": ({"fixed": 1.0}, 1.0),
        "neighbours differ together": ({"lasting": 1.0}, 0.25),
        "mid by 1": ({"effect": 1.0}, 0.25),
        "mid by 2": ({"effect": 2.0}, 0.25),
        "mid by 2, as many controls": ({"effect": 2.0, "controls": seeds}, 0.25),
    }
    for what, (settings, part) in profiles.items():
        SCENARIOS[f"profile, {what}, {size}"] = (profiled, {"seeds": seeds, **settings}, part)


def one(name: str, number: int) -> dict[str, bool]:
    """Study `number` of a scenario."""
    what, settings, _ = SCENARIOS[name]
    return what(np.random.default_rng([42, *name.encode(), number]), **settings)


def rates(name: str, studies: int) -> dict[str, Any]:
    """The share of studies in which each entry is true, with Wilson's 95% interval."""
    table = pd.DataFrame([one(name, number) for number in range(studies)])
    said = {}
    for entry, count in table.sum().items():
        low, high = wilson(int(count), studies)
        said[str(entry)] = {"share": count / studies, "low": round(low, 4), "high": round(high, 4)}
    return {"studies": studies, "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description="False answers of the registered rules.")
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument("--out")
    args = parser.parse_args()

    from importlib.metadata import version

    from hialign.engine.environment import environment

    deviations = {"pair": PAIR, "seed": SEED, "noise": NOISE, "full_gain": FULL_GAIN}
    content: dict[str, Any] = {"arguments": {"studies": args.studies}, "nats": deviations}
    content |= environment()
    content["packages"] |= {name: version(name) for name in ("scipy", "statsmodels", "pandas")}
    known = read_json(Path(args.out)) if args.out and Path(args.out).is_file() else {}
    content["scenarios"] = known.get("scenarios", {})
    for name in SCENARIOS:  # load what they import
        one(name, 0)
    gc.freeze()  # statsmodels' multipletests collects garbage at each call: let it find little
    for name in SCENARIOS:
        if name in content["scenarios"]:  # a run that was stopped goes on
            continue
        started = time.perf_counter()
        found = rates(name, max(1, round(args.studies * SCENARIOS[name][2])))
        seconds = round(time.perf_counter() - started, 1)
        content["scenarios"][name] = found | {
            "seconds": seconds,
            "commit": content["hialign_commit"],
        }
        print(name, content["scenarios"][name], flush=True)
        if args.out:
            write_json(Path(args.out), content)


if __name__ == "__main__":
    main()
