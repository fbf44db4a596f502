"""TRL's DPOTrainer with the work inside an optimizer step rearranged (what `hialign.engine.dpo` tells)."""

import json
import math
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hialign.engine.modules import decoder_layers
from hialign.engine.packing import pack, plan
from hialign.engine.progress import Progress
from hialign.engine.reference import Reference
from hialign.engine.tokens import TokenPair
from hialign.records.files import read_json
from hialign.study.errors import HialignError
from hialign.study.settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from trl import DPOTrainer

    from hialign.engine.decoder import Layout

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


@dataclass
class Strategy:
    """A block in training: its adapter, and what has been summed up in the present step."""

    block: str
    layers: list[int]
    adapter: str
    period: int | None = (
        None  # LISA: optimizer steps between two draws of the layers that are tuned
    )
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """The first adapted layer: all below it is the base model's."""
        return min(self.layers)


def sampled_layers(depth: int, period: int, step: int, seed: int) -> list[int]:
    """LISA: the layers (a third of `depth`) that are tuned in a step, counted from 0.

    Pan et al. (2024) tune the parameters themselves, with embeddings and head; here it is the
    adapters, as of every other block.
    """
    drawn = random.Random(seed * 1_000_003 + step // period)
    return sorted(drawn.sample(range(depth), max(1, round(depth / 3))))


def trainer_class(stock: bool = False) -> type["DPOTrainer"]:
    """DPOTrainer that times each optimizer step and shows one line of progress; not `stock`, one
    whose steps are ours."""
    import torch
    import torch.nn.functional as F
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOTrainer

    class Bar(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = Progress(total=state.max_steps, initial=state.global_step, desc="train")

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if "loss" in (logs or {}):
                self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
                self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    class LayerSampling(TrainerCallback):  # type: ignore[misc]
        """LISA in stock TRL's steps; ours draw when they switch to an adapter."""

        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for strategy in self.trainer.strategies:
                self.trainer.sample_layers(strategy)

    class StockTrainer(DPOTrainer):  # type: ignore[misc]
        is_stock = True
        strategies: list[Strategy]
        reference: Reference
        truncated: int
        confinement: dict[str, dict[str, Any]]

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.remove_callback(PrinterCallback)
            self.add_callback(Bar())
            self.add_callback(LayerSampling(self))
            self._since = time.perf_counter()

        def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
            if resume_from_checkpoint:  # TRL would count tokens from 0 again
                state = read_json(Path(resume_from_checkpoint) / "trainer_state.json")
                self._total_train_tokens = int(state["log_history"][-1]["num_tokens"])
            self._since = time.perf_counter()
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            now = time.perf_counter()
            seconds, self._since = now - self._since, now
            self.attribute(logs, seconds)
            super().log(logs, start_time)

        def sample_layers(self, strategy: Strategy) -> None:
            """Freeze what a strategy does not tune in this step, if it tunes a part at a time."""
            if strategy.period is None:
                return
            prefix, depth = decoder_layers(self.model.get_base_model())
            drawn = sampled_layers(depth, strategy.period, self.state.global_step, self.args.seed)
            inside = tuple(f"base_model.model.{prefix}.{layer}." for layer in drawn)
            for name, parameter in self.model.named_parameters():
                if is_of(name, strategy.adapter):
                    parameter.requires_grad_(name.startswith(inside))

        def attribute(self, logs: dict[str, float], seconds: float) -> None:
            """Put a step's seconds into what is logged of it."""
            logs |= {"seconds": seconds, "shared_seconds": 0.0}

    if stock:
        return StockTrainer

    class BlockTrainer(StockTrainer):
        """One optimizer step of each strategy, on packed pairs and shared lower layers."""

        is_stock = False

        def prepare(
            self,
            base: "PreTrainedModel",
            tokens: Sequence[TokenPair],
            ids: Sequence[str],
            settings: TrainingSettings,
        ) -> None:
            """Hand over what a step works with; TRL only deals out the numbers of pairs."""
            from datasets import Dataset

            from hialign.engine.decoder import Decoder

            self.decoder: Decoder = Decoder(base)
            self.tokens, self.pair_ids, self.settings = tokens, ids, settings
            self.limit = settings.tokens_per_pass or default_tokens(base.device.type, settings)
            self.train_dataset = Dataset.from_dict({"index": list(range(len(tokens)))})
            self.data_collator = lambda rows: {"index": torch.tensor([r["index"] for r in rows])}
            if settings.gradient_checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})

        def train(self, *args: Any, **kwargs: Any) -> Any:
            with self.decoder:
                return super().train(*args, **kwargs)

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            for strategy in self.strategies:
                for parameter in self.parameters_of(strategy):
                    parameter.requires_grad_(True)
            return super().create_optimizer(*args, **kwargs)

        def parameters_of(self, strategy: Strategy) -> list["torch.nn.Parameter"]:
            """A strategy's adapter parameters."""
            return [p for n, p in self.model.named_parameters() if is_of(n, strategy.adapter)]

        def epoch_at(self, step: int) -> float:
            """Epochs done after a step, counted in micro-batches as TRL does."""
            size, times = self.settings.batch_size, self.settings.gradient_accumulation_steps
            batches = math.ceil(len(self.tokens) / size)
            whole, rest = divmod(step, math.ceil(batches / times))
            return whole + rest * times / batches

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # Trainer's estimate is made from input_ids, and of a whole model

        def training_step(
            self, model: "torch.nn.Module", inputs: Any, num_items_in_batch: Any = None
        ) -> "torch.Tensor":
            """The gradients of each strategy's loss over one effective batch, clipped."""
            model.train()
            chosen = inputs["index"].tolist()
            weights = dict(zip(chosen, stock_weights(len(chosen), self.settings), strict=True))
            for strategy in self.strategies:
                strategy.sums = dict.fromkeys(LOGGED, 0.0)
            try:
                for group in plan([self.tokens[i] for i in chosen], self.limit):
                    self._pass([chosen[i] for i in group], weights)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                raise self._out_of_memory(error) from None
            self._total_train_tokens += sum(len(t.ids) for i in chosen for t in self.tokens[i])
            for strategy in self.strategies:
                self._clip(strategy, chosen)
            for strategy in self.strategies:
                for name, value in strategy.sums.items():
                    if name not in COMMON and name != "seconds":
                        self._metrics["train"][self._key(strategy.block, name)].append(value)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            losses = [strategy.sums["loss"] for strategy in self.strategies]
            return torch.tensor(sum(losses) / len(losses), device=self.args.device)

        def _pass(self, chosen: list[int], weights: Mapping[int, float]) -> None:
            """Forward and backward of each strategy on some pairs of a step, in one row."""
            from hialign.engine.decoder import Layout

            layout = Layout(pack([self.tokens[i] for i in chosen]), self.decoder.device)
            with self.compute_loss_context_manager():
                known = self._shared(layout, chosen)
                options = {"dtype": torch.float64, "device": self.decoder.device}
                reference = torch.tensor([self.reference.values[i] for i in chosen], **options)
                weight = torch.tensor([weights[i] for i in chosen], **options)
                for strategy in self.strategies:
                    began = self._now()
                    # the same dropout in a pass of its own, and after a resumption
                    torch.manual_seed(
                        hash((self.settings.seed, self.state.global_step, *chosen)) % 2**32
                    )
                    self.model.set_adapter(strategy.adapter)
                    self.sample_layers(strategy)
                    self._backward(strategy, layout, known, reference, weight)
                    strategy.sums["seconds"] += self._now() - began

        @torch.no_grad()  # type: ignore[untyped-decorator]
        def _shared(self, layout: "Layout", chosen: list[int]) -> dict[int, "torch.Tensor"]:
            """What the base model says: hidden states where strategies start, and the reference."""
            decoder, reference = self.decoder, self.reference
            unknown = any(reference.values[i] is None for i in chosen)
            taps = {s.start for s in self.strategies} - {0} | (
                {decoder.depth} if unknown else set()
            )
            if not taps:
                return {}
            with self.model.disable_adapter():
                known = decoder.run(layout, taps)
                if unknown:
                    found = decoder.log_probs(known.pop(decoder.depth), layout).view(-1, 2)
                    for i, (c, r) in zip(chosen, found.tolist(), strict=True):
                        reference.values[i] = (c, r)
            return known

        def _backward(
            self,
            strategy: Strategy,
            layout: "Layout",
            known: Mapping[int, "torch.Tensor"],
            reference: "torch.Tensor",
            weight: "torch.Tensor",
        ) -> None:
            """Eq. 1 on the layout's pairs, weighted, and its gradient."""
            decoder, beta = self.decoder, self.settings.beta
            start = strategy.start
            top = decoder.run(layout, [decoder.depth], start, known.get(start))[decoder.depth]
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

        def _clip(self, strategy: Strategy, chosen: Sequence[int]) -> None:
            """Clip a strategy's gradient to its own norm, as if it trained alone."""
            parameters = self.parameters_of(strategy)
            limit = self.settings.max_grad_norm or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            strategy.sums["grad_norm"] = norm
            for name, value in (("loss", strategy.sums["loss"]), ("gradient", norm)):
                if not math.isfinite(value):
                    last = last_checkpoint(Path(self.args.output_dir))
                    kept = f"the last good checkpoint is {last}" if last else "no checkpoint yet"
                    raise HialignError(
                        f"block {strategy.block}: the {name} is not finite in step "
                        f"{self.state.global_step + 1} (pairs "
                        f"{', '.join(self.pair_ids[i] for i in chosen)}): lower "
                        f"training.learning_rate; {kept}"
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
            own = {s.block: s.sums["seconds"] for s in self.strategies}
            if len(own) == 1:
                super().attribute(logs, seconds)
                return
            logs["shared_seconds"] = seconds - sum(own.values())
            for block, value in own.items():
                logs[self._key(block, "seconds")] = value

        def _key(self, block: str, name: str) -> str:
            """TRL's name of a figure; with the block before it where several are trained."""
            return name if len(self.strategies) == 1 else f"{block}/{name}"

        def _now(self) -> float:
            if self.decoder.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

    return BlockTrainer


def is_of(name: str, adapter: str) -> bool:
    """Whether a parameter's name is that of an adapter (PEFT: `….lora_A.<adapter>.weight`)."""
    return "lora_" in name and f".{adapter}." in name


def stock_weights(pairs: int, settings: TrainingSettings) -> list[float]:
    """Each pair's share of an optimizer step's loss, as TRL has it: the mean over micro-batches of
    their means, in which a pair of a short last micro-batch counts for more."""
    size = settings.batch_size
    sizes = [min(size, pairs - start) for start in range(0, pairs, size)]
    return [1 / (len(sizes) * n) for n in sizes for _ in range(n)]


def default_tokens(device: str, settings: TrainingSettings) -> int:
    """Tokens of one forward pass: enough to keep the device busy, few enough to hold the graph."""
    if device == "cpu":
        return 1024
    return 8192 if settings.gradient_checkpointing else 4096


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        w in str(error).lower() for w in words
    )


def last_checkpoint(work: Path) -> str | None:
    """The latest whole checkpoint; a run killed while writing one goes on from the one before."""
    whole = []
    for state in work.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            json.loads(state.read_text(encoding="utf-8"))
            whole.append(state.parent)
        except ValueError:
            pass
    torn = set(work.glob("checkpoint-*")) - set(whole)
    for folder in torn:
        shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None
