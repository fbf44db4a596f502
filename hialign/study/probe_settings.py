"""The settings of the probes of a study.

The papers do not say how large a measurement has to be, so the numbers here are ours. They are sized
for a GPU, and a study for a laptop sets smaller ones.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from hialign.study.base import Batch, Layers, Pairs, Rank, Resamples, Seed, Settings, Steps, Tokens
from hialign.study.blocks import check_block

Sketched = Annotated[int, Field(ge=16, le=1_048_576)]


class GradientSettings(Settings):
    """Hypothesis 2: which layers the gradient of each objective's loss points to (probes/gradients)."""

    # Built-in held-out prompts with three contrasts each. They are not measured if the study's own
    # held-out pairs are contrasts of as many prompts.
    contrast_prompts: Pairs = Field(24, ge=2)
    # Labellings by chance, the null of the signal
    flips: Resamples = Field(2_000, ge=100)
    # Dimensions to which the gradient of each weight matrix is projected, so that those of all pairs
    # fit into memory. A prime (hialign.probes.gradients.sketch). null: none, for small models.
    sketch: Sketched | None = 4_093
    # Of objectives within prompts, the null of the paper's inequality
    permutations: Resamples = Field(10_000, ge=100)
    # Along training: the optimizer steps of the block `full` after which the norms are taken again,
    # as far as the study's training has them. An empty list takes them at initialization only.
    at_steps: list[Annotated[Steps, Field(ge=1)]] = Field([1, 2, 4, 8, 16, 32, 64, 128, 256])
    along_pairs: Pairs = Field(24, ge=2)  # pairs of each source that they are then taken on


class MatrixSettings(Settings):
    """Which block helps which objective, as a full factorial design (probes/matrix.py).

    The pairs are the study's own if its source is made of contrasts (`builtin`, `contrasts`), and
    the built-in ones otherwise.
    """

    blocks: list[str] = Field(["full", "local", "mid", "global"], min_length=1)
    # Pairs of each objective. Training on all objectives together uses as many in total.
    train: Pairs = Field(96, ge=2)
    # Whether the blocks are trained on all objectives together, too. The cells of a study whose pairs
    # are contrasts do that already.
    together: bool = True
    contrast_prompts: Pairs = Field(24, ge=2)  # held-out prompts that the blocks are tested on
    # Contrasts that people made, on which the blocks are tested, too: grammar by BLiMP, factuality by
    # the corrected answers of qa-feedback
    sets: list[Literal["blimp", "qa-feedback"]] = Field([])
    set_pairs: Pairs | None = Field(None, ge=2)  # of each of them. null: all
    seeds: list[Seed] = Field([42, 43, 44], min_length=1, max_length=1_000)

    @field_validator("blocks")
    @classmethod
    def _known_blocks(cls, names: list[str]) -> list[str]:
        return [check_block(name) for name in names]


class IlaSettings(Settings):
    """ILA: gates on the change of each adapted matrix (probes/ila). A reconstruction."""

    # `study` is the study's own preference source, `builtin` all objectives together. A name may also
    # be one objective, the folder of LLMBar, or any other source of pairs.
    datasets: list[str] = Field(["study", "grammar", "coherence", "factuality"])
    # The paper uses SFT, this companion DPO.
    losses: list[Literal["dpo", "sft"]] = Field(["dpo", "sft"], min_length=1)
    # Pairs of each data set on which adapters and gates are learned, or all pairs if there are fewer,
    # as with one objective (96).
    train: Pairs = Field(192, ge=2)
    gate_start: float = 4.0  # s_i at the start: sigmoid(4) = 0.98 leaves the change almost as it is
    gate_steps: Steps = Field(100, ge=1)
    gate_batch: Batch = 8  # pairs of a gate step
    gate_learning_rate: float = Field(0.1, gt=0)  # length of a step over all s together
    sparsity: float = Field(0.0, ge=0)  # lambda. At 0 only the ranking of the gates has a meaning.
    seeds: list[Seed] = Field([42, 43, 44], min_length=1, max_length=1_000)
    # Per cent of the matrices that are tuned alone. The largest share has as many parameters as the
    # thirds that it is compared with.
    top: list[Annotated[int, Field(gt=0, lt=100)]] = Field([10, 20, 30], min_length=1)
    freeze: int = Field(25, gt=0, lt=100)  # per cent of the matrices that are not tuned
    # Sets of matrices drawn at random, for each intervention
    random_sets: int = Field(3, ge=1, le=1_000)
    # Held-out pairs for the comparison. null: all of `probes.pairs`
    pairs: Pairs | None = Field(None, ge=2)

    @field_validator("datasets")
    @classmethod
    def _with_the_study(cls, names: list[str]) -> list[str]:
        if "study" not in names:
            raise ValueError(
                "`study` must be among them: blocks such as ila:top30% use its ranking"
            )
        return names

    @field_validator("datasets", "losses", "seeds", "top")
    @classmethod
    def _once_each(cls, values: list[object]) -> list[object]:
        if len(set(values)) < len(values):
            raise ValueError("one of them is given twice")
        return values


