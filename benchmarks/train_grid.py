"""Training a grid of blocks: stock TRL against hialign, side by side in one run.

    python benchmarks/train_grid.py [--quick] [--data FOLDER] [--out FILE.json]
    python benchmarks/train_grid.py --growth          # time per pair against length and depth
    python benchmarks/train_grid.py --shape llama-3.1-8b --max-length 2048   # on a GPU

One optimizer step of every strategy (Local, Mid, Global, Full) on the same real pairs, four ways:
stock TRL with checkpointing (its default, the paper's setting), stock TRL without, hialign with each
strategy by itself (the reference unknown, as for a first run), hialign with all in one pass. Rounds
are interleaved; each measurement is a process of its own, so that its peak memory is its own.
Loading a model and tokenizing are not counted. `floor` is the analytic one: the layer-forwards that
nothing can save (a backward pass through frozen layers costs one forward), on packed pairs, at the
measured speed of this machine's own forward pass.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hialign.records.files import write_json
from hialign.study.pair_files import HH_RLHF

STRATEGIES = ("local", "mid", "global", "full")
WAYS = ("stock", "stock-no-checkpointing", "one-by-one", "one-pass")
SHAPES = {  # depth, width, heads, key-value heads, feed-forward, vocabulary (published configs)
    "llama-3.1-8b": ("LlamaConfig", 32, 4096, 32, 8, 14336, 128256),
    "qwen2.5-7b": ("Qwen2Config", 28, 3584, 28, 4, 18944, 152064),
}


def settings_of(args: argparse.Namespace, **changes: Any) -> Any:
    """Table 5's settings, with this benchmark's batch and length."""
    from hialign.study.settings import TrainingSettings

    return TrainingSettings(
        batch_size=args.batch,
        gradient_accumulation_steps=args.accumulation,
        max_length=args.max_length,
        lora_dropout=0.0,
        tokens_per_pass=args.tokens_per_pass,
        **changes,
    )


def model_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The embedded model; or random weights in a published shape; or the embedded one's, less deep."""
    import torch
    import transformers

    from hialign import load_model

    model, tokenizer = load_model("embedded:smollm2-135m-instruct")
    if args.depth:
        config = model.config
        config.num_hidden_layers = args.depth
        config.layer_types = None
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    if args.shape:
        kind, depth, width, heads, keys, inner, words = SHAPES[args.shape]
        config = getattr(transformers, kind)(
            num_hidden_layers=depth,
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            intermediate_size=inner,
            vocab_size=words,
            max_position_embeddings=8192,
        )
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model, tokenizer


def pairs_of(args: argparse.Namespace, tokenizer: Any) -> Any:
    """As many pairs as the steps take: real ones, or random words of an exact length."""
    from datasets import Dataset

    from hialign import load_pairs
    from hialign.study.settings import PreferenceSettings

    needed = args.batch * args.accumulation * args.steps
    if not args.synthetic:
        real = PreferenceSettings(
            source=str(Path(args.data).resolve()) if Path(args.data).exists() else args.data,
            subsets=["harmless-base"],
            train=needed,
            evaluation=1,
        )
        return load_pairs(real).train
    import random

    rng = random.Random(0)

    def words(n: int) -> str:
        return tokenizer.decode([rng.randrange(1000, 20000) for _ in range(n)])

    quarter = args.max_length // 4
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": words(2 * quarter)}],
                "chosen": [{"role": "assistant", "content": words(quarter)}],
                "rejected": [{"role": "assistant", "content": words(quarter)}],
            }
            for _ in range(needed)
        ]
    )


