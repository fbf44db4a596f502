"""The sections of a study: its models, data, training, responses, evaluation and judge.

A default is the paper's value, and its comment says where the paper has it. What the paper leaves
open is a named setting with our choice and the reason (collected in `book/choices.md`).
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from hialign.study import paths
from hialign.study.base import (
    Batch,
    Pairs,
    Rank,
    Resamples,
    Seed,
    Settings,
    Steps,
    Tokens,
    check_folder,
    check_name,
)
from hialign.study.blocks import check_block
from hialign.study.errors import HialignError
from hialign.study.load import brief, explain

# Settings that change time, memory or money, but no result beyond rounding.
COSTS_ONLY = {
    "training": [
        "gradient_checkpointing", "save_steps", "engine", "tokens_per_pass", "one_pass", "report_to",
    ],
    "judge": [
        "attempts", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "prices",
        "max_cost", "max_failed", "api_key_env",
    ],
}  # fmt: skip


class ModelSettings(Settings):
    """One base model. In YAML a bare string is its `source`."""

    source: str  # hub id, folder, `embedded:smollm2-135m-instruct` or `random:<family>`
    revision: str | None = None  # of a hub id. The paper names none.
    name: str = ""  # folder name under outputs/<study>/
    label: str = ""  # in tables and plots
    # Table 5 has bfloat16. On a CPU it is slower than float32 and less exact, hence `auto`.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: str | None = None  # transformers' attn_implementation. null: its own choice
    # The paper does not say which template it used. By default it is the tokenizer's own, or the
    # plain template of hialign.engine for a base model without one. A path to a Jinja file replaces
    # both.
    chat_template: str | None = None
    _hint: str = PrivateAttr("")

    @property
    def hint(self) -> str:
        """What an error may add when the source cannot be loaded: `did you mean 'org/name'?`"""
        return self._hint

    @model_validator(mode="after")
    def _named(self) -> Self:
        bare = self.source.rstrip("/")
        if "/" in bare and (bare.startswith((".", "/", "~")) or is_folder(bare)):
            bare = Path(bare).name
        bare = bare.split(":", 1)[1] if bare.startswith(("embedded:", "random:")) else bare
        name = self.name or (f"random-{bare}" if self.source.startswith("random:") else bare)
        object.__setattr__(self, "name", check_folder(name))
        object.__setattr__(self, "label", self.label or name.rsplit("/", 1)[-1])
        return self


def is_folder(source: str) -> bool:
    """Whether a model's source is an existing folder. Relative ones are in the repository."""
    return os.path.isdir(paths.from_root(source))


def model_from(source: str) -> ModelSettings:
    """The model of a `source` that a user typed. HialignError says what is wrong with it."""
    try:
        return ModelSettings(source=source)
    except ValidationError as error:
        raise HialignError(f"model {brief(source)}: {explain(error, source)}") from None


class PreferenceSettings(Settings):
    """Preference pairs, and how they are split (section 4.1)."""

    source: str = (
        "Anthropic/hh-rlhf"  # section 4.1. Or a file, folder, hub set, `builtin`, `contrasts`
    )
    revision: str | None = None
    # Tranches of hh-rlhf. The paper names none. null: the four that the hub loads by default, which
    # leave out the red-team attempts, as these are not preference pairs.
    subsets: list[str] | None = None
    # Of a source with a training and a test split: this one alone, of which a part is held out.
    split: Literal["train", "test"] | None = None
    # Words of a prompt with the longer of its responses. Longer pairs are left out and counted, so that
    # none has to be cut. Not in the paper. null: no limit
    longest: int | None = Field(None, ge=1, le=10_000_000)
    train: Pairs | None = Field(10_000, ge=1)  # section 4.1: 10k. null: all
    evaluation: Pairs | None = Field(1_000, ge=1)  # section 4.1: 1k held out
    seed: Seed = 42  # Table 5 (seed for data). It decides which pairs are held out.
    # Not in the paper. null: the training pairs come in the order that `seed` gives. A number draws
    # them anew from all pairs that `seed` does not hold out, so that a study can be repeated with
    # other training pairs and the same held-out ones.
    draw: Seed | None = None
    # Not in the paper, a control: chosen and rejected of each training pair are exchanged with
    # probability one half, by `draw` or else `seed`. Held-out pairs never are.
    shuffled: bool = False


