"""What all settings of a study have in common, and those of the probes.

Nothing in the papers says how large a measurement has to be: the numbers here are ours. They are
sized for a GPU; a study for a laptop sets smaller ones.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class GradientSettings(Settings):
    """Hypothesis 2: whose parameters an objective's loss wants to move (probes/gradients.py)."""

    contrast_prompts: int = Field(24, ge=2)  # built-in held-out prompts, three contrasts each
    permutations: int = Field(10_000, ge=100)  # of objectives within prompts, for the null
    # Along training: the optimizer steps of the block `full` after which the gradient is taken again
    # (those that the study's training has), and the pairs of each source that it is taken on. No
    # steps: at initialization only.
    at_steps: list[int] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    along_pairs: int = Field(24, ge=2)


class MatrixSettings(Settings):
    """Which block helps which objective: a full factorial (probes/matrix.py)."""

    blocks: list[str] = ["full", "local", "mid", "global"]
    train: int = Field(
        96, ge=2
    )  # built-in pairs of an objective; the training of `all` has as many
    contrast_prompts: int = Field(24, ge=2)  # held-out prompts that it is tested on
    seeds: list[int] = Field([42, 43, 44], min_length=1)


class IlaSettings(Settings):
    """ILA: gates on each adapted matrix's change (probes/ila.py). A reconstruction."""

    # `study` is the study's own preference source, `builtin` all objectives together; or one
    # objective, or the folder of LLMBar, or any other source of pairs.
    datasets: list[str] = ["study", "grammar", "coherence", "factuality"]
    # The paper's setting is SFT, this companion's DPO.
    losses: list[Literal["dpo", "sft"]] = Field(["dpo", "sft"], min_length=1)
    # Pairs of each data set on which adapters and gates are learned; all there are if it has fewer
    # (96 an objective).
    train: int = Field(192, ge=2)
    gate_start: float = 4.0  # s_i at first: sigmoid(4) = 0.98, a change nearly left as it is
    gate_steps: int = Field(100, ge=1)
    gate_batch: int = Field(8, ge=1)  # pairs of a gate step
    gate_learning_rate: float = Field(0.1, gt=0)  # length of a step, over all s together
    sparsity: float = Field(0.0, ge=0)  # lambda: 0 leaves only the ranking with a meaning
    seeds: list[int] = Field([42, 43, 44], min_length=1)
    # Per cent of the matrices that are tuned alone; the most of them has as many parameters as the
    # thirds at equal parameters.
    top: list[Annotated[int, Field(gt=0, lt=100)]] = Field([10, 20, 30], min_length=1)
    freeze: int = Field(25, gt=0, lt=100)  # per cent of the matrices that are not tuned
    random_sets: int = Field(3, ge=1)  # as many sets drawn at random for each intervention
    pairs: int | None = Field(None, ge=2)  # held-out, to compare them; null: all of `probes.pairs`

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
            raise ValueError("one of them stands twice")
        return values


class PatchingSettings(Settings):
    """Alignment is Localized: causal patching (probes/patching.py). A reconstruction."""

    tuned: str = "full"  # a block of the study, or a tuned model (hub id or folder)
    patched: int | None = Field(None, ge=2)  # pairs that are patched; null: all of `probes.pairs`
    window: int | None = Field(None, ge=1)  # consecutive layers; null: a third of the depth
    ranks: list[int] = [1, 2, 4, 8, 16]
    rank_layers: int = Field(1, ge=1)  # layers that recover most, whose difference is taken apart
    stability_resamples: int = Field(100, ge=20)  # bootstrap samples of the LASSO


class SweepSettings(Settings):
    """Tuning gain by depth: every window of a third, and every layer alone (probes/sweep.py)."""

    train: int | None = Field(None, ge=2)  # of the study's training pairs; null takes all
    singles: bool = True  # also each layer alone
    pairs: int | None = Field(None, ge=2)  # held-out, to compare them; null: all of `probes.pairs`


class WeightsSettings(Settings):
    """What the weights alone say: of the base model, and of a tuned block (probes/weights.py)."""

    tuned: str = "full"  # a block of the study


class ProbeSettings(Settings):
    """The probes of a study's models: what is measured, on how many pairs."""

    pairs: int = Field(200, ge=2)  # held-out pairs of the study's source
    # Tokens of prompt and response. A longer pair is left out, not cut: what a patch or a gradient
    # does to half a response is no answer to anything.
    max_length: int = Field(512, ge=8)
    seed: int = 42
    resamples: int = Field(2_000, ge=100)  # bootstrap
    gradients: GradientSettings | None = GradientSettings()
    matrix: MatrixSettings | None = MatrixSettings()
    ila: IlaSettings | None = IlaSettings()
    patching: PatchingSettings | None = PatchingSettings()
    sweep: SweepSettings | None = SweepSettings()
    weights: WeightsSettings | None = WeightsSettings()
