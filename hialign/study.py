"""Studies: `studies/*.yml` as checked settings, and the cells (model x block) that they span.

Every default is the paper's value and says where it stands; what the paper leaves open is a named
setting with our choice and the reason (`book/choices.md` tells them together).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from hialign import blocks as blocks_
from hialign import paths
from hialign.errors import HialignError
from hialign.settings import (
    GradientSettings,
    IlaSettings,
    MatrixSettings,
    PatchingSettings,
    ProbeSettings,
    Settings,
    SweepSettings,
    WeightsSettings,
)

STAGES = ("train", "respond", "evaluate", "judge")
# The probes of a model, in the order in which they are run, and their settings
PROBES: Mapping[str, type[Settings]] = {
    "gradients": GradientSettings,
    "matrix": MatrixSettings,
    "ila": IlaSettings,
    "patching": PatchingSettings,
    "sweep": SweepSettings,
    "weights": WeightsSettings,
}


class ModelSettings(Settings):
    """One base model. In YAML a bare string is its `source`."""

    source: str  # hub id, folder, `embedded:smollm2-135m-instruct` or `random:<family>`
    revision: str | None = None  # of a hub id; the paper names none
    name: str = ""  # folder name under outputs/<study>/
    label: str = ""  # in tables and plots
    # Table 5 has bfloat16; on a CPU it is slower than float32 and less exact, hence `auto`
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: str | None = None  # transformers' attn_implementation; its own choice by default
    # The paper does not say which template it used: the tokenizer's own, or, for a base model
    # without one, the plain template of hialign.models. A path to a Jinja file replaces both.
    chat_template: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        bare = self.source.rstrip("/")
        if "/" in bare and (bare.startswith((".", "/", "~")) or Path(bare).is_dir()):
            bare = Path(bare).name
        bare = bare.split(":", 1)[1] if bare.startswith(("embedded:", "random:")) else bare
        name = self.name or (f"random-{bare}" if self.source.startswith("random:") else bare)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "label", self.label or name.rsplit("/", 1)[-1])
        return self


class PreferenceSettings(Settings):
    """Preference pairs, and how they are split (section 4.1)."""

    source: str = "Anthropic/hh-rlhf"  # section 4.1; or a file, a folder, a hub set, `builtin`
    revision: str | None = None
    # Tranches of hh-rlhf. The paper names none: the four that the hub loads by default (no
    # red-team attempts, which are not preference pairs).
    subsets: list[str] | None = None
    train: int | None = Field(10_000, ge=1)  # section 4.1: 10k; null takes all there are
    evaluation: int | None = Field(1_000, ge=1)  # section 4.1: 1k held out
    seed: int = Field(42, ge=0, lt=2**32)  # Table 5 (seed for data); NumPy's bounds


# These change time, memory or money, and no number beyond rounding.
COSTS_ONLY = {
    "training": (
        *("gradient_checkpointing", "save_steps", "engine", "tokens_per_pass"),
        *("one_pass", "report_to"),
    ),
    "judge": (
        *("attempts", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout"),
        *("prices", "max_cost", "api_key_env"),
    ),
}


class TrainingSettings(Settings):
    """DPO on LoRA adapters inside one block (sections 3.2.2, 3.2.3; Table 5)."""

    learning_rate: float = Field(1e-5, gt=0)  # Table 5
    optimizer: str = "adamw_torch"  # Table 5: AdamW
    weight_decay: float = Field(0.01, ge=0)  # Table 5
    adam_beta1: float = 0.9  # Table 5
    adam_beta2: float = 0.999  # Table 5
    batch_size: int = Field(6, ge=1)  # Table 5, pairs on a device
    gradient_accumulation_steps: int = Field(4, ge=1)  # Table 5: 24 pairs an optimizer step
    epochs: int | float = Field(1, gt=0)  # Table 5; as it is written, so that 1 stays 1 in a copy
    beta: float = Field(0.1, gt=0)  # Table 5, the DPO beta of Eq. 1
    lora_rank: int = Field(16, ge=1)  # Table 5
    lora_alpha: int = Field(32, ge=1)  # Table 5
    lora_dropout: float = Field(0.05, ge=0, lt=1)  # Table 5
    target_modules: list[str] = Field(["q_proj", "k_proj", "v_proj", "o_proj"])  # Table 5
    gradient_checkpointing: bool = True  # Table 5; costs time, changes no number
    max_length: int = Field(2048, ge=8)  # Table 5, tokens of prompt and response
    seed: int = 42  # Table 5
    # Not in the paper. Scheduler and warm-up: the defaults of transformers' Trainer, which the
    # paper says it used.
    scheduler: str = "linear"
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)  # Trainer's default
    # Not in the paper. TRL's own default switches every dropout off, LoRA's too, which would make
    # Table 5's 0.05 a dead letter: we leave it on.
    disable_dropout: bool = False
    # Not in the paper. TRL's default: what is over `max_length` is cut from the end.
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    save_steps: int = Field(50, ge=1)  # a killed run resumes from here
    # How it is computed, which changes time and memory and no number (beyond rounding): the packed
    # engine or stock TRL; the tokens of one forward pass (null: 1024 on a CPU; on a GPU 8192 with
    # checkpointing, 4096 without); whether `reproduce` trains a model's blocks in one pass.
    engine: Literal["packed", "stock"] = "packed"
    tokens_per_pass: int | None = Field(None, ge=1)
    one_pass: bool = True
    report_to: list[str] = Field([])  # trackers of transformers' Trainer: tensorboard, wandb, …

    @property
    def effective_batch(self) -> int:
        """Pairs in one optimizer step (on one device)."""
        return self.batch_size * self.gradient_accumulation_steps


class ResponseSettings(Settings):
    """How a cell answers the held-out prompts. The paper gives no decoding settings."""

    prompts: int | None = Field(1_000, ge=1)  # section 4.1: the 1k held-out prompts
    # Greedy: one answer a prompt that anyone can make again, so that strategies differ by their
    # weights and not by a draw.
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(512, ge=1)  # long enough for hh-rlhf answers; cut ones are marked
    max_prompt_tokens: int = Field(1536, ge=8)  # with the answer within Table 5's 2048
    batch_size: int = Field(16, ge=1)
    seed: int = 42


class EvaluationSettings(Settings):
    """Judge-free evaluation; ours, the paper has none."""

    pairs: int | None = Field(None, ge=1)  # of the held-out pairs; null takes all
    # Built-in held-out prompts (24 there are) whose three contrasts give the strategy x objective
    # matrix; 0 leaves it out.
    contrast_prompts: int = Field(24, ge=0)
    batch_size: int = Field(8, ge=1)
    resamples: int = Field(10_000, ge=100)  # bootstrap


class Prices(Settings):
    """What a judge's tokens cost, in USD per million."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)  # null: as much as any other input
    batch_discount: float = Field(0.5, ge=0, le=1)  # what a batch saves of it


