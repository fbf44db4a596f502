"""Everything that the patching probe runs and estimates between the two sides."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hialign.engine.progress import Progress
from hialign.probes.pairs import ROW, ProbePair
from hialign.probes.patching.effects import BOTH, swap_record
from hialign.probes.patching.low_rank import by_rank, halves, rank_runs
from hialign.probes.patching.nulls import randomized
from hialign.probes.patching.recovery import (
    VERSIONS,
    Margins,
    change,
    difference,
    lengths,
    margins,
    nothing_to_recover,
    prompts_of,
    recovery,
    tokens_of,
)
from hialign.probes.patching.rows import Row, rows
from hialign.probes.patching.runs import DIRECTIONS, KINDS, Runs, Side, run_row, why_not_apart
from hialign.probes.patching.swaps import swap_row
from hialign.probes.record import Parts, probe_settings
from hialign.statistics.margins import rounded
from hialign.study.blocks import split_layers
from hialign.study.errors import HialignError
from hialign.study.probe_settings import PatchingSettings
from hialign.study.study import Cell


def patching_settings(cell: Cell) -> PatchingSettings:
    return probe_settings(cell).patching or PatchingSettings()


class Measurement:
    """Everything that is run and estimated between the two sides."""

    def __init__(
        self,
        cell: Cell,
        sides: Mapping[str, Side],
        pairs: Sequence[ProbePair],
        parts: Parts,
    ) -> None:
        self.sides, self.parts = sides, parts
        self.settings, self.probes = patching_settings(cell), probe_settings(cell)
        self.pairs = list(pairs[: self.settings.patched])
        self.swapped_pairs = list(pairs[: self.settings.swapped])
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
        """The fields of the record, which `probe.patching` describes."""
        return self._swapped() | self._patched()

    def _swapped(self) -> dict[str, Any]:
        """The swaps of weights, and what they give each layer."""
        swaps, scores = self._swaps(), None
        nothing = nothing_to_recover(swaps["difference"], self.model.dtype)
        if not nothing:
            scores = [layer[BOTH]["estimate"] for layer in swaps["layers"]]
        return {
            "depth": self.depth,
            "swaps": swaps,
            "layer_scores": scores,
            "layer_scores_reason": nothing,
        }

    def _patched(self) -> dict[str, Any]:
        """The patches of activations."""
        why = self.parts.part("sublayers", self._why_not_apart)
        left_out = {kind: why for kind in ("attention", "mlp") if why}
        kinds = [kind for kind in KINDS if kind not in left_out]
        patch = partial(run_row, self.sides, kinds=kinds, window=self.window)
        runs = self._runs("patched", self.pairs, patch)
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

        def changes(direction: str, kind: str) -> list[dict[str, Any]]:
            """The same of the signed change, summed."""
            summed = {side: m["summed"] for side, m in own.items()}
            return [
                self._place(kind, number)
                | change(m["summed"], summed, direction, prompts_of(self.pairs))
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
        return {
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
            "changes": {
                direction: {kind: changes(direction, kind) for kind in kinds}
                for direction in DIRECTIONS
            },
            "recovery": recovered,
            "rank": self._rank(own, contributions, reason),
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

    def _runs(
        self, name: str, pairs: Sequence[ProbePair], run: Callable[[Row], dict[str, Any]]
    ) -> Runs:
        """Run some pairs. Each row is a part, from which a killed run goes on."""
        device, runs = self.sides["base"].decoder.device, []
        with Progress(total=len(pairs), desc=f"patching: {name} pairs") as bar:
            for number, row in enumerate(rows([p.tokens for p in pairs], device, ROW)):
                runs.append(self.parts.part(f"{name}-{number}", partial(run, row)))
                bar.update(len(row.pairs))
        return Runs.joined(runs)

    def _swaps(self) -> dict[str, Any]:
        """Swap layers between the two sides, and between base and random adapters."""
        runs = self._runs("swapped", self.swapped_pairs, partial(swap_row, self.sides))
        alone, nulls = partial(swap_row, self.sides, kinds=["layers"]), {}
        for draw in range(self.settings.null_draws):
            seed = self.probes.seed + 1 + draw
            with randomized(self.sides, seed):
                nulls[seed] = self._runs(f"null-{draw + 1}", self.swapped_pairs, alone)
        passes = runs.layer_tokens / (self.depth * tokens_of(self.swapped_pairs))
        return swap_record(runs, nulls, self.swapped_pairs, *self._bootstrap) | {"passes": passes}

    def _rank(
        self,
        own: Mapping[str, Margins],
        contributions: list[dict[str, Any]] | None,
        reason: str | None,
    ) -> dict[str, Any]:
        """Recovery by rank, at the layers whose contribution recovers most in base."""
        if contributions is None:
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
        scores = [contribution["estimate"] for contribution in contributions]
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