def child(args: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    import torch
    import transformers
    from transformers import TrainerCallback

    from hialign import layers_of
    from hialign.engine import dpo

    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = model_of(args)
    pairs = pairs_of(args, tokenizer)
    depth = model.config.num_hidden_layers
    cuda = model.device.type == "cuda"
    blocks = [args.block] if args.block != "all" else list(STRATEGIES)
    clock: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Starts with the first step, stops with the last: loading is not counted."""

        def on_step_begin(self, a: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == (args.steps > 1):  # a warm-up step, where there are several
                clock.update(wall=time.perf_counter(), processor=time.process_time())

        def on_step_end(self, a: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            if state.global_step == args.steps:
                clock["wall"] = time.perf_counter() - clock["wall"]
                clock["processor"] = time.process_time() - clock["processor"]

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HIALIGN_CACHE"] = scratch  # the reference is unknown, as in a first run
        work = Path(scratch) / "work"
        if args.way == "floor":
            return floor(model, tokenizer, pairs, args)
        if args.way.startswith("stock"):
            from peft import LoraConfig
            from trl import DPOConfig, DPOTrainer

            settings = settings_of(args, gradient_checkpointing=args.way == "stock")
            trainer = DPOTrainer(
                model=model,
                args=DPOConfig(
                    output_dir=str(work),
                    learning_rate=settings.learning_rate,
                    per_device_train_batch_size=settings.batch_size,
                    gradient_accumulation_steps=settings.gradient_accumulation_steps,
                    max_length=settings.max_length,
                    gradient_checkpointing=settings.gradient_checkpointing,
                    max_steps=args.steps,
                    bf16=model.dtype == torch.bfloat16,
                    use_cpu=not cuda,
                    logging_steps=1,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
                processing_class=tokenizer,
                peft_config=LoraConfig(
                    task_type="CAUSAL_LM",
                    r=settings.lora_rank,
                    lora_alpha=settings.lora_alpha,
                    target_modules=settings.target_modules,
                    layers_to_transform=layers_of(args.block, depth),
                ),
            )
            trainer.add_callback(Clock())
            trainer.train()
            losses = {args.block: [e["loss"] for e in trainer.state.log_history if "loss" in e]}
        else:
            settings = settings_of(args, gradient_checkpointing=args.checkpointing)
            layers = {block: layers_of(block, depth) for block in blocks}
            trainer = dpo.train_blocks(
                *(model, tokenizer, pairs, layers, settings, {"bench": "mark"}, work),
                callbacks=[Clock()],
            )
            losses = {
                s.block: [row["loss"] for row in dpo.steps_of(trainer, s)]
                for s in trainer.strategies
            }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if cuda:
        peak = torch.cuda.max_memory_allocated()
    timed = max(1, args.steps - 1)
    return {
        "seconds": clock["wall"] / timed,
        "processor_seconds": clock["processor"] / timed,
        "peak_memory_bytes": peak,
        "losses": losses,
    }


def floor(model: Any, tokenizer: Any, pairs: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds that one step's layer-forwards take at least, for each strategy and the grid."""
    import torch

    from hialign import layers_of
    from hialign.engine.decoder import Decoder, Layout
    from hialign.engine.packing import pack, plan
    from hialign.engine.tokens import token_pairs
    from hialign.engine.trainer import default_tokens

    settings = settings_of(args)
    tokens = token_pairs(tokenizer, pairs, args.max_length, "keep_start").tokens
    tokens = tokens[: args.batch * args.accumulation]
    model.eval()
    limit = args.tokens_per_pass or default_tokens(model.device.type, settings)
    rows = plan(tokens, limit)
    times = {"seconds": [0.0, 0.0], "processor_seconds": [0.0, 0.0]}
    with torch.inference_mode(), Decoder(model) as decoder:
        for _ in range(2):  # the first warms up
            spent = {name: [0.0, 0.0] for name in times}
            for row in rows:
                layout = Layout(pack([tokens[i] for i in row]), decoder.device)
                for number in (0, 1):
                    began = time.perf_counter(), time.process_time()
                    if number == 0:
                        top = decoder.run(layout, [decoder.depth])[decoder.depth]
                    else:
                        decoder.log_probs(top, layout)
                    if decoder.device.type == "cuda":
                        torch.cuda.synchronize()
                    spent["seconds"][number] += time.perf_counter() - began[0]
                    spent["processor_seconds"][number] += time.process_time() - began[1]
            times = spent
    depth = decoder.depth
    starts = {block: min(layers_of(block, depth)) / depth for block in STRATEGIES}
    result: dict[str, Any] = {}
    for unit, (body, head) in times.items():
        # alone: the reference (1, its trunk shared), then forward and backward of what is above
        alone = {b: (1 + 2 * (1 - s)) * body + 3 * head for b, s in starts.items()}
        grid = (1 + sum(2 * (1 - s) for s in starts.values())) * body + 9 * head
        result[unit] = {**alone, "all": grid}
    packed = sum(len(pack([tokens[i] for i in row])) for row in rows)
    return result | {
        "tokens_packed": packed,
        "tokens_of_both_sequences": sum(len(t.ids) for p in tokens for t in p),
    }


def measure(args: argparse.Namespace, way: str, block: str, **changes: Any) -> dict[str, Any]:
    """Run `child` in a process of its own and read what it says."""
    options = {
        **{"data": args.data, "batch": args.batch, "accumulation": args.accumulation},
        **{"max-length": args.max_length, "steps": args.steps, "shape": args.shape},
        **{"depth": args.depth, "tokens-per-pass": args.tokens_per_pass},
        **changes,
    }
    command = [sys.executable, __file__, "--way", way, "--block", block]
    for name, value in options.items():
        if value:
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    command += ["--checkpointing"] if args.checkpointing else []
    command += ["--synthetic"] if args.synthetic and "synthetic" not in changes else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-5:])
        print(f"{way} {block}: failed\n{tail}", file=sys.stderr)
        return {"failed": tail}
    found = json.loads(done.stdout.splitlines()[-1])
    if "losses" in found:
        print(
            f"{way:24}{block:8}{found['seconds']:9.1f} s{found['processor_seconds']:9.1f} s processor"
            f"{found['peak_memory_bytes'] / 2**30:8.2f} GiB",
            flush=True,
        )
    return dict(found)


