"""What a cell answers to the held-out prompts (section 4.1)."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from hialign.engine import environment
from hialign.engine.adapters import load_cell
from hialign.engine.chat_template import chat_text
from hialign.engine.progress import Progress
from hialign.preferences.formats import Message, transcript
from hialign.preferences.pairs import load_pairs
from hialign.records import dependencies, files, stages
from hialign.study.settings import ResponseSettings
from hialign.study.study import Cell


def respond(cell: Cell) -> dict[str, Any]:
    """Answer the study's held-out prompts and leave `responses.jsonl` in the cell's folder.

    Each row has `prompt_id, prompt, response, tokens, finish_reason` (`stop`, or `length` if
    `max_new_tokens` cut the response). Every strategy gets the same prompts in the same batches.
    Returns the stage's manifest, which is written last.
    """
    settings = cell.study.responses
    depends = dependencies.depends(cell, "respond")
    prompts = load_pairs(cell.study.preferences).prompts(settings.prompts)
    model, tokenizer = load_cell(cell)
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    rows = answers(model, tokenizer, prompts, settings)
    seconds = time.perf_counter() - started
    place = stages.stage_manifest(cell, "respond")
    place.unlink(missing_ok=True)
    files.write_jsonl(cell.folder / "responses.jsonl", rows)
    manifest = {
        "stage": "respond",
        **depends,
        "files": files.stamps({"responses.jsonl": cell.folder / "responses.jsonl"}),
        "prompts": len(rows),
        "tokens": sum(r["tokens"] for r in rows),
        "cut": sum(r["finish_reason"] == "length" for r in rows),
        "empty": sum(not r["response"].strip() for r in rows),
        "seconds": seconds,
        "peak_memory_bytes": environment.peak_memory_bytes(),
        **environment.environment(),
    }
    return files.write_record(place, manifest)


def chat(cell: Cell, question: str | list[Message], loaded: Any = None) -> str:
    """What a cell's tuned model answers to a question, or to a conversation that ends with one.

    The answer is decoded with the study's settings for responses. For several questions, load the
    model once: `chat(cell, question, loaded=load_cell(cell))`.
    """
    model, tokenizer = loaded or load_cell(cell)
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    torch.manual_seed(cell.study.responses.seed)
    prompt = {"prompt_id": "question", "prompt": messages}
    (row,) = answers(model, tokenizer, [prompt], cell.study.responses, progress=False)
    return str(row["response"])


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    settings: ResponseSettings,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row of `responses.jsonl` per prompt, in the order of the prompts.

    Args:
        model: a causal language model, whose own decoding settings are taken away.
        tokenizer: its tokenizer.
        prompts: each with a `prompt_id` and the messages of its `prompt`.
        settings: how to decode. Batches are made of prompts of about equal length.
        progress: whether a progress bar is shown.
    """
    ends = plain_decoding(model, tokenizer)
    tokenizer.padding_side = "left"  # generation goes on at the right
    tokenizer.truncation_side = "left"  # of a long conversation the end is kept
    rendered = [
        chat_text(tokenizer, p["prompt"], f"prompt {p['prompt_id']}", add_generation_prompt=True)
        for p in prompts
    ]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in rendered]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], i))
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "do_sample": True}
    rows: list[dict[str, Any]] = [{} for _ in prompts]
    bar = Progress(total=len(prompts), desc="respond", disable=not progress)
    with torch.inference_mode(), bar:
        for at in range(0, len(order), settings.batch_size):
            batch = order[at : at + settings.batch_size]
            inputs = tokenizer(
                [rendered[i] for i in batch],
                add_special_tokens=False,  # the template has them
                padding=True,
                truncation=True,
                max_length=settings.max_prompt_tokens,
                return_tensors="pt",
            ).to(model.device)
            generated = model.generate(
                **inputs,
                max_new_tokens=settings.max_new_tokens,
                **(sampling if settings.temperature > 0 else {"do_sample": False}),
            )[:, inputs["input_ids"].shape[1] :]
            for i, ids in zip(batch, generated.tolist(), strict=True):
                rows[i] = _row(prompts[i], ids, ends, tokenizer)
                rows[i]["prompt_truncated"] = lengths[i] > settings.max_prompt_tokens
            bar.update(len(batch))
    return rows


def plain_decoding(model: Any, tokenizer: Any) -> list[int]:
    """Take away a model's own decoding settings. Returns the tokens that end its responses.

    Qwen2.5's repetition penalty or Qwen3's top_k must not influence what strategies answer.
    """
    own = model.generation_config.eos_token_id  # one token, several or None
    own = own if isinstance(own, list) else [own]
    ends = sorted({*own, tokenizer.eos_token_id} - {None})
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0
    )
    return ends


def _row(
    prompt: Mapping[str, Any], ids: list[int], ends: list[int], tokenizer: Any
) -> dict[str, Any]:
    """A response up to its end-of-turn token, and whether it reached one."""
    answer, reason = answer_of(ids, ends)
    return {
        "prompt_id": prompt["prompt_id"],
        "prompt": transcript(prompt["prompt"]),
        "response": tokenizer.decode(answer, skip_special_tokens=True).strip(),
        "tokens": len(answer),
        "finish_reason": reason,
    }


def answer_of(ids: list[int], ends: list[int]) -> tuple[list[int], str]:
    """The tokens before the first that ends a response, and `stop`. Without one, all and `length`."""
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    return (ids, "length") if stop is None else (ids[:stop], "stop")
