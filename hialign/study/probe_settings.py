"""What all settings of a study have in common, and those of the probes.

Nothing in the papers says how large a measurement has to be: the numbers here are ours. They are
sized for a GPU; a study for a laptop sets smaller ones. Upper bounds are far above what anybody
would want: they are there so that a slip of the keyboard is found before anything starts.
"""

import re
import unicodedata
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hialign.study import paths
from hialign.study.blocks import LARGEST_RANK, LARGEST_SEED, check_block

SEVERAL_LINES = ("title", "description")  # the only texts that may have more than one

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Pairs = Annotated[int, Field(ge=0, le=100_000_000)]  # or prompts
Resamples = Annotated[int, Field(ge=20, le=1_000_000)]


class Settings(BaseModel):
    """A section of a study. What is not a field is refused, and so are numbers that are not finite.

    Two sections are equal if their fields are: what is noted in private attributes does not count.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number is wanted (pydantic makes 1 of it), and control characters."""
        name = str(info.field_name)
        numeric = _wants_number(cls.model_fields[name].annotation)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, bool) and numeric:
                raise ValueError("a number is wanted, and no truth value")
            if isinstance(part, str):
                text = re.sub(r"[\n\t]", "", part) if name in SEVERAL_LINES else part
                if has_control(text):
                    raise ValueError("it has a line break or another control character")
        return value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__


def _wants_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_wants_number, get_args(annotation)))


def has_control(text: str) -> bool:
    """Whether `text` has a line break, a tab, another control character or half a character."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def check_name(name: str) -> str:
    """`name` itself if files can be named after it; else ValueError."""
    if not name.strip():
        raise ValueError("the name is empty; give a `name`")
    if has_control(name):
        raise ValueError("the name has control characters; give another `name`")
    if len(name) > 100 or len(paths.slug(name).encode()) > 150:
        raise ValueError("the name has over 100 characters (or 150 bytes); give a shorter `name`")
    return name


def check_folder(name: str) -> str:
    """`name` itself if a folder can be named after it that is not one of ours; else ValueError."""
    folder = paths.slug(check_name(name))
    if folder.startswith("."):
        raise ValueError(f"the name {name!r} begins with a dot; give another `name`")
    if folder.casefold() in paths.RESERVED:
        raise ValueError(
            f"the name {name!r} is reserved for a folder that hialign makes; give another `name`"
        )
    return name


class GradientSettings(Settings):
    """Hypothesis 2: whose parameters an objective's loss wants to move (probes/gradients.py)."""

    contrast_prompts: Pairs = Field(24, ge=2)  # built-in held-out prompts, three contrasts each
    permutations: Resamples = Field(10_000, ge=100)  # of objectives within prompts, for the null
    # Along training: the optimizer steps of the block `full` after which the gradient is taken again
    # (those that the study's training has), and the pairs of each source that it is taken on. No
    # steps: at initialization only.
    at_steps: list[Annotated[Steps, Field(ge=1)]] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    along_pairs: Pairs = Field(24, ge=2)


class MatrixSettings(Settings):
    """Which block helps which objective: a full factorial (probes/matrix.py)."""

    blocks: list[str] = Field(["full", "local", "mid", "global"], min_length=1)
    # Built-in pairs of an objective; the training of `all` has as many.
    train: Pairs = Field(96, ge=2)
    contrast_prompts: Pairs = Field(24, ge=2)  # held-out prompts that it is tested on
    seeds: list[Seed] = Field([42, 43, 44], min_length=1, max_length=1_000)

    @field_validator("blocks")
    @classmethod
    def _known_blocks(cls, names: list[str]) -> list[str]:
        return [check_block(name) for name in names]