def median(rounds: list[dict[str, Any]], unit: str) -> float:
    values = [r[unit] for r in rounds if unit in r]
    return statistics.median(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=HH_RLHF, help="a set on the hub, or a folder")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument(
        "--steps", type=int, default=1, help="optimizer steps; the first is not timed"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens-per-pass", type=int, default=None)
    parser.add_argument("--checkpointing", action="store_true", help="also in hialign's ways")
    parser.add_argument("--shape", choices=SHAPES, default=None, help="random weights, bf16")
    parser.add_argument("--depth", type=int, default=0, help="random weights, this many layers")
    parser.add_argument("--synthetic", action="store_true", help="random words, exact lengths")
    parser.add_argument("--quick", action="store_true", help="one round, a sixth of the batch")
    parser.add_argument("--growth", action="store_true", help="against length and depth")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--out", default="")
    parser.add_argument("--way", default="", help=argparse.SUPPRESS)
    parser.add_argument("--block", default="all", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(child(args)))
        return
    if args.quick:
        args.rounds, args.batch, args.accumulation = 1, 4, 1
    from hialign.engine.environment import environment

    kept = Kept(args, environment())
    if args.growth:
        growth(args, kept)
    else:
        grid(args, kept)
    if args.growth and args.out:
        plot(kept.content["points"], Path(args.out).with_suffix(".png"))


class Kept:
    """What has been measured, in `--out` after each measurement: a run that was stopped goes on."""

    def __init__(self, args: argparse.Namespace, environment: dict[str, Any]) -> None:
        self.path = Path(args.out) if args.out else None
        free = ("out", "rounds", "ways")  # more rounds or ways may follow
        asked = {k: v for k, v in vars(args).items() if k not in free}
        asked["data"] = Path(args.data).name  # where it lies is this machine's affair
        self.content: dict[str, Any] = {"arguments": asked, **environment}
        if self.path and self.path.is_file():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            for key, value in self.content.items():
                if key != "hialign_commit" and found.get(key) != value:
                    raise SystemExit(f"{self.path} has another {key}: take another --out")
            self.content = found

    def measured(self, name: str, take: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement called `name`: the one that is kept, or `take()`."""
        known = self.content.setdefault("measurements", {})
        if "failed" in known.get(name, {"failed": "not tried"}):
            known[name] = take()
            self.save()
        return dict(known[name])

    def save(self, **more: Any) -> None:
        """Write everything, whole or not at all."""

        self.content |= more
        if self.path:
            write_json(self.path, self.content)


def grid(args: argparse.Namespace, kept: "Kept") -> None:
    """All ways and strategies, round by round; medians and ratios."""
    runs: dict[str, dict[str, list[Any]]] = {}
    floors = []

    def get(number: int, way: str, block: str) -> dict[str, Any]:
        return kept.measured(f"round {number}, {way}, {block}", lambda: measure(args, way, block))

    for number in range(1, args.rounds + 1):
        floors.append(get(number, "floor", "all"))
        for way in args.ways.split(","):
            for block in ("all",) if way == "one-pass" else STRATEGIES:
                runs.setdefault(way, {}).setdefault(block, []).append(get(number, way, block))
    table = []
    for unit in ("seconds", "processor_seconds"):
        totals = {}
        for way, by_block in runs.items():
            each = {block: median(found, unit) for block, found in by_block.items()}
            totals[way] = {**each, "all": each.get("all", sum(each.values()))}
        base = {b: statistics.median(f[unit][b] for f in floors) for b in (*STRATEGIES, "all")}
        print(f"\n{unit}: medians of {args.rounds} rounds, one optimizer step")
        print(f"{'':24}" + "".join(f"{b:>10}" for b in (*STRATEGIES, "all")))
        for way, each in totals.items():
            print(
                f"{way:24}" + "".join(f"{each[b]:10.1f}" if b in each else f"{'':10}" for b in base)
            )
        print(f"{'floor':24}" + "".join(f"{v:10.1f}" for v in base.values()))
        for way, each in totals.items():
            for name in (w for w in WAYS[:2] if w in totals and w != way):
                ratios = {b: totals[name][b] / each[b] for b in each if b in totals[name]}
                text = "".join(f"{ratios[b]:9.1f}x" if b in ratios else f"{'':10}" for b in base)
                print(f"{name + ' / ' + way:24}" + text)
        totals = {w: {b: v for b, v in t.items() if v == v} for w, t in totals.items()}  # no NaN
        over = {w: {b: v / base[b] for b, v in each.items()} for w, each in totals.items()}
        table.append({"unit": unit, "medians": totals, "floor": base, "over_floor": over})
    peaks = {
        way: max(r["peak_memory_bytes"] for f in by.values() for r in f if "losses" in r)
        for way, by in runs.items()
        if any("losses" in r for f in by.values() for r in f)
    }
    print("\npeak memory (GiB):", {w: round(p / 2**30, 2) for w, p in peaks.items()})
    kept.save(rounds=args.rounds, tables=table, peak_memory_bytes=peaks)


def growth(args: argparse.Namespace, kept: "Kept") -> None:
    """Time per pair of the grid, stock's default and one pass, against length and depth."""
    points = []
    args.batch, args.accumulation, args.synthetic = 1, 1, True
    # the ends first: half a run tells most of it
    cases = [("length", n, 0) for n in (128, 512, 2048)]
    cases += [("depth", 256, n) for n in (6, 24, 12, 48)]
    cases += [("length", n, 0) for n in (256, 1024)]
    for axis, length, depth in cases:
        args.max_length, args.depth = length, depth
        for way in ("stock", "one-pass"):
            blocks = ("all",) if way == "one-pass" else STRATEGIES
            found = [
                kept.measured(
                    f"{axis}, {length} tokens, {depth or 30} layers, {way}, {block}",
                    functools.partial(measure, args, way, block),
                )
                for block in blocks
            ]
            points.append(
                {
                    **{"axis": axis, "length": length, "depth": depth or 30, "way": way},
                    **{
                        unit: sum(f[unit] for f in found) / args.batch
                        for unit in ("seconds", "processor_seconds")
                    },
                    "peak_memory_bytes": max(f["peak_memory_bytes"] for f in found),
                    "ratio_of_operations": ratio_of_operations(depth or 30),
                }
            )
            kept.save(points=points)


def ratio_of_operations(depth: int) -> float:
    """How many times fewer multiplications one pass takes than stock's default, for a synthetic pair
    (half of it prompt, no padding) of the embedded model's width, by products with weights alone.

    With T tokens a sequence, stock takes both sequences through all layers four times a strategy
    (policy, reference, recomputation, gradients of inputs) and through the LM head three times. One
    pass takes 1.5 T packed tokens through the floor's layers, T / 2 scored ones through the head.
    """
    import transformers

    from hialign.engine.embedded import embedded_folder

    config = transformers.AutoConfig.from_pretrained(embedded_folder("smollm2-135m-instruct"))
    width, inner = config.hidden_size, config.intermediate_size
    narrow = width * config.num_key_value_heads // config.num_attention_heads
    layers = depth * (2 * width * width + 2 * width * narrow + 3 * width * inner)
    head = width * config.vocab_size
    stock = 4 * 2 * (4 * layers + 3 * head)
    ours = 1.5 * (1 + 2 * (1 + 2 / 3 + 1 / 3 + 1)) * layers + 0.5 * 9 * head
    return stock / ours


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Processor seconds a pair of the grid, and how many times less one pass takes."""
    import matplotlib.pyplot as plt

    from hialign.report.plots import SETTINGS

    plt.rcParams.update(SETTINGS)
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    labels = {"length": "tokens of a sequence (30 layers)", "depth": "layers (256 tokens)"}
    for panel, (axis, label) in zip(panels, labels.items(), strict=True):
        ways = {}
        for way, marker in (("stock", "o"), ("one-pass", "s")):
            line = [p for p in points if p["axis"] == axis and p["way"] == way]
            line.sort(key=lambda p: p[axis])
            ways[way] = [p["processor_seconds"] for p in line]
            panel.plot([p[axis] for p in line], ways[way], marker=marker, label=way)
        expected = [a / p["ratio_of_operations"] for p, a in zip(line, ways["stock"], strict=True)]
        panel.plot([p[axis] for p in line], expected, ":", color="#555555", label="by operations")
        for p, a, b in zip(line, ways["stock"], ways["one-pass"], strict=True):
            panel.annotate(
                f"{a / b:.1f}x", (p[axis], a), xytext=(-4, 6), textcoords="offset points"
            )
        panel.set(xlabel=label, ylabel="processor seconds a pair, four strategies", yscale="log")
        panel.legend(frameon=False)
    panels[0].set_xscale("log", base=2)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