class JudgeSettings(Settings):
    """Who scores the responses (section 4.1, Appendix D)."""

    backend: Literal["openai", "local"] = "openai"
    model: str = (
        "qwen3-max-2025-09-23"  # section 4.1: Qwen3-Max; a dated snapshot, so that it stays
    )
    revision: str | None = None  # of a local judge from the hub
    base_url: str | None = None  # null: the client's own default
    api_key_env: str = "OPENAI_API_KEY"  # where the key is; keys never stand in files
    name: str = ""  # judgments-<name>.jsonl
    temperature: float = Field(0.0, ge=0)  # not in the paper: the least noise there is
    max_tokens: int = Field(4096, ge=16)
    seed: int = 42
    # More fields of a request, as the endpoint names them (`enable_thinking: false`, …).
    extra_body: dict[str, Any] = Field({})
    rubric: str | None = None  # a file of your own instead of Table 6
    # `random`: the dimensions in another order for each prompt (drawn from `seed`; the same for all
    # strategies), so that none always comes first. It ends a provider's caching of the prompt.
    dimension_order: Literal["fixed", "random"] = "fixed"  # fixed: Table 6
    # What a run costs, and not what it finds.
    attempts: int = Field(3, ge=1)  # asks per response before its scores are missing
    concurrency: int = Field(16, ge=1)  # requests in flight
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    timeout: float = Field(300.0, gt=0)  # seconds for one answer
    prices: Prices | None = None
    max_cost: float | None = Field(None, gt=0)  # USD for all of the study's judgments

    @model_validator(mode="after")
    def _named(self) -> Self:
        bare = self.model.split(":", 1)[-1].rstrip("/")
        prefix = "local-" if self.backend == "local" else ""
        object.__setattr__(self, "name", self.name or prefix + paths.slug(bare).lstrip(".-"))
        return self

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("max_cost needs prices: input and output, USD per million tokens")
        if self.backend == "local" and self.dimension_order == "random":
            raise ValueError("dimension_order: a local judge is asked for each dimension apart")
        return self


class ValidationSettings(Settings):
    """What the judge is measured against (`hialign judge STUDY --validate`)."""

    judges: list[JudgeSettings] = Field(
        []
    )  # further judges, who score a part of the same responses


class AnalysisSettings(Settings):
    """What the statistics of the judge's scores need to be told before these are seen.

    No stage depends on it: changing it makes no run stale.
    """

    # Non-inferiority: a strategy matches Full-DPO if it loses less than this, in points of the 1-5
    # scale. Not in the paper, whose "matches" has no margin: a third of what Full-DPO gains over
    # Base in its Table 2 (0.302), so that whatever matches keeps two thirds of the gain. A judge
    # whose scores lie closer together than the paper's (std 1.3) needs a smaller one. An alignment
    # tax below it counts as none.
    margin: float = Field(0.1, gt=0)
    power: float = Field(0.8, gt=0.05, lt=1)  # of a test, for the number of prompts that it needs


