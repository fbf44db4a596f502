"""Studies: `studies/*.yml` as checked settings, and the cells (model x block) that they span."""

import difflib
import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from hialign.study import blocks as blocks_
from hialign.study import paths
from hialign.study.base import Settings, check_folder
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.load import brief, load_yaml, one_line
from hialign.study.probe_settings import ProbeSettings
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
Sections = dict[str, Any]  # settings by the name of their section, as a record holds them
# The probes of a model in the order in which they are run
PROBES = ("gradients", "matrix", "ila", "patching", "sweep", "weights")


class Study(Settings):
    """The models, blocks, data and settings of one experiment."""

    name: Annotated[str, AfterValidator(check_folder)]
    title: str
    description: str = ""
    models: list[ModelSettings] = Field(min_length=1)
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

    @property
    def argument(self) -> str:
        """The name that the user gave the study, quoted for the commands in error messages."""
        return self._argument or shlex.quote(self.name)

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

    def cells(self) -> list["Cell"]:
        return [Cell(self, model, block) for model in self.models for block in self.blocks]

    def cell(self, model: str | None, block: str) -> "Cell":
        return Cell(self, self.model(model), blocks_.check_block(block))


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
    """One model x block of a study."""

    study: Study
    model: ModelSettings
    block: str

    @property
    def folder(self) -> Path:
        return paths.cell_dir(self.study.name, self.model.name, self.block)

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
        parts[probe] = getattr(probes, probe) or getattr(ProbeSettings(), probe)
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
    loaded._argument = shlex.quote(given)
    return loaded


def stages_of(cell: Cell) -> list[str]:
    """The stages that a cell of this study goes through."""
    return [stage for stage in STAGES if stage != "judge" or cell.study.judge]


def probes_of(study: Study) -> list[str]:
    """The probes that a study runs of each of its models."""
    return [name for name in PROBES if study.probes and getattr(study.probes, name)]
