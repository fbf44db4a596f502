"""Studies: `studies/*.yml` as checked settings, and the cells that they span.

A cell is one model x block, and, in a study of several seeds, one model x block x seed.
"""

import difflib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from hialign.study import blocks as blocks_
from hialign.study import paths
from hialign.study.base import Seed, Settings, check_folder
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.load import brief, load_yaml, one_line
from hialign.study.probe_settings import FrontierSettings, ProbeSettings
from hialign.study.settings import (
    COSTS_ONLY,
    AnalysisSettings,
    EvaluationSettings,
    JudgeSettings,
    ModelSettings,
    PreferenceSettings,
    ResponseSettings,
    TrainingSettings,
    ValidationSettings,
    is_folder,
    model_from,
)

STAGES = ("train", "respond", "evaluate", "judge")
EVERY_PROBE = ProbeSettings(frontier=FrontierSettings())  # of a probe that is run by hand
SHUFFLED = "shuffled-"  # begins the names of seeds that are controls
Sections = dict[str, Any]  # settings by the name of their section, as a record holds them
# The probes of a model in the order in which they are run
PROBES = ("gradients", "matrix", "ila", "patching", "sweep", "weights", "frontier")


class Study(Settings):
    """The models, blocks, data and settings of one experiment."""

    name: Annotated[str, AfterValidator(check_folder)]
    title: str
    description: str = ""
    models: list[ModelSettings] = Field(min_length=1)
    # What a repetition draws anew: its training pairs, its initialization and its order. The held-out
    # pairs are the same for all. null: one run, with the seeds of `training` and `preferences`, as in
    # the paper, whose Table 5 has one seed.
    seeds: list[Seed] | None = Field(None, min_length=1, max_length=1_000)
    # Controls: seeds that are trained again after chosen and rejected were exchanged in a random half
    # of their training pairs.
    shuffled_seeds: list[Seed] = Field([], max_length=1_000)
    # Table 1
    blocks: list[str] = Field(["base", "full", "local", "mid", "global"], min_length=1)
    preferences: PreferenceSettings = PreferenceSettings()
    training: TrainingSettings = TrainingSettings()
    responses: ResponseSettings = ResponseSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    judge: JudgeSettings | None = JudgeSettings()  # null: no judge
    validation: ValidationSettings = ValidationSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    probes: ProbeSettings | None = None  # null: none is run with the study

    _argument: str = PrivateAttr("")
    _file: Path | None = PrivateAttr(None)
    _seed: str = PrivateAttr("")
    _whole: "Study | None" = PrivateAttr(None)

    @property
    def seed(self) -> str:
        """The seed of a study that `at` made, as its folders are called. Otherwise empty."""
        return self._seed

    @property
    def whole(self) -> "Study":
        """The study with all of its seeds, of which this may be one."""
        return self._whole or self

    @property
    def argument(self) -> str:
        """The name that the user gave the study, quoted for the commands in error messages."""
        return self._argument or shlex.quote(self.name)

    @property
    def file(self) -> Path | None:
        """The file that the study was read from. None if it was made otherwise."""
        return self._file

    @field_validator("models", mode="before")
    @classmethod
    def _bare_sources(cls, models: Any) -> Any:
        if not isinstance(models, list):
            return models
        return [{"source": m} if isinstance(m, str) else m for m in models]

    @field_validator("blocks")
    @classmethod
    def _known_blocks(cls, names: list[str]) -> list[str]:
        for name in names:
            blocks_.check_block(name)
        if len(set(names)) < len(names):
            raise ValueError("a block is given twice")
        _check_apart("blocks", names)
        return names

    @field_validator("seeds", "shuffled_seeds")
    @classmethod
    def _seeds_once(cls, seeds: list[int] | None) -> list[int] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("a seed is given twice")
        return seeds

    @model_validator(mode="after")
    def _controls_of_seeds(self) -> Self:
        if self.shuffled_seeds and not self.seeds:
            raise ValueError(
                "shuffled_seeds needs `seeds`: give the seeds of the study itself, too"
            )
        return self

    @model_validator(mode="after")
    def _one_folder_each(self) -> Self:
        for key in ("name", "label"):  # folders, and rows of tables
            values = [getattr(m, key) for m in self.models]
            if len(set(values)) < len(values):
                raise ValueError(
                    f"two models have the same {key}: give one of them another `{key}`"
                )
        _check_apart("models", [model.name for model in self.models])
        for model in self.models:
            for block in self.blocks:
                if len((paths.slug(model.name) + paths.slug(block)).encode()) > 200:
                    raise ValueError(
                        f"model {brief(model.name)} and block {brief(block)} make a file name that "
                        "is too long: give the model a shorter `name`, or write layers as ranges"
                    )
        return self

    def model(self, name: str | None = None) -> ModelSettings:
        """The model called `name` (its name, label or source). None is the first model.

        A model that the study does not list must look like a source: `embedded:…`, `random:…`, a
        folder or `org/name`. Anything else is a mistake, and HialignError names the nearest model.
        """
        if name is None:
            return self.models[0]
        for model in self.models:
            if name in (model.name, model.label, model.source):
                return model
        listed = {n.casefold(): n for m in self.models for n in (m.source, m.label, m.name)}
        source = is_source(name)
        least = 0.8 if source else 0.4  # similarity
        close = difflib.get_close_matches(name.casefold(), listed, n=1, cutoff=least)
        hint = f"did you mean {listed[close[0]]!r}?" if close else ""
        if not source:
            names = one_line(", ".join(model.name for model in self.models), 300)
            raise HialignError(
                f"study {self.name} has no model {brief(name)}{f' ({hint})' if hint else ''}: it has "
                f"{names}: name one of these, or give any other as a folder or as `org/name`"
            )
        unlisted = model_from(name)
        unlisted._hint = hint
        return unlisted

    def seed_names(self) -> list[str]:
        """The seeds, as their folders are called. One empty name if the study has a single run."""
        names = [f"seed-{seed}" for seed in self.seeds or []]
        names += [f"{SHUFFLED}{seed}" for seed in self.shuffled_seeds]
        return names if len(names) > 1 and not self._seed else [self._seed]

    def at(self, seed: "str | int | None" = None) -> "Study":
        """The study as one of its seeds sees it: a study of a single run, in the seed's folder.

        Args:
            seed: `seed-1` or 1, or `shuffled-1` for a control. None is the first.

        Raises:
            HialignError: if the study does not have that seed.
        """
        if self._seed or not self.seeds:
            if seed in (None, "", self._seed, self.training.seed):
                return self
            raise HialignError(
                f"study {self.name} has no seed {seed!r}: it is one run"
                + ("" if self._seed else "; list its `seeds` in a copy of the study")
            )
        numbers = {f"seed-{n}": n for n in self.seeds}
        numbers |= {f"{SHUFFLED}{n}": n for n in self.shuffled_seeds}
        name = str(seed) if seed not in (None, "") else next(iter(numbers))
        name = f"seed-{name}" if name.isdigit() else name
        if name not in numbers:
            raise HialignError(
                f"study {self.name} has no seed {seed!r}: it has {', '.join(numbers)}"
            )
        number = numbers[name]
        pairs = {"draw": number, "shuffled": name.startswith(SHUFFLED)}
        one = self.model_copy(
            update={
                "training": self.training.model_copy(update={"seed": number}),
                "preferences": self.preferences.model_copy(update=pairs),
                "probes": self.probes and self.probes.at(number),
            }
        )
        one._seed, one._whole = name if len(numbers) > 1 else "", self.whole
        return one

    def single_runs(self) -> list["Study"]:
        """The study at each of its seeds. The study itself if it has none."""
        return [self.at(name) for name in self.seed_names()] if self.seeds else [self]

    def cells(self) -> list["Cell"]:
        return [
            Cell(one, model, block)
            for one in self.single_runs()
            for model in self.models
            for block in self.blocks
        ]

    def cell(self, model: str | None, block: str, seed: str | int | None = None) -> "Cell":
        """The cell of a model and block, at the first seed by default."""
        return Cell(self.at(seed), self.model(model), blocks_.check_block(block))


