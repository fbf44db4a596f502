"""Causal patching: a loop with hooks on the stock model against hialign, side by side in one run.

    python benchmarks/patching.py [--model SOURCE] [--tuned SOURCE] [--pairs 4] [--out FILE.json]
    python benchmarks/patching.py --swaps [--model SOURCE] [--pairs 4] [--out FILE.json]

The loop is what one writes first: keep what the donor's modules gave, hook the receiver, run it whole
for each layer and each kind of patch, chosen and rejected as padded sequences. It uses nothing of
hialign's but the tokens; the tests take it as the reference. Without `--tuned` the tuned model is
the base with a random LoRA adapter on all layers. Loading and tokenizing are not counted.

With `--swaps`, hialign's swaps of layers' weights are timed alone: each layer and each third in both
directions, in seconds on the clock and of the processor.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from hialign.engine import environment
from hialign.records.files import write_json

Context = Callable[[], AbstractContextManager[Any]]


class Loop:
    """The naive loop between two stock models with layers `base_model.layers`."""

    def __init__(
        self, sides: dict[str, tuple[Any, Context]], pairs: Sequence[Any], batch: int = 2
    ) -> None:
        self.sides, self.batches = sides, []
        for begin in range(0, len(pairs), batch):
            flat = [tokens for pair in pairs[begin : begin + batch] for tokens in pair]
            longest = max(len(t.ids) for t in flat)
            ids = torch.tensor([[*t.ids, *[0] * (longest - len(t.ids))] for t in flat])
            mask = torch.tensor([[1] * len(t.ids) + [0] * (longest - len(t.ids)) for t in flat])
            self.batches.append((flat, ids, mask))
        self.depth = sides["base"][0].config.num_hidden_layers
        self.forwards = 0

    def layers(self, side: str) -> Any:
        return self.sides[side][0].base_model.layers

    def run(self, side: str, batch: Any) -> list[float]:
        """log p of each response: logits of the whole model, log-softmax, gather, sum."""
        flat, ids, mask = batch
        model, active = self.sides[side]
        device = next(model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        self.forwards += 1
        with torch.inference_mode(), active():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        scores = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].double()
        return [
            float(row[max(t.start, 1) - 1 : len(t.ids) - 1].sum())
            for row, t in zip(scores, flat, strict=True)
        ]

    def cached(self, side: str, batch: Any) -> dict[str, list[torch.Tensor]]:
        """What enters and leaves each layer of the donor, its attention and its MLP."""
        kept: dict[str, list[torch.Tensor]] = {k: [] for k in ("in", "out", "attention", "mlp")}
        with ExitStack() as stack:

            def keep(module: Any, name: str) -> None:
                def hook(_: Any, __: Any, output: Any) -> None:
                    kept[name].append(output[0] if isinstance(output, tuple) else output)

                stack.callback(module.register_forward_hook(hook).remove)

            for layer in self.layers(side):
                enter = layer.register_forward_pre_hook(lambda _, args: kept["in"].append(args[0]))
                stack.callback(enter.remove)
                keep(layer, "out")
                keep(layer.self_attn, "attention")
                keep(layer.mlp, "mlp")
            self.run(side, batch)
        return kept

    def patch(
        self, side: str, kind: str, place: int, donor: Any, batch: Any, window: int
    ) -> list[float]:
        """log p of each response in the receiver with one patch."""
        flat = batch[0]
        stop = place + (window if kind == "window" else 1)
        entering: list[torch.Tensor] = []

        def replaced(own: Any, new: torch.Tensor) -> Any:
            return (new, *own[1:]) if isinstance(own, tuple) else new

        def sublayer(_: Any, __: Any, own: Any) -> Any:
            return replaced(own, donor[kind][place])

        def whole(_: Any, __: Any, own: Any) -> Any:
            state = own[0] if isinstance(own, tuple) else own
            if kind == "residual":
                state = donor["out"][place]
            elif kind in ("contribution", "window"):
                state = entering[0] + (donor["out"][stop - 1] - donor["in"][place])
            else:
                state = state.clone()
                for row, tokens in enumerate(flat):
                    start = max(tokens.start, 1)
                    at = slice(start) if kind == "prompt" else slice(start - 1, start)
                    state[row, at] = donor["out"][place][row, at]
            return replaced(own, state)

        layers = self.layers(side)
        with ExitStack() as stack:
            enter = layers[place].register_forward_pre_hook(lambda _, a: entering.append(a[0]))
            stack.callback(enter.remove)
            if kind in ("attention", "mlp"):
                module = layers[place].self_attn if kind == "attention" else layers[place].mlp
                stack.callback(module.register_forward_hook(sublayer).remove)
            else:
                stack.callback(layers[stop - 1].register_forward_hook(whole).remove)
            return self.run(side, batch)

    def all(self, kinds: Sequence[str], window: int) -> dict[str, Any]:
        """`patched[direction][kind][place]` and `unpatched[side]`: [chosen, rejected] of each pair."""

        def pairwise(parts: Iterator[list[float]]) -> list[list[float]]:
            flat = [value for part in parts for value in part]
            return [flat[i : i + 2] for i in range(0, len(flat), 2)]

        unpatched = {s: pairwise(self.run(s, b) for b in self.batches) for s in self.sides}
        patched: dict[str, Any] = {}
        for direction, (giver, taker) in {
            "tuned_into_base": ("tuned", "base"),
            "base_into_tuned": ("base", "tuned"),
        }.items():
            donors = [self.cached(giver, batch) for batch in self.batches]
            patched[direction] = {
                kind: [
                    pairwise(
                        self.patch(taker, kind, place, donor, batch, window)
                        for donor, batch in zip(donors, self.batches, strict=True)
                    )
                    for place in range(self.depth - (window - 1 if kind == "window" else 0))
                ]
                for kind in kinds
            }
        return {"unpatched": unpatched, "patched": patched}


def ours(sides: dict[str, Any], pairs: Sequence[Any], kinds: Sequence[str], window: int) -> Any:
    """The same by hialign."""
    from hialign.engine.decoder import Decoder
    from hialign.probes.pairs import ROW
    from hialign.probes.patching.rows import rows
    from hialign.probes.patching.runs import Runs, Side, run_row

    with ExitStack() as stack:
        decoders = {id(m): stack.enter_context(Decoder(m)) for m in _distinct(sides)}
        lent = {name: Side(decoders[id(m)], active) for name, (m, active) in sides.items()}
        planned = rows(pairs, lent["base"].decoder.device, ROW)
        return Runs.joined([run_row(lent, row, kinds, window) for row in planned])


def swaps(sides: dict[str, Any], pairs: Sequence[Any]) -> dict[str, float]:
    """What the swaps of all layers and thirds take, and in how many passes over two unpadded sequences."""
    from hialign.engine.decoder import Decoder
    from hialign.probes.pairs import ROW
    from hialign.probes.patching.rows import rows
    from hialign.probes.patching.runs import Side
    from hialign.probes.patching.swaps import swap_row

    model = sides["base"][0]
    with Decoder(model) as decoder:
        lent = {name: Side(decoder, active) for name, (_, active) in sides.items()}
        planned = list(rows(pairs, decoder.device, ROW))
        clock, processor = time.perf_counter(), time.process_time()
        ran = sum(swap_row(lent, row)["layer_tokens"] for row in planned)
        took = {"seconds": time.perf_counter() - clock}
        took |= {"processor_seconds": time.process_time() - processor}
        tokens = sum(len(t.ids) for pair in pairs for t in pair)
        packed = sum(len(row.layout.pack) for row in planned)
        return took | {"passes": ran / (decoder.depth * tokens), "packed_tokens": packed}


def _distinct(sides: dict[str, Any]) -> list[Any]:
    return list({id(m): m for m, _ in sides.values()}.values())


@contextmanager
def random_adapter(model: Any, seed: int = 0) -> Iterator[dict[str, tuple[Any, Context]]]:
    """`model` as both sides: by itself, and with a random LoRA adapter on all of its layers."""
    from peft import LoraConfig, get_peft_model

    from hialign.engine.modules import target_modules

    modules = target_modules(
        model, range(model.config.num_hidden_layers), ["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=modules)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.copy_(noise)
    yield {"base": (model, adapted.disable_adapter), "tuned": (model, nullcontext)}
    adapted.unload()


def largest(one: Any, other: Any) -> float:
    """The largest absolute difference (nats) of two nested results."""
    if isinstance(one, dict):
        return max(largest(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return max(largest(a, b) for a, b in zip(one, other, strict=True))
    return abs(one - other)


def main() -> None:
    from hialign import load_model, load_pairs
    from hialign.engine.tokens import tokenize_pair
    from hialign.probes.patching.runs import KINDS
    from hialign.study.blocks import split_layers
    from hialign.study.settings import PreferenceSettings

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:llama:12")
    parser.add_argument("--tuned", help="a tuned model; by default a random adapter")
    parser.add_argument("--source", default="builtin", help="preference pairs, as in a study")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--swaps", action="store_true", help="time the swaps of layers alone")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model, tokenizer = load_model(args.model)
    found = load_pairs(PreferenceSettings(source=args.source, train=None, evaluation=None))
    tokens = (tokenize_pair(tokenizer, pair) for pair in found.evaluation)
    fitting = (pair for pair in tokens if max(len(t.ids) for t in pair) <= args.max_length)
    pairs = [pair for _, pair in zip(range(args.pairs), fitting, strict=False)]
    depth = model.config.num_hidden_layers
    about = {"model": args.model, "source": args.source, "pairs": len(pairs), "depth": depth}
    about["tokens"] = sum(len(t.ids) for pair in pairs for t in pair)
    if args.swaps:
        with random_adapter(model) as sides:
            _report(about | {"rounds": [swaps(sides, pairs) for _ in range(args.rounds)]}, args.out)
        return
    window = len(split_layers(depth)["local"])
    with ExitStack() as stack:
        if args.tuned:
            other, _ = load_model(args.tuned)
            sides = {"base": (model, nullcontext), "tuned": (other, nullcontext)}
        else:
            sides = stack.enter_context(random_adapter(model))
        rounds = []
        for _ in range(args.rounds):
            loop, began = Loop(sides, pairs), time.perf_counter()
            naive = loop.all(args.kinds, window)
            between = time.perf_counter()
            runs = ours(sides, pairs, args.kinds, window)
            done = time.perf_counter()
            rounds.append({"naive_seconds": between - began, "seconds": done - between})
    content = about | {
        "tuned": args.tuned or "random LoRA adapter, rank 4, all layers",
        "kinds": args.kinds,
        "window": window,
        "rounds": rounds,
        "speedup": min(r["naive_seconds"] for r in rounds) / min(r["seconds"] for r in rounds),
        # of all pairs, unpadded, each sequence by itself
        "naive_passes": loop.forwards / len(loop.batches),
        "passes": runs.layer_tokens / (depth * about["tokens"]),
        "largest_difference_nats": max(
            largest(naive["patched"], runs.patched), largest(naive["unpatched"], runs.unpatched)
        ),
    }
    content["fewer_passes"] = content["naive_passes"] / content["passes"]
    _report(content, args.out)


def _report(content: dict[str, Any], out: Path | None) -> None:
    content = content | environment.environment()
    print(json.dumps(content, indent=1))
    if out:
        write_json(out, content)


if __name__ == "__main__":
    main()