class TrainingSettings(Settings):
    """DPO on LoRA adapters inside one block (sections 3.2.2, 3.2.3; Table 5)."""

    learning_rate: float = Field(1e-5, gt=0)  # Table 5
    # Not in the paper, which has one rate for all. By block, where one needs another.
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    optimizer: str = "adamw_torch"  # Table 5: AdamW
    weight_decay: float = Field(0.01, ge=0)  # Table 5
    adam_beta1: float = Field(0.9, ge=0, lt=1)  # Table 5
    adam_beta2: float = Field(0.999, ge=0, lt=1)  # Table 5
    batch_size: Batch = 6  # Table 5, pairs on a device
    gradient_accumulation_steps: Batch = 4  # Table 5: 24 pairs an optimizer step
    # Table 5. `int` comes first, so that 1 stays 1 in a copy.
    epochs: int | float = Field(1, gt=0, le=10_000)
    beta: float = Field(0.1, gt=0)  # Table 5, the DPO beta of Eq. 1
    lora_rank: Rank = 16  # Table 5
    lora_alpha: int = Field(32, ge=1, le=1_000_000)  # Table 5
    lora_dropout: float = Field(0.05, ge=0, lt=1)  # Table 5
    # Table 5
    target_modules: list[str] = Field(["q_proj", "k_proj", "v_proj", "o_proj"], min_length=1)
    gradient_checkpointing: bool = True  # Table 5. It costs time and changes no result.
    max_length: Tokens = Field(2048, ge=8)  # Table 5, tokens of prompt and response
    seed: Seed = 42  # Table 5
    # Not in the paper. Scheduler and warm-up have the defaults of transformers' Trainer, which the
    # paper says it used.
    scheduler: str = "linear"
    warmup_steps: Steps = 0
    max_grad_norm: float = Field(1.0, ge=0)  # Trainer's default
    # Not in the paper. TRL's own default switches every dropout off, including LoRA's, so that Table
    # 5's 0.05 would have no effect. We leave dropout on.
    disable_dropout: bool = False
    # Not in the paper. TRL's default cuts what is over `max_length` from the end. `leave_out` leaves
    # longer pairs out, in training and in evaluation.
    truncation: Literal["keep_start", "keep_end", "leave_out"] = "keep_start"
    save_steps: Steps = Field(50, ge=1)  # a killed run resumes from here
    # How training is computed, which changes time and memory, but no result beyond rounding.
    engine: Literal["packed", "stock"] = "packed"  # `stock` is TRL's own trainer
    # Of one forward pass. null: 1024 on a CPU, on a GPU 8192 with checkpointing and 4096 without
    tokens_per_pass: Tokens | None = None
    one_pass: bool = True  # whether `hialign reproduce` trains all blocks of a model in one pass
    report_to: list[str] = Field([])  # trackers of transformers' Trainer: tensorboard, wandb, …

    @field_validator("learning_rates")
    @classmethod
    def _of_blocks(cls, rates: dict[str, float]) -> dict[str, float]:
        return {check_block(block): rate for block, rate in rates.items()}

    def rate_of(self, block: str) -> float:
        """The learning rate of a block."""
        return self.learning_rates.get(block, self.learning_rate)

    @property
    def effective_batch(self) -> int:
        """Pairs in one optimizer step (on one device)."""
        return self.batch_size * self.gradient_accumulation_steps


class ResponseSettings(Settings):
    """How a cell answers the held-out prompts. The paper gives no decoding settings."""

    prompts: Pairs | None = Field(1_000, ge=1)  # section 4.1: the 1k held-out prompts
    # Greedy decoding gives one answer per prompt, which anyone can reproduce. Strategies then differ
    # by their weights and not by a draw.
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: Tokens = 512  # long enough for hh-rlhf. Cut answers are marked.
    max_prompt_tokens: Tokens = Field(1536, ge=8)  # with the answer within Table 5's 2048
    batch_size: Batch = 16
    seed: Seed = 42