class Study(Settings):
    """The models, blocks, data and settings of one experiment."""

    name: str
    title: str
    description: str = ""
    models: list[ModelSettings] = Field(min_length=1)
    blocks: list[str] = Field(["base", "full", "local", "mid", "global"])  # Table 1
    preferences: PreferenceSettings = PreferenceSettings()
    training: TrainingSettings = TrainingSettings()
    responses: ResponseSettings = ResponseSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    judge: JudgeSettings | None = JudgeSettings()  # null: no judge
    validation: ValidationSettings = ValidationSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    probes: ProbeSettings | None = None  # null: none is run with the study

    @field_validator("models", mode="before")
    @classmethod
    def _bare_sources(cls, models: Any) -> Any:
        return [{"source": m} if isinstance(m, str) else m for m in models or []]

    @field_validator("blocks")
    @classmethod
    def _known_blocks(cls, names: list[str]) -> list[str]:
        for name in names:
            try:
                blocks_.check_block(name)
            except HialignError as error:
                raise ValueError(str(error)) from None
        if len(set(names)) < len(names):
            raise ValueError("a block stands twice")
        return names

    @model_validator(mode="after")
    def _one_folder_each(self) -> Self:
        for key in ("name", "label"):  # folders, and rows of tables
            values = [getattr(m, key) for m in self.models]
            if len(set(values)) < len(values):
                raise ValueError(f"two models have the same {key}: give one a `{key}` of its own")
        return self

    def model(self, name: str | None = None) -> ModelSettings:
        """The model called `name` (its name, label or source); the first if None.

        A model that the study does not list is taken as a source of its own.
        """
        if name is None:
            return self.models[0]
        for model in self.models:
            if name in (model.name, model.label, model.source):
                return model
        return ModelSettings(source=name)

    def cells(self) -> list["Cell"]:
        return [Cell(self, model, block) for model in self.models for block in self.blocks]

    def cell(self, model: str | None, block: str) -> "Cell":
        return Cell(self, self.model(model), blocks_.check_block(block))


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

    def settings(self, stage: str) -> dict[str, Any]:
        """All that `stage` depends on in the study, for its manifest and to tell what is stale."""
        study = self.study
        parts: dict[str, Any] = {"model": self.model, "block": self.block}
        parts["preferences"] = study.preferences
        if self.block != "base":
            parts["training"] = study.training
        if probe := blocks_.probe_of(self.block):  # what it measured chose the layers
            parts["probe"] = self.probe_settings(probe)
        if stage in ("respond", "evaluate", "judge"):
            parts["responses"] = study.responses
        if stage == "evaluate":
            parts["evaluation"] = study.evaluation
        if stage == "judge":
            parts["judge"] = study.judge
        return {k: v.model_dump() if isinstance(v, Settings) else v for k, v in parts.items()}

    def probe_settings(self, probe: str) -> dict[str, Any]:
        """All that the record of a probe of the cell's model depends on in the study."""
        study, probes = self.study, self.study.probes or ProbeSettings()
        parts: dict[str, Any] = {"model": self.model, "preferences": study.preferences}
        parts["training"] = study.training
        parts["probes"] = probes.model_dump(exclude=set(PROBES))
        parts[probe] = getattr(probes, probe) or PROBES[probe]()
        return {k: v.model_dump() if isinstance(v, Settings) else v for k, v in parts.items()}

    def probe_fingerprint(self, probe: str) -> str:
        """A short hash of `probe_settings(probe)`, as `fingerprint` is of a stage's."""
        return _hash(self.probe_settings(probe))

    def fingerprint(self, stage: str) -> str:
        """A short hash of `settings(stage)`: when it differs from a manifest's, the run is stale.

        Settings that change what a run costs and not what it finds are left out.
        """
        return _hash(self.settings(stage))


def _hash(settings: dict[str, Any]) -> str:
    text = json.dumps(_without_costs(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_costs(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` less what changes a run's cost alone; in those of its probe too."""
    kept = dict(settings)
    for part, names in COSTS_ONLY.items():
        if kept.get(part):
            kept[part] = {k: v for k, v in kept[part].items() if k not in names}
    return kept | ({"probe": _without_costs(kept["probe"])} if "probe" in kept else {})


def study_names() -> list[str]:
    return sorted(p.stem for p in paths.studies().glob("*.yml"))


def load_study(study: "str | Path | Study") -> Study:
    """The study called `study` (in `studies/`) or in the file `study`.

    Raises HialignError naming the file and the key for anything unknown or out of bounds. Relative
    folders in a study are relative to the repository.
    """
    if isinstance(study, Study):
        return study
    path = Path(study).expanduser()
    if path.suffix not in (".yml", ".yaml"):
        path = paths.studies() / f"{study}.yml"
        if not path.is_file():
            raise HialignError(
                f"there is no study {str(study)!r}: the ones in studies/ are "
                f"{', '.join(study_names())}; or give the path of a .yml file"
            )
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise HialignError(f"cannot read the study {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise HialignError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise HialignError(f"{path} is not a study: it must be a mapping with models, blocks, …")
    try:
        return Study(**{"name": path.stem, **content})
    except ValidationError as error:
        raise HialignError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """Each problem as `key.key: what is wrong`, on one line."""
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "study"
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}")
        elif problem["type"] == "missing":
            problems.append(f"key {key!r} is missing")
        else:
            problems.append(f"{key}: {problem['msg']} (it is {problem['input']!r})")
    return "; ".join(problems)