def is_source(name: str) -> bool:
    """Whether `name` can only be meant as a model's source: it has a prefix, or is a folder or `org/name`."""
    if name.startswith(("embedded:", "random:", ".", "/", "~")):
        return True
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None
    return named or (name != "" and is_folder(name))


def _check_apart(kind: str, names: Sequence[str]) -> None:
    """Refuse two names that would share a folder on some disks, such as those that ignore case."""
    folders: dict[str, str] = {}
    for name in names:
        folder = unicodedata.normalize("NFC", paths.slug(name)).casefold()
        if folder in folders:
            raise ValueError(
                f"the {kind} {folders[folder]!r} and {name!r} would share the folder {folder}: "
                "rename one of them"
            )
        folders[folder] = name


@dataclass(frozen=True)
class Cell:
    """One model x block of a study, at one of its seeds.

    The `study` of a cell is a single run (`Study.at`), so that its settings are the cell's own.
    """

    study: Study
    model: ModelSettings
    block: str

    @property
    def folder(self) -> Path:
        return paths.cell_dir(self.study.name, self.model.name, self.block, self.study.seed)

    @property
    def seed(self) -> str:
        """The seed, as its folder is called. Empty if the study is one run."""
        return self.study.seed

    @property
    def strategy(self) -> str:
        return blocks_.strategy_of(self.block)

    def settings(self, stage: str) -> Sections:
        """The settings that `stage` depends on, for its manifest and for telling what is stale."""
        study = self.study
        parts: dict[str, Any] = {"model": self.model, "block": self.block}
        parts["preferences"] = study.preferences
        if self.block != "base":
            parts["training"] = study.training
        elif stage == "evaluate":  # its pairs are cut as in training
            used = {"beta", "max_length", "truncation"}
            parts["training"] = study.training.model_dump(include=used)
        if probe := blocks_.probe_of(self.block):  # the probe chose the layers
            parts["probe"] = self.probe_settings(probe)
        if stage in ("respond", "evaluate", "judge"):
            parts["responses"] = study.responses
        if stage == "evaluate":
            parts["evaluation"] = study.evaluation
        if stage == "judge":
            parts["judge"] = study.judge
        return {k: v.model_dump() if isinstance(v, Settings) else v for k, v in parts.items()}

    def probe_settings(self, probe: str) -> Sections:
        """The settings that the record of a probe of the cell's model depends on."""
        study, probes = self.study, self.study.probes or ProbeSettings()
        parts: dict[str, Any] = {"model": self.model, "preferences": study.preferences}
        parts["training"] = study.training
        parts["probes"] = probes.model_dump(exclude=set(PROBES))
        parts[probe] = getattr(probes, probe) or getattr(EVERY_PROBE, probe)
        return {k: v.model_dump() if isinstance(v, Settings) else v for k, v in parts.items()}

    def probe_fingerprint(self, probe: str) -> str:
        """A short hash of `probe_settings(probe)`, as `fingerprint` is of a stage's."""
        return json_sha256(without_costs(self.probe_settings(probe)), 16)

    def fingerprint(self, stage: str) -> str:
        """A short hash of `settings(stage)`. If a manifest has another one, the run is stale.

        Settings that change what a run costs, and not its results, are left out.
        """
        return json_sha256(without_costs(self.settings(stage)), 16)


