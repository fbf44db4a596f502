"""The overlap of two data sets' most important matrices, beside what chance gives."""

from collections.abc import Iterator

import numpy as np

from hialign.report.where.records import Record
from hialign.statistics.overlap import Chance, by_chance


def compared(record: Record) -> Iterator[Record]:
    """The overlaps of an ILA record, each with the `chance` of random sets (None without a ranking).

    It is computed here, from the gates in the record, also where an older record has a chance of its
    own: that one drew from all matrices.
    """
    for row in record["overlaps"]:
        yield row | {"chance": None if row["nothing"] else chance_of(record, row)}


def chance_of(record: Record, row: Record) -> Chance:
    """What random sets share that have as many matrices of each type as the two rankings have.

    The rankings are those by the mean over the seeds that rank both data sets, as `of_means`.
    """
    gates = {
        (run["dataset"], run["seed"]): run["gates"]
        for run in record["runs"]
        if run["loss"] == row["loss"] and run["nothing"] is None
    }
    first, second = row["datasets"]
    seeds = [seed for name, seed in gates if name == first and (second, seed) in gates]
    tops = []
    for name in row["datasets"]:
        means = np.mean([gates[name, seed] for seed in seeds], axis=0)
        tops.append(np.argsort(-means, kind="stable")[: row["size"]].tolist())
    return by_chance([kind_of(matrix) for matrix in record["matrices"]], *tops)


def kind_of(matrix: Record) -> str:
    """The type of a matrix: `q_proj` of `model.layers.0.self_attn.q_proj`."""
    return str(matrix["name"]).rsplit(".", 1)[-1]
