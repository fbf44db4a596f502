"""Margins over seeds and pairs, from the records of a study: what the registered analyses start from.

A seed counts if all records that an analysis compares are there and trusted
(`hialign.records.status`). How many of the registered seeds that are is part of what is read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hialign.records import files
from hialign.records.frames import divergences
from hialign.records.stages import stage_manifest
from hialign.records.status import probe_state, state
from hialign.statistics.log_loss import gains
from hialign.study import paths
from hialign.study.pair_files import builtin_file
from hialign.study.settings import ModelSettings
from hialign.study.study import SHUFFLED, Cell, Study

RULES = "rules"  # the set of the held-out contrasts that rules made
OWN = "all"  # the group of a study's own held-out pairs in `evaluation.json`
TOGETHER = "all"  # the training set of a study's cells: all objectives together


class Pair(NamedTuple):
    """A held-out pair as records name it."""

    id: str
    objective: str
    group: str  # `rules`, `all` (the study's own pairs) or a test set
    prompt: str
    conversation: str  # the unit of intervals. Of BLiMP, the phenomenon.


class Seeds(NamedTuple):
    """The seeds whose records are there, and how many the study lists."""

    real: list[str]
    shuffled: list[str]
    wanted: int
    wanted_shuffled: int


@dataclass(frozen=True)
class Margins:
    """Implicit reward margins of one model (nats, Eq. 1) over seeds and held-out pairs.

    Attributes:
        pairs: the held-out pairs that all records share.
        seeds: the seeds that count.
        values: by training set, block and whether labels were shuffled, [seed, pair].
    """

    pairs: list[Pair]
    seeds: Seeds
    values: Mapping[tuple[str, str, bool], np.ndarray]

    def __bool__(self) -> bool:
        return bool(self.seeds.real and self.pairs)

    def places(self, group: str, objective: str | None = None) -> list[int]:
        """Where the pairs of a group, and of an objective, are among all pairs."""
        return [
            i
            for i, pair in enumerate(self.pairs)
            if pair.group == group and objective in (None, pair.objective)
        ]

    def conversations(self, places: Sequence[int]) -> list[str]:
        return [self.pairs[i].conversation for i in places]

    def at(
        self, places: Sequence[int], block: str, trained_on: str, shuffled: bool = False
    ) -> np.ndarray:
        """margins[seed, pair] of a block at some pairs."""
        return self.values[trained_on, block, shuffled][:, list(places)]

    def gains(
        self, places: Sequence[int], block: str, trained_on: str, shuffled: bool = False
    ) -> np.ndarray:
        """gains[seed, pair] in nats: log 2 minus the cross-fitted log loss.

        The slope is fitted within one seed, and over these pairs. Pairs of several objectives or
        groups are therefore fitted apart.
        """
        kinds = [(self.pairs[i].group, self.pairs[i].objective) for i in places]
        found = np.zeros((len(self.values[trained_on, block, shuffled]), len(places)))
        for kind in dict.fromkeys(kinds):
            inside = [n for n, other in enumerate(kinds) if other == kind]
            some = [places[n] for n in inside]
            margins = self.at(some, block, trained_on, shuffled)
            found[:, inside] = gains(margins, self.conversations(some))
        return found

    def blocks(self, trained_on: str) -> list[str]:
        return [
            block for name, block, shuffled in self.values if name == trained_on and not shuffled
        ]

    def some_seeds(self, names: Sequence[str]) -> "Margins":
        """The same with some of the real seeds alone. All shuffled ones stay."""
        rows = [self.seeds.real.index(name) for name in names]
        values = {key: matrix if key[2] else matrix[rows] for key, matrix in self.values.items()}
        return Margins(self.pairs, self.seeds._replace(real=list(names)), values)


def evaluated(study: Study, model: ModelSettings, blocks: Sequence[str] = ()) -> Margins:
    """Margins of the study's cells, from `evaluation.json` of every seed.

    Args:
        study: the study, with all of its seeds or at one of them.
        model: one of its models.
        blocks: those that a seed has to have. By default all but `base`.
    """
    blocks = blocks or [block for block in study.blocks if block != "base"]

    def read(one: Study) -> Iterator[tuple[str, str, dict[Pair, float]]]:
        for block in blocks:
            cell = Cell(one, model, block)
            record = files.read_record(stage_manifest(cell, "evaluate"))
            beta = float(record.get("beta", one.training.beta))
            rows = {_evaluated_pair(row): beta * _gain(row) for row in record["pairs"]}
            yield TOGETHER, block, rows

    def trusted(one: Study) -> bool:
        return all(state(Cell(one, model, block), "evaluate").trusted for block in blocks)

    return _over_seeds(study, {one.seed: list(read(one)) for one in _runs(study) if trusted(one)})


def trained_alone(study: Study, model: ModelSettings) -> Margins:
    """Margins of the blocks that were trained on one objective alone, from `matrix.json` of every seed.

    A record of the matrix names a pair's prompt. Its conversation is taken from an evaluation of the
    same pair, and is the prompt where there is none.
    """
    conversations = _conversations(study, model)

    def read(one: Study) -> Iterator[tuple[str, str, dict[Pair, float]]]:
        place = paths.probe_record(one.name, model.name, "matrix", one.seed)
        record = files.read_record(place)
        pairs = [
            Pair(
                row["id"],
                row["objective"],
                row.get("set", RULES),
                row["prompt"],
                conversations.get(row["id"], row["prompt"]),
            )
            for row in record["pairs"]
        ]
        for trained_on, of_blocks in record["margins"].items():
            for block, of_seeds in of_blocks.items():
                # A study of one run may have trained the matrix several times. It counts as one.
                means = np.mean(of_seeds, axis=0).tolist()
                yield trained_on, block, dict(zip(pairs, means, strict=True))

    runs = [one for one in _runs(study) if probe_state(one, model, "matrix").trusted]
    return _over_seeds(study, {one.seed: list(read(one)) for one in runs})


def divergence_by_seed(study: Study, model: ModelSettings) -> dict[str, list[float]]:
    """KL from base (nats per token) by block, one number per real seed whose cell was evaluated."""
    rows = divergences(study.whole).to_dict("records")
    found: dict[str, list[float]] = {}
    for row in rows:
        shuffled = str(row.get("seed_name", "")).startswith(SHUFFLED)
        if row["model"] == model.label and not shuffled and row["kl"] is not None:
            found.setdefault(str(row["block"]), []).append(float(row["kl"]))
    return found


@cache
def builtin_prompts() -> frozenset[str]:
    """The names of the built-in prompts, with which the ids of their pairs begin."""
    return frozenset(str(row["id"]) for row in files.read_jsonl(builtin_file()))


def is_builtin(pair: Pair) -> bool:
    return pair.id.rsplit("-", 1)[0] in builtin_prompts()


# --- records -------------------------------------------------------------------------------------


def _runs(study: Study) -> list[Study]:
    return study.whole.single_runs()


def _evaluated_pair(row: Mapping[str, Any]) -> Pair:
    prompt = str(row["id"]).rsplit("-", 1)[0]
    group = row["groups"][0]
    return Pair(row["id"], row["objective"], group, prompt, row.get("conversation", prompt))


def _gain(row: Mapping[str, Any]) -> float:
    """How much further than Base a cell puts the chosen response ahead of the rejected one (nats)."""
    return float(row["chosen"] - row["chosen_base"] - row["rejected"] + row["rejected_base"])


def _conversations(study: Study, model: ModelSettings) -> dict[str, str]:
    """The conversation of each pair by its id, from one evaluation of the model."""
    for one in _runs(study):
        for block in one.blocks:
            cell = Cell(one, model, block)
            if state(cell, "evaluate").trusted:
                rows = files.read_record(stage_manifest(cell, "evaluate"))["pairs"]
                return {row["id"]: row["conversation"] for row in rows if "conversation" in row}
    return {}


def _over_seeds(
    study: Study, by_seed: Mapping[str, Iterable[tuple[str, str, dict[Pair, float]]]]
) -> Margins:
    """Stack what was read of each seed, at the pairs that all have."""
    runs = _runs(study)
    controls = {one.seed for one in runs if one.preferences.shuffled}
    read = {seed: list(rows) for seed, rows in by_seed.items()}
    every = [rows for of_seed in read.values() for _, _, rows in of_seed]
    shared = [pair for pair in (every[0] if every else ()) if all(pair in rows for rows in every)]
    values: dict[tuple[str, str, bool], list[list[float]]] = {}
    for seed, of_seed in read.items():
        for trained_on, block, rows in of_seed:
            key = (trained_on, block, seed in controls)
            values.setdefault(key, []).append([rows[pair] for pair in shared])
    seeds = Seeds(
        [seed for seed in read if seed not in controls],
        [seed for seed in read if seed in controls],
        len(runs) - len(controls),
        len(controls),
    )
    return Margins(shared, seeds, {key: np.array(rows) for key, rows in values.items()})