class EvaluationSettings(Settings):
    """The evaluation without a judge. It is ours, as the paper has none."""

    pairs: Pairs | None = Field(None, ge=1)  # of the held-out pairs. null: all
    # How many of the 24 built-in held-out prompts are used. Their three contrasts give the matrix of
    # strategy x objective. 0 leaves it out.
    contrast_prompts: Pairs = 24
    # Test sets that people made, of which `hialign.preferences.test_sets` knows where they come from.
    # On each, the model is asked which of two responses it prefers.
    sets: list[Literal["blimp", "qa-feedback", "llmbar", "hhh"]] = Field([])
    set_pairs: Pairs | None = Field(None, ge=1)  # of each test set. null: all
    batch_size: Batch = 8
    resamples: Resamples = Field(10_000, ge=100)  # bootstrap


class Prices(Settings):
    """What a judge's tokens cost, in USD per million."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)  # null: the price of other input
    batch_discount: float = Field(0.5, ge=0, le=1)  # share of the price that a batch saves


class JudgeSettings(Settings):
    """Who scores the responses (section 4.1, Appendix D)."""

    backend: Literal["openai", "local"] = "openai"
    # Section 4.1: Qwen3-Max. A dated snapshot does not change behind its name.
    model: str = "qwen3-max-2025-09-23"
    revision: str | None = None  # of a local judge from the hub
    base_url: str | None = None  # null: the client's own default
    api_key_env: str = "OPENAI_API_KEY"  # the variable with the key. Keys are never in files.
    name: str = ""  # judgments-<name>.jsonl
    temperature: float = Field(0.0, ge=0, le=100)  # not in the paper. 0 has the least noise.
    max_tokens: Tokens = Field(4096, ge=16)
    seed: Seed = 42
    # More fields of a request, as the endpoint names them (`enable_thinking: false`, …).
    extra_body: dict[str, Any] = Field({})
    rubric: str | None = None  # a file of your own instead of Table 6
    # `random` draws the order of the dimensions from `seed` for each prompt, the same for all
    # strategies, so that no dimension always comes first. Providers cannot cache the prompt then.
    dimension_order: Literal["fixed", "random"] = "fixed"  # fixed: Table 6
    # These change what a run costs, and not its results.
    attempts: int = Field(
        3, ge=1, le=1_000
    )  # requests per response, after which its scores are missing
    concurrency: int = Field(16, ge=1, le=10_000)  # requests in flight
    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)
    timeout: float = Field(300.0, gt=0, le=86_400)  # seconds for one answer
    prices: Prices | None = None
    max_cost: float | None = Field(None, gt=0)  # USD for all of the study's judgments
    # Not in the paper. If a larger share of a cell's responses has no valid judgment, the stage counts
    # as failed. This changes no score.
    max_failed: float = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _named(self) -> Self:
        bare = self.model.split(":", 1)[-1].rstrip("/")
        prefix = "local-" if self.backend == "local" else ""
        name = self.name or prefix + paths.slug(bare).lstrip(".-")
        if "/" in name:
            raise ValueError(f"the name {name!r} has a slash: give another `name`")
        object.__setattr__(self, "name", check_name(name))
        return self

    @field_validator("extra_body")
    @classmethod
    def _as_json(cls, body: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(body, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"it cannot be sent as JSON ({error})") from None
        return body

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("max_cost needs prices: give input and output, USD per million tokens")
        if self.backend == "local" and self.dimension_order == "random":
            raise ValueError(
                "dimension_order: a local judge scores each dimension alone, so leave it out"
            )
        return self


class ValidationSettings(Settings):
    """What the judge is measured against (`hialign judge STUDY --validate`)."""

    # Further judges, which score a part of the same responses
    judges: list[JudgeSettings] = Field([])


class AnalysisSettings(Settings):
    """What the statistics of the judge's scores need to know before any score is seen.

    No stage depends on these settings, so changing them makes no run stale.
    """

    # Non-inferiority: a strategy matches Full-DPO if it loses less than this, in points of the 1-5
    # scale. The paper says "matches" without a margin. Ours is a third of what Full-DPO gains over
    # Base in its Table 2 (0.302), so that a strategy that matches keeps two thirds of the gain. A
    # judge whose scores vary less than the paper's (std 1.3) needs a smaller margin. An alignment tax
    # below the margin counts as none.
    margin: float = Field(0.1, gt=0)
    power: float = Field(0.8, gt=0.05, lt=1)  # of a test, for the number of prompts it needs