class IlaSettings(Settings):
    """ILA: gates on each adapted matrix's change (probes/ila.py). A reconstruction."""

    # `study` is the study's own preference source, `builtin` all objectives together; or one
    # objective, or the folder of LLMBar, or any other source of pairs.
    datasets: list[str] = ["study", "grammar", "coherence", "factuality"]
    # The paper's setting is SFT, this companion's DPO.
    losses: list[Literal["dpo", "sft"]] = Field(["dpo", "sft"], min_length=1)
    # Pairs of each data set on which adapters and gates are learned; all there are if it has fewer
    # (96 an objective).
    train: Pairs = Field(192, ge=2)
    gate_start: float = 4.0  # s_i at first: sigmoid(4) = 0.98, a change nearly left as it is
    gate_steps: Steps = Field(100, ge=1)
    gate_batch: Batch = 8  # pairs of a gate step
    gate_learning_rate: float = Field(0.1, gt=0)  # length of a step, over all s together
    sparsity: float = Field(0.0, ge=0)  # lambda: 0 leaves only the ranking with a meaning
    seeds: list[Seed] = Field([42, 43, 44], min_length=1, max_length=1_000)
    # Per cent of the matrices that are tuned alone; the most of them has as many parameters as the
    # thirds at equal parameters.
    top: list[Annotated[int, Field(gt=0, lt=100)]] = Field([10, 20, 30], min_length=1)
    freeze: int = Field(25, gt=0, lt=100)  # per cent of the matrices that are not tuned
    # As many sets drawn at random for each intervention
    random_sets: int = Field(3, ge=1, le=1_000)
    # Held-out pairs, to compare them; null: all of `probes.pairs`
    pairs: Pairs | None = Field(None, ge=2)

    @field_validator("datasets")
    @classmethod
    def _with_the_study(cls, names: list[str]) -> list[str]:
        if "study" not in names:
            raise ValueError("`study` must be among them: its ranking is what blocks are made of")
        return names

    @field_validator("datasets", "losses", "seeds", "top")
    @classmethod
    def _once_each(cls, values: list[object]) -> list[object]:
        if len(set(values)) < len(values):
            raise ValueError("one of them is given twice")
        return values


class PatchingSettings(Settings):
    """Alignment is Localized: causal patching (probes/patching.py). A reconstruction."""

    tuned: str = "full"  # a block of the study, or a tuned model (hub id or folder)
    patched: Pairs | None = Field(None, ge=2)  # pairs that are patched; null: all of `probes.pairs`
    window: Layers | None = None  # consecutive layers; null: a third of the depth
    ranks: list[Rank] = [1, 2, 4, 8, 16]
    rank_layers: Layers = 1  # layers that recover most, whose difference is taken apart
    stability_resamples: Resamples = Field(100, ge=20)  # bootstrap samples of the LASSO


class SweepSettings(Settings):
    """Tuning gain by depth: every window of a third, and every layer alone (probes/sweep.py)."""

    train: Pairs | None = Field(None, ge=2)  # of the study's training pairs; null takes all
    singles: bool = True  # also each layer alone
    # Held-out pairs, to compare them; null: all of `probes.pairs`
    pairs: Pairs | None = Field(None, ge=2)


class WeightsSettings(Settings):
    """What the weights alone say: of the base model, and of a tuned block (probes/weights.py)."""

    tuned: str = "full"  # a block of the study


class ProbeSettings(Settings):
    """The probes of a study's models: what is measured, on how many pairs."""

    pairs: Pairs = Field(200, ge=2)  # held-out pairs of the study's source
    # Tokens of prompt and response. A longer pair is left out, not cut: what a patch or a gradient
    # does to half a response is no answer to anything.
    max_length: Tokens = Field(512, ge=8)
    seed: Seed = 42
    resamples: Resamples = Field(2_000, ge=100)  # bootstrap
    gradients: GradientSettings | None = GradientSettings()
    matrix: MatrixSettings | None = MatrixSettings()
    ila: IlaSettings | None = IlaSettings()
    patching: PatchingSettings | None = PatchingSettings()
    sweep: SweepSettings | None = SweepSettings()
    weights: WeightsSettings | None = WeightsSettings()
