"""All strategies of a model in one: the base model, loaded once, with the adapter of every block.

A switch from one strategy to another loads nothing. All strategies answer a question in one batch, in
which each row has an adapter of its own. One forward pass scores all answers under a strategy.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hialign.engine.chat_template import chat_text
from hialign.engine.logprobs import response_logits
from hialign.engine.models import load_model
from hialign.engine.tokens import Tokens
from hialign.evaluation.respond import answer_of, plain_decoding
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings, ResponseSettings

BASE = "__base__"  # PEFT's name for "no adapter" in a batch of several


class Strategies:
    """A base model and the adapters of some blocks.

    Attributes:
        seconds: the time that loading took.
        switch_seconds: the mean time of a switch from one strategy to another.
        bytes: the size of the weights, those of the adapters included.
    """

    def __init__(self, settings: ModelSettings, adapters: Mapping[str, Path]) -> None:
        """Load the adapters from their folders, given by block. Only safetensors are read."""
        started = time.perf_counter()
        for block, folder in adapters.items():
            if not (folder / "adapter_model.safetensors").is_file():
                raise HialignError(f"no adapter_model.safetensors of block {block} in {folder}")
        model, self.tokenizer = load_model(settings)
        self.ends = plain_decoding(model, self.tokenizer)
        self.names = {block: paths.slug(block) for block in adapters}
        for number, (block, folder) in enumerate(adapters.items()):
            if number:
                model.load_adapter(str(folder), adapter_name=self.names[block])
            else:
                name = self.names[block]
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        self.model: Any = model.eval()
        self.seconds = time.perf_counter() - started
        started = time.perf_counter()
        for block in adapters:
            with self.active(block):
                pass
        self.switch_seconds = (time.perf_counter() - started) / len(adapters)
        self.bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())

    @contextmanager
    def active(self, block: str) -> Iterator[Any]:
        """The model under the strategy of a block. Base is the model with all adapters disabled."""
        if block == "base":
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(self.names[block], inference_mode=True)
            yield self.model

    def prompt(self, question: str, longest: int) -> list[int]:
        """The tokens of a user's turn that asks `question`, the last `longest` of them."""
        messages = [{"role": "user", "content": question}]
        text = chat_text(self.tokenizer, messages, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"][-longest:])

    def answer(
        self, blocks: Sequence[str], prompt: list[int], settings: ResponseSettings
    ) -> dict[str, tuple[list[int], str]]:
        """What each block's strategy answers. All of them answer in one batch.

        Returns by block the tokens of the answer, with the one that ends it, and `stop`, or `length`
        if the limit on new tokens cut the answer.
        """
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
        ids = torch.tensor([prompt] * len(blocks), device=self.model.device)
        torch.manual_seed(settings.seed)
        with torch.inference_mode():
            rows = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=[self.names.get(block, BASE) for block in blocks],
                max_new_tokens=settings.max_new_tokens,
                do_sample=settings.temperature > 0,
                **(sampling if settings.temperature > 0 else {}),
            )[:, len(prompt) :].tolist()
        answers = {}
        for block, row in zip(blocks, rows, strict=True):
            answer, reason = answer_of(row, self.ends)
            answers[block] = row[: len(answer) + (reason == "stop")], reason
        return answers

    def score(
        self, block: str, prompt: list[int], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Score all answers under a block's strategy, in one forward pass.

        Returns by answer of N tokens the log-probabilities (nats) of the whole vocabulary at each of
        them (N x vocabulary).
        """
        whole = [Tokens((*prompt, *answer), len(prompt)) for answer in answers]
        with torch.inference_mode(), self.active(block) as model:
            pad: Any = self.tokenizer.pad_token_id
            return [logits.log_softmax(-1) for logits, _ in response_logits(model, whole, pad)]


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token. Joined, they are the text of all.

    The text of a token that holds only a part of a character is empty. The token that completes the
    character has it.
    """
    pieces: list[str] = []
    before = ""
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False))
        if end < len(ids):
            text = text.rstrip("\ufffd")  # a part of a character, which the next may complete
        text = text if text.startswith(before) else before
        pieces.append(text[len(before) :])
        before = text
    return pieces