class PatchingSettings(Settings):
    """Alignment is Localized: causal patching (probes/patching). A reconstruction."""

    tuned: str = "full"  # a block of the study, or a tuned model (hub id or folder)
    # Pairs on which layers' weights are swapped, each by itself. null: all of `probes.pairs`
    swapped: Pairs | None = Field(None, ge=2)
    # Random adapters of the same norms, each of which costs as much as the swaps themselves. With
    # fewer than two there is no null, and the probe has no vote.
    null_draws: int = Field(4, ge=0, le=1_000)
    patched: Pairs | None = Field(None, ge=2)  # pairs with patched activations. null: all
    window: Layers | None = None  # consecutive layers. null: a third of the depth
    ranks: list[Rank] = Field([1, 2, 4, 8, 16])
    rank_layers: Layers = 1  # how many of the layers that recover most are decomposed by rank
    # Of a LASSO that is gone: it found nothing that was planted. Published studies still name it.
    stability_resamples: Resamples | None = Field(None, exclude=True)


class SweepSettings(Settings):
    """Tuning gain by depth: every window of a third, and every layer alone (probes/sweep.py)."""

    train: Pairs | None = Field(None, ge=2)  # of the study's training pairs. null: all of them
    singles: bool = True  # also each layer alone
    # Held-out pairs for the comparison. null: all of `probes.pairs`
    pairs: Pairs | None = Field(None, ge=2)


class WeightsSettings(Settings):
    """Measures of the weights alone, of the base model and of a tuned block (probes/weights.py)."""

    tuned: str = "full"  # a block of the study


class FrontierSettings(Settings):
    """Accuracy against KL divergence from base along training (probes/frontier.py).

    Of a study of several seeds, it is measured for the first.
    """

    # Optimizer steps after which all blocks of the study are measured, beside the last one
    at_steps: list[Annotated[Steps, Field(ge=1)]] = Field([1, 2, 4, 8, 16, 32, 64, 128, 256])
    pairs: Pairs = Field(100, ge=2)  # held-out pairs


class ProbeSettings(Settings):
    """The probes of a study's models, and on how many pairs they measure."""

    pairs: Pairs = Field(200, ge=2)  # held-out pairs of the study's source
    # Tokens of prompt and response. A longer pair is left out, not cut, because the effect of a patch
    # or the gradient on half a response means nothing.
    max_length: Tokens = Field(512, ge=8)
    seed: Seed = 42
    resamples: Resamples = Field(2_000, ge=100)  # bootstrap
    gradients: GradientSettings | None = GradientSettings()
    matrix: MatrixSettings | None = MatrixSettings()
    ila: IlaSettings | None = IlaSettings()
    patching: PatchingSettings | None = PatchingSettings()
    sweep: SweepSettings | None = SweepSettings()
    weights: WeightsSettings | None = WeightsSettings()
    frontier: FrontierSettings | None = None  # only where a study asks for it

    def at(self, seed: int) -> "ProbeSettings":
        """The settings for one seed of a study: probes that train by themselves use it alone."""
        matrix = self.matrix and self.matrix.model_copy(update={"seeds": [seed]})
        ila = self.ila and self.ila.model_copy(update={"seeds": [seed]})
        return self.model_copy(update={"seed": seed, "matrix": matrix, "ila": ila})
