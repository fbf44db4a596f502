"""Causal patching between a model and its tuned counterpart, after Alignment is Localized.

Let m(pair) = log p(chosen) - log p(rejected). What of the tuned model's states has to be put into base
so that m becomes the tuned model's, and the reverse? A whole residual stream that is patched at a late
layer says little, as everything below comes along with it. So the contributions of single layers, of
attention and of MLPs are patched too, and prompt positions and windows of layers. A `regression` looks
for layers, and `low_rank` decomposes the difference into directions. `runs` has the patched passes.

The published method is reconstructed here.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from hialign.engine.models import identity, load_tokenizer
from hialign.engine.progress import Progress
from hialign.probes.pairs import ROW, ProbePair, held_out
from hialign.probes.patching.low_rank import by_rank, halves, rank_runs
from hialign.probes.patching.recovery import (
    VERSIONS,
    Margins,
    difference,
    lengths,
    margins,
    nothing_to_recover,
    prompts_of,
    recovery,
    tokens_of,
)
from hialign.probes.patching.regression import lasso
from hialign.probes.patching.rows import rows
from hialign.probes.patching.runs import DIRECTIONS, KINDS, Runs, Side, run_row, why_not_apart
from hialign.probes.patching.two_models import both, tuned_source
from hialign.probes.record import Parts, measured, probe_settings
from hialign.statistics.margins import rounded
from hialign.study.blocks import split_layers
from hialign.study.errors import HialignError
from hialign.study.probe_settings import PatchingSettings
from hialign.study.study import Cell


def patching(cell: Cell) -> dict[str, Any]:
    """Measure which layers carry what tuning did, between the cell's model and `patching.tuned`.

    Fields of the record, beside those of every record. Layers are counted from 0. The version of m is
    `summed` (nats) or `normalized` (each response's mean over its tokens). An estimate has `estimate`,
    `low`, `high` and `n`, with its interval over prompts. A direction is `tuned_into_base` (the tuned
    model's state in base) or `base_into_tuned`, and a kind is one of `runs.KINDS`.

    - `tuned`: the other model, its `kind` `adapter` or `model`, and `outside`, the parameters outside
      the layers in which the two differ. No patch of layers can recover these.
    - `pairs`: `id`, `prompt`, `chosen_tokens`, `rejected_tokens` of the `patched` pairs, in the order
      of every list of pairs below.
    - `difference[version]`: the mean of m_tuned - m_base over patched pairs, and `size`, that of its
      absolute value. `nothing`: why there is no recovery, if it is near zero.
    - `recovery[direction][kind][version]`: an estimate per layer (or per window, with `start` and
      `stop`), or null. It is the mean over pairs, weighted by what there is to recover: 1 is all of
      the donor's m, 0 none.
    - `kinds`: what the kinds are. `left_out[kind]`: why a kind is missing.
    - `unpatched[side][version]`: m of each pair.
    - `margins[direction][kind][version]`: m by layer and pair.
    - `layer_scores`: the recovery of a layer's contribution in base (summed), or null with
      `layer_scores_reason`.
    - `window`: the layers of a window, whose contributions are summed.
    - `lasso`: see `regression.lasso`, with what it was given: `pairs`, `gains` and `distances[pair]
      [layer]`.
    - `rank`: `layers`, each with `explained` by rank, `recovery[direction][variant]` by rank (summed;
      `low_rank.VARIANTS`; at the last rank, the width, the patch is whole) and the `margins` of the
      `tested` pairs, or a `reason`.
    - `passes`: the forward passes over all patched pairs that were run, in tokens times layers (two
      sequences per pair, unpadded, no beginning shared). `naive_passes`: those of a loop that runs the
      donor and the receiver once, and the receiver once more for each patch.

    Raises:
        HialignError: before anything is run, for a tuned model of another architecture or tokenizer,
            and for an adapter that is missing or is another base's.
    """
    settings = patching_settings(cell)
    source = tuned_source(cell, settings.tuned)
    tokenizer = load_tokenizer(cell.model)
    pairs, fingerprint = held_out(cell, tokenizer)
    empty = [p.id for p in pairs if any(len(t.ids) <= t.start for t in p.tokens)]
    if empty:
        raise HialignError(f"pair {empty[0]} has an empty response: there is nothing to patch")
    patched = settings.patched or len(pairs)
    if patched > len(pairs):
        raise HialignError(
            f"probes.patching.patched is {patched}, but probes.pairs only {len(pairs)}: "
            "raise probes.pairs"
        )
    source.check_tokens(cell, pairs)
    came_from = {
        "model": identity(cell.model),
        "preferences": fingerprint,
        "tuned": source.identity,
    }

    def compute(parts: Parts) -> dict[str, Any]:
        with both(cell, source, pairs) as (sides, outside):
            tuned = {"name": settings.tuned, "kind": source.kind, "outside": outside}
            return {"tuned": tuned} | Measurement(cell, sides, pairs, patched, parts).record()

    return measured(cell, "patching", came_from, compute)


def patching_settings(cell: Cell) -> PatchingSettings:
    return probe_settings(cell).patching or PatchingSettings()


class Measurement:
    """Everything that is run and estimated between the two sides."""

    def __init__(
        self,
        cell: Cell,
        sides: Mapping[str, Side],
        pairs: Sequence[ProbePair],
        patched: int,
        parts: Parts,
    ) -> None:
        self.sides, self.parts = sides, parts
        self.settings, self.probes = patching_settings(cell), probe_settings(cell)
        self.pairs, self.further = list(pairs[:patched]), list(pairs[patched:])
        self.depth = sides["base"].depth
        self.window = self.settings.window or len(split_layers(self.depth)["local"])
        self.model = sides["base"].decoder.model
        width = self.model.config.get_text_config().hidden_size
        if self.window > self.depth:
            raise HialignError(
                f"probes.patching.window is {self.window}, but the model has {self.depth} layers"
            )
        if max(self.settings.ranks, default=0) > width:
            raise HialignError(
                f"probes.patching.ranks asks for rank {max(self.settings.ranks)}, but hidden states "
                f"have {width} numbers"
            )

    def record(self) -> dict[str, Any]:
        """The fields of the record, which `patching` describes."""
        why = self.parts.part("sublayers", self._why_not_apart)
        left_out = {kind: why for kind in ("attention", "mlp") if why}
        kinds = [kind for kind in KINDS if kind not in left_out]
        runs = self._runs("patched", self.pairs, kinds)
        further = self._runs("regressed", self.further, [])
        own = {side: margins(runs.unpatched[side], self.pairs) for side in self.sides}
        apart = {
            v: difference(own["base"][v], own["tuned"][v], prompts_of(self.pairs)) for v in VERSIONS
        }
        patched = {
            direction: {
                kind: [margins(values, self.pairs) for values in runs.patched[direction][kind]]
                for kind in kinds
            }
            for direction in DIRECTIONS
        }
        reason = nothing_to_recover(apart["summed"], self.model.dtype)

        def recoveries(direction: str, kind: str, version: str) -> list[dict[str, Any]]:
            """One estimate per layer (or window) of a kind of patch."""
            donor, receiver = (own[side][version] for side in DIRECTIONS[direction])
            return [
                self._place(kind, number)
                | recovery(m[version], receiver, donor, prompts_of(self.pairs), *self._bootstrap)
                for number, m in enumerate(patched[direction][kind])
            ]

        recovered = {
            direction: {
                kind: {v: None if reason else recoveries(direction, kind, v) for v in VERSIONS}
                for kind in kinds
            }
            for direction in DIRECTIONS
        }
        contributions = recovered["tuned_into_base"]["contribution"]["summed"]
        scores = None if contributions is None else [c["estimate"] for c in contributions]
        return {
            "depth": self.depth,
            "patched": len(self.pairs),
            "pairs": [
                {"id": p.id, "prompt": p.prompt, "chosen_tokens": c, "rejected_tokens": r}
                for p, (c, r) in ((p, lengths(p)) for p in self.pairs)
            ],
            "kinds": {kind: KINDS[kind] for kind in kinds},
            "left_out": left_out,
            "window": self.window,
            "difference": apart,
            "nothing": reason,
            "recovery": recovered,
            "layer_scores": scores,
            "layer_scores_reason": reason,
            "lasso": self._lasso(runs, further),
            "rank": self._rank(own, scores, reason),
            "unpatched": {
                side: {v: rounded(values) for v, values in m.items()} for side, m in own.items()
            },
            "margins": {
                direction: {
                    kind: {v: [rounded(m[v]) for m in by_place] for v in VERSIONS}
                    for kind, by_place in by_kind.items()
                }
                for direction, by_kind in patched.items()
            },
            "passes": runs.layer_tokens / (self.depth * tokens_of(self.pairs)),
            "naive_passes": len(self.sides)
            + sum(len(m) for by_kind in patched.values() for m in by_kind.values()),
        }

    @property
    def _bootstrap(self) -> tuple[int, int]:
        return self.probes.resamples, self.probes.seed

    def _place(self, kind: str, number: int) -> dict[str, int]:
        if kind == "window":
            return {"start": number, "stop": number + self.window}
        return {"layer": number}

    def _why_not_apart(self) -> str:
        device = self.sides["base"].decoder.device
        row = next(rows([p.tokens for p in self.pairs], device, 1))
        with torch.inference_mode():
            return why_not_apart(self.sides["base"].states(row.layout), type(self.model).__name__)

    def _runs(self, name: str, pairs: Sequence[ProbePair], kinds: Sequence[str]) -> Runs:
        """Run all patches of some pairs. Each row is a part, from which a killed run goes on."""
        device, runs = self.sides["base"].decoder.device, []
        with Progress(total=len(pairs), desc=f"patching: {name} pairs") as bar:
            for number, row in enumerate(rows([p.tokens for p in pairs], device, ROW)):
                compute = partial(run_row, self.sides, row, kinds, self.window)
                runs.append(self.parts.part(f"{name}-{number}", compute))
                bar.update(len(row.pairs))
        return Runs.joined(runs)

    def _lasso(self, runs: Runs, further: Runs) -> dict[str, Any]:
        pairs = self.pairs + self.further
        distances = np.array([*runs.distance, *further.distance])
        base, tuned = (
            np.array(margins([*runs.unpatched[s], *further.unpatched[s]], pairs)["summed"])
            for s in ("base", "tuned")
        )
        result = lasso(
            distances,
            tuned - base,
            prompts_of(pairs),
            self.settings.stability_resamples,
            self.probes.seed,
        )
        return result | {
            "pairs": [{"id": p.id, "prompt": p.prompt} for p in pairs],
            "gains": rounded(list(tuned - base)),
            "distances": [rounded(list(row)) for row in distances],
        }

    def _rank(
        self, own: Mapping[str, Margins], scores: list[float] | None, reason: str | None
    ) -> dict[str, Any]:
        """Recovery by rank, at the layers whose contribution recovers most in base."""
        if scores is None:
            return {"reason": reason, "layers": []}
        learned, tested = halves(prompts_of(self.pairs), self.probes.seed)
        prompts = prompts_of([self.pairs[i] for i in tested])
        if min(len(set(prompts)), len(learned)) < 2:
            return {
                "reason": "too few pairs: directions are learned on half of the prompts and patched "
                "in the other, which must have two at least; raise probes.patching.patched",
                "layers": [],
            }
        own_tested = {side: [m["summed"][i] for i in tested] for side, m in own.items()}
        apart = difference(own_tested["base"], own_tested["tuned"], prompts)
        if nothing := nothing_to_recover(apart, self.model.dtype):
            return {"reason": f"in the tested half: {nothing}", "layers": []}
        tokens = [p.tokens for p in self.pairs]
        best = sorted(range(self.depth), key=lambda layer: (-scores[layer], layer))
        layers = []
        for layer in best[: self.settings.rank_layers]:
            compute = partial(
                rank_runs,
                self.sides,
                tokens,
                prompts_of(self.pairs),
                layer,
                self.settings.ranks,
                self.probes.seed,
                ROW,
            )
            runs = self.parts.part(f"rank-{layer}", compute)
            summary = by_rank(runs, [self.pairs[i] for i in tested], own_tested, *self._bootstrap)
            passes = runs["layer_tokens"] / (self.depth * tokens_of(self.pairs))
            layers.append({"layer": layer, **summary, "passes": passes})
        return {
            "reason": None,
            "learned": [self.pairs[i].id for i in learned],
            "tested": [self.pairs[i].id for i in tested],
            "layers": layers,
        }