def without_costs(settings: Sections) -> Sections:
    """`settings`, and those of its probe, without the ones that change a run's cost alone."""
    rest = dict(settings)
    for section, names in COSTS_ONLY.items():
        if rest.get(section):
            rest[section] = {k: v for k, v in rest[section].items() if k not in names}
    return rest | ({"probe": without_costs(rest["probe"])} if "probe" in rest else {})


def study_names() -> list[str]:
    return sorted(p.stem for p in paths.studies().glob("*.yml"))


def load_study(study: "str | Path | Study") -> Study:
    """The study called `study` (in `studies/`) or in the file `study`.

    Raises HialignError naming the file and the key for anything unknown or out of bounds. Relative
    folders in a study start at the repository.
    """
    if isinstance(study, Study):
        return study
    given = str(study)
    path = Path(os.path.expanduser(given))
    if path.suffix not in (".yml", ".yaml"):
        path = paths.studies() / f"{given}.yml"
        if not os.path.isfile(path):
            raise HialignError(
                f"there is no study {brief(given)}: give the path of a .yml file, or one of "
                f"{', '.join(study_names())}"
            )
    loaded = load_yaml(Study, path, "study", defaults={"name": path.stem})
    loaded._argument, loaded._file = shlex.quote(given), path
    return loaded


def stages_of(cell: Cell) -> list[str]:
    """The stages that a cell of this study goes through."""
    return [stage for stage in STAGES if stage != "judge" or cell.study.judge]


def probe_runs(study: Study) -> Iterator[tuple[Study, ModelSettings, str]]:
    """The probes that a study runs: the study at each of its seeds, the model, and the probe."""
    for one in study.single_runs():
        for model in study.models:
            for probe in probes_of(one):
                yield one, model, probe


def probes_of(study: Study) -> list[str]:
    """The probes that a study runs of each of its models. The frontier is the first seed's alone."""
    later = study.seed not in ("", study.whole.seed_names()[0])
    return [
        name
        for name in PROBES
        if study.probes and getattr(study.probes, name) and not (later and name == "frontier")
    ]
