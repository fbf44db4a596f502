"""TRL's DPOTrainer, once with stock's own steps and once with ours.

`StockTrainer` is TRL's trainer with a clock, a progress bar and pairs that are tokenized already.
`BlockTrainer` replaces the work inside an optimizer step, as `hialign.engine.dpo` describes.
"""

import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DPOTrainer

from hialign.engine.decoder import Decoder, Layout
from hialign.engine.modules import decoder_layers, in_adapter, parameters_in
from hialign.engine.packing import pack, plan
from hialign.engine.progress import Progress
from hialign.engine.reference import Reference
from hialign.engine.strategy import Strategy
from hialign.engine.tokens import TokenizedPairs
from hialign.records.files import read_json
from hialign.study.errors import HialignError
from hialign.study.settings import TrainingSettings

# TRL's names of what each optimizer step logs, and ours (training.jsonl)
LOGGED = {
    "loss": "loss",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "seconds": "seconds",
    "shared_seconds": "shared_seconds",
    "num_tokens": "tokens",
}
COMMON = ("learning_rate", "num_tokens", "shared_seconds")  # the same for all blocks of a pass
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def sampled_layers(depth: int, period: int, step: int, seed: int) -> list[int]:
    """The layers, a third of `depth`, that LISA tunes in an optimizer step, counted from 0.

    Pan et al. (2024) tune the parameters themselves, with embeddings and head. Here the adapters
    are tuned, as in every other block.
    """
    generator = random.Random(seed * 1_000_003 + step // period)
    return sorted(generator.sample(range(depth), max(1, round(depth / 3))))


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """One line of progress, with the loss of the last optimizer step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = Progress(total=state.max_steps, initial=state.global_step, desc="train")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class LayerSampling(TrainerCallback):  # type: ignore[misc]
    """Draws LISA's layers in stock TRL's steps. Our own steps draw when they switch adapters."""

    def __init__(self, trainer: "StockTrainer") -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for strategy in self.trainer.strategies:
            self.trainer.sample_layers(strategy)


class StockTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer with its own steps, which are timed and shown as one line of progress."""

    is_stock = True
    strategies: list[Strategy]
    reference: Reference
    confinement: dict[str, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(ProgressBar())
        self.add_callback(LayerSampling(self))
        self._step_began = time.perf_counter()

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """TRL would tokenize here. `hialign.engine.tokens` has done that already."""
        return dataset

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint:  # TRL would count tokens from 0 again
            state = read_json(Path(resume_from_checkpoint) / "trainer_state.json")
            self._total_train_tokens = int(state["log_history"][-1]["num_tokens"])
        self._step_began = time.perf_counter()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        self.attribute(logs, seconds)
        super().log(logs, start_time)

    def sample_layers(self, strategy: Strategy) -> None:
        """Freeze what a strategy does not tune in this step, if it tunes a part at a time."""
        if strategy.period is None:
            return
        prefix, depth = decoder_layers(self.model.get_base_model())
        layers = sampled_layers(depth, strategy.period, self.state.global_step, self.args.seed)
        inside = tuple(f"base_model.model.{prefix}.{layer}." for layer in layers)
        for name, parameter in self.model.named_parameters():
            if in_adapter(name, strategy.adapter):
                parameter.requires_grad_(name.startswith(inside))

    def attribute(self, logs: dict[str, float], seconds: float) -> None:
        """Put a step's seconds into what is logged of it."""
        logs |= {"seconds": seconds, "shared_seconds": 0.0}


class BlockTrainer(StockTrainer):
    """One optimizer step of each strategy, on packed pairs and shared lower layers.

    TRL deals out the numbers of the pairs of a step, and keeps optimizer, schedule and checkpoints.
    """

    is_stock = False

    def prepare(
        self, base: PreTrainedModel, pairs: TokenizedPairs, settings: TrainingSettings
    ) -> None:
        """Hand over what a step works with: the base model, the pairs and the settings."""
        self.decoder = Decoder(base)
        self.pairs, self.settings = pairs, settings
        self.limit = settings.tokens_per_pass or default_tokens(base.device.type, settings)
        if settings.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self.decoder:
            return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        for strategy in self.strategies:
            for parameter in parameters_in(self.model, strategy.adapter):
                parameter.requires_grad_(True)
        optimizer = super().create_optimizer(*args, **kwargs)
        if any(strategy.rate != 1 for strategy in self.strategies):
            optimizer.param_groups = [
                own for group in optimizer.param_groups for own in self._by_rate(group)
            ]
        return optimizer

    def _by_rate(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A group of parameters, divided by strategy, each with the strategy's learning rate."""
        for strategy in self.strategies:
            own = {id(parameter) for parameter in parameters_in(self.model, strategy.adapter)}
            parameters = [parameter for parameter in group["params"] if id(parameter) in own]
            if parameters:
                yield {**group, "params": parameters, "lr": group["lr"] * strategy.rate}

    def epoch_at(self, step: int) -> float:
        """Epochs done after a step, counted in micro-batches as TRL counts them."""
        size, times = self.settings.batch_size, self.settings.gradient_accumulation_steps
        batches = math.ceil(len(self.pairs.tokens) / size)
        whole, rest = divmod(step, math.ceil(batches / times))
        return whole + rest * times / batches

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's estimate needs input_ids, and is that of a whole model

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the gradient of each strategy's loss over one effective batch, and clip it.

        Args:
            model: the PEFT model with all adapters.
            inputs: `index`, the numbers of the step's pairs.
            num_items_in_batch: unused.

        Returns:
            The loss (Eq. 1), averaged over the strategies, as a scalar.

        Raises:
            HialignError: if memory runs out, or if a loss or a gradient is not finite.
        """
        model.train()
        batch = inputs["index"].tolist()
        weights = dict(zip(batch, stock_weights(len(batch), self.settings), strict=True))
        tokens = self.pairs.tokens
        for strategy in self.strategies:
            strategy.sums = dict.fromkeys(LOGGED, 0.0)
        try:
            for row in plan([tokens[i] for i in batch], self.limit):
                self._pass([batch[i] for i in row], weights)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise self._out_of_memory(error) from None
        self._total_train_tokens += sum(len(t.ids) for i in batch for t in tokens[i])
        for strategy in self.strategies:
            self._clip(strategy, batch)
        for strategy in self.strategies:
            for name, value in strategy.sums.items():
                if name not in COMMON and name != "seconds":
                    self._metrics["train"][self._key(strategy.block, name)].append(value)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        losses = [strategy.sums["loss"] for strategy in self.strategies]
        return torch.tensor(sum(losses) / len(losses), device=self.args.device)

    def _pass(self, row: list[int], weights: Mapping[int, float]) -> None:
        """Forward and backward of each strategy on the pairs of one packed row."""
        layout = Layout(pack([self.pairs.tokens[i] for i in row]), self.decoder.device)
        with self.compute_loss_context_manager():
            hidden = self._shared(layout, row)
            options = {"dtype": torch.float64, "device": self.decoder.device}
            reference = torch.tensor([self.reference.values[i] for i in row], **options)
            weight = torch.tensor([weights[i] for i in row], **options)
            for strategy in self.strategies:
                began = self._now()
                # the same dropout in a pass of its own, and after a resumption
                torch.manual_seed(hash((self.settings.seed, self.state.global_step, *row)) % 2**32)
                self.model.set_adapter(strategy.adapter)
                self.sample_layers(strategy)
                self._backward(strategy, layout, hidden, reference, weight)
                strategy.sums["seconds"] += self._now() - began

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _shared(self, layout: Layout, row: list[int]) -> dict[int, torch.Tensor]:
        """Run the base model once for all strategies.

        Returns the hidden states that enter each layer at which a strategy starts (1 x T x width),
        and fills in the reference of the pairs that have none yet.
        """
        decoder, reference = self.decoder, self.reference
        lacking = any(reference.values[i] is None for i in row)
        taps = {s.start for s in self.strategies} - {0} | ({decoder.depth} if lacking else set())
        if not taps:
            return {}
        with self.model.disable_adapter():
            hidden = decoder.run(layout, taps)
            if lacking:
                log_probs = decoder.log_probs(hidden.pop(decoder.depth), layout).view(-1, 2)
                for i, (chosen, rejected) in zip(row, log_probs.tolist(), strict=True):
                    reference.values[i] = (chosen, rejected)
        return hidden

    def _backward(
        self,
        strategy: Strategy,
        layout: Layout,
        hidden: Mapping[int, torch.Tensor],
        reference: torch.Tensor,
        weight: torch.Tensor,
    ) -> None:
        """Add the gradient of the weighted loss (Eq. 1), and sum up what is logged.

        Args:
            strategy: the strategy whose adapter is active.
            layout: P pairs in one packed row of T tokens.
            hidden: by layer, the states that enter it (1 x T x width).
            reference: P x 2, the base model's log-probabilities of chosen and rejected, in nats.
            weight: P, each pair's share of the step's loss.
        """
        decoder, beta = self.decoder, self.settings.beta
        start = strategy.start
        top = decoder.run(layout, [decoder.depth], start, hidden.get(start))[decoder.depth]
        rewards = beta * (decoder.log_probs(top, layout).view(-1, 2) - reference)
        margins = rewards[:, 0] - rewards[:, 1]
        loss = -(weight * F.logsigmoid(margins)).sum()
        if loss.requires_grad:  # not where truncation has left no response
            self.accelerator.backward(loss)
        with torch.no_grad():
            for name, values in {
                "loss": -F.logsigmoid(margins),
                "rewards/chosen": rewards[:, 0],
                "rewards/rejected": rewards[:, 1],
                "rewards/accuracies": (margins > 0).float(),
                "rewards/margins": margins,
            }.items():
                strategy.sums[name] += float((weight * values).sum())

    def _clip(self, strategy: Strategy, batch: Sequence[int]) -> None:
        """Clip a strategy's gradient by its own norm, as if it trained alone."""
        parameters = parameters_in(self.model, strategy.adapter)
        limit = self.settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        strategy.sums["grad_norm"] = norm
        for name, value in (("loss", strategy.sums["loss"]), ("gradient", norm)):
            if not math.isfinite(value):
                last = last_checkpoint(Path(self.args.output_dir))
                state = f"the last good checkpoint is {last}" if last else "no checkpoint yet"
                raise HialignError(
                    f"block {strategy.block}: the {name} is not finite in step "
                    f"{self.state.global_step + 1} (pairs "
                    f"{', '.join(self.pairs.ids[i] for i in batch)}): lower "
                    f"training.learning_rate; {state}"
                )

    def _out_of_memory(self, error: BaseException) -> HialignError:
        """Keep the steps that are done, and say what to lower."""
        self.model.zero_grad()
        if self.state.global_step:
            self._save_checkpoint(self.model, None)
        advice = [f"training.tokens_per_pass (now {self.limit})"]
        if not self.settings.gradient_checkpointing:
            advice.append("set training.gradient_checkpointing to true")
        advice.append(f"training.max_length (now {self.settings.max_length})")
        return HialignError(
            f"out of memory in step {self.state.global_step + 1}: lower {', or '.join(advice)}; "
            f"the {self.state.global_step} steps before it are kept and the same command goes "
            f"on from there ({str(error).splitlines()[0]})"
        )

    def attribute(self, logs: dict[str, float], seconds: float) -> None:
        if "loss" not in logs:
            return
        own_seconds = {s.block: s.sums["seconds"] for s in self.strategies}
        if len(own_seconds) == 1:
            super().attribute(logs, seconds)
            return
        logs["shared_seconds"] = seconds - sum(own_seconds.values())
        for block, value in own_seconds.items():
            logs[self._key(block, "seconds")] = value

    def _key(self, block: str, name: str) -> str:
        """TRL's name of a figure, with the block before it if several blocks are trained."""
        return name if len(self.strategies) == 1 else f"{block}/{name}"

    def _now(self) -> float:
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def indices(rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
    """The collator of `BlockTrainer`, whose data set holds nothing but the numbers of the pairs."""
    return {"index": torch.tensor([row["index"] for row in rows])}


def stock_weights(pairs: int, settings: TrainingSettings) -> list[float]:
    """Each pair's share of an optimizer step's loss, as TRL computes it.

    TRL takes the mean over micro-batches of their means. A pair of a short last micro-batch
    therefore counts for more.
    """
    size = settings.batch_size
    sizes = [min(size, pairs - start) for start in range(0, pairs, size)]
    return [1 / (len(sizes) * n) for n in sizes for _ in range(n)]


def default_tokens(device: str, settings: TrainingSettings) -> int:
    """Tokens of one forward pass: enough to keep the device busy, few enough to hold the graph."""
    if device == "cpu":
        return 1024
    return 8192 if settings.gradient_checkpointing else 4096


def _is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in message for words in OUT_OF_MEMORY
    )


def last_checkpoint(work: Path) -> str | None:
    """The latest whole checkpoint. Half-written ones, of a run that was killed, are deleted."""
    whole = []
    for state in work.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            json.loads(state.read_text(encoding="utf-8"))
            whole.append(state.parent)
        except ValueError:
            pass
    for torn in set(work.glob("checkpoint-*")) - set(whole):
        shutil.rmtree(torn, ignore_errors=True)
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None
