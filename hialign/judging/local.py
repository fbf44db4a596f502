"""A judge without a key: the expected score of a local model.

For each dimension the model is asked for a score, and the scores 1 to 5 are weighted by the
probabilities of their tokens, as in G-Eval (https://arxiv.org/abs/2303.16634). Nothing is sampled or
parsed. The prompt begins with what is fixed (rubric and baseline), then has the item, then the
dimension, so that the cache of each part serves all that follow it. How good such a judge is must be
measured by hialign.judging.validation.validate.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hialign.engine.chat_template import chat_text
from hialign.study import rubric as texts
from hialign.study.errors import HialignError
from hialign.study.rubric import SCORES, Rubric, neutralized

BATCH = 16  # dimensions at a time: all of Table 6
PLACEHOLDER = "@@the item stands here@@"  # marks the place of the item in any chat template


class LocalJudge:
    """Scores with `model` in this process. Only attention models have a cache that can be shared."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rubric: Rubric, name: str
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rubric = rubric
        self.name = name
        self._fixed, self._after = self._around_the_item()
        self._item_marks = [self._ids(mark) for mark in texts.LOCAL_ITEM]
        asked = [self._suffix(dimension) for dimension in rubric.dimensions]
        self._suffixes = [suffix for suffix, _ in asked]
        self._digits = [digits for _, digits in asked]
        self._fixed_cache: DynamicCache | None = None

    def judge(
        self,
        items: Sequence[Mapping[str, Any]],
        keep: Callable[[Mapping[str, Any], dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """A result for each item, in order. `keep(item, result)` is called after each."""
        results = []
        for item in items:
            results.append(self.score(item["prompt"], item["response"]))
            if keep is not None:
                keep(item, results[-1])
        return results

    def score(self, prompt: str, response: str) -> dict[str, Any]:
        """The expected score (a real number from 1 to 5) of each dimension.

        "distribution" has the probabilities of 1 to 5, scaled to sum to 1. "raw" has the probability
        of the five together before that. Near 0, the model would rather have written something else.
        "truncated" says that the item did not fit the context.
        """

        before, truncated = self._item(prompt, response)
        with torch.inference_mode():
            shared, forwarded = self._prefill(before)
            size = len(self._fixed) + len(before)
            rows = self._score_suffixes(shared, size)
        forwarded += sum(len(suffix) for suffix in self._suffixes)
        result: dict[str, Any] = {"scores": {}, "reasons": {}, "attempts": 1, "repaired": False}
        result |= {"usage": {"prompt_tokens": forwarded, "completion_tokens": 0}, "raw": ""}
        if any(total != total for row in rows for total in row):  # NaN
            return result | {"error": "the model's output is not finite"}
        names = list(self.rubric.dimensions)
        mass = {name: round(sum(row), 4) for name, row in zip(names, rows, strict=True)}
        spread = {n: [p / sum(row) for p in row] for n, row in zip(names, rows, strict=True)}
        result["scores"] = {
            n: round(sum(s * p for s, p in zip(SCORES, spread[n], strict=True)), 6) for n in names
        }
        result["distribution"] = {n: [round(p, 6) for p in spread[n]] for n in names}
        result["raw"] = json.dumps({"probability of 1 to 5 together": mass})
        return result | ({"truncated": True} if truncated else {})

    def prompt_ids(self, prompt: str, response: str, dimension: str) -> list[int]:
        """All the tokens after which the model is asked for the score of `dimension`."""
        suffix = self._suffixes[list(self.rubric.dimensions).index(dimension)]
        return self._fixed + self._item(prompt, response)[0] + suffix

    # --- forward passes ------------------------------------------------------------------------

    def _prefill(self, item: list[int]) -> tuple[DynamicCache, int]:
        """A cache of the fixed part and `item`, and how many tokens the model read for it.

        The model reads the fixed part once in the life of this judge.
        """

        forwarded = len(item)
        if self._fixed_cache is None:
            self._fixed_cache = DynamicCache(config=self.model.config)
            self._forward([self._fixed], self._fixed_cache, 0)
            forwarded += len(self._fixed)
        cache = copy.deepcopy(self._fixed_cache)
        self._forward([item], cache, len(self._fixed))
        return cache, forwarded

    def _score_suffixes(self, cache: DynamicCache, past: int) -> list[list[float]]:
        """P(1) to P(5) after each suffix, [dimension][5], given `past` tokens in `cache`."""

        if self._takes_any_mask():
            last = self._as_branches(cache, past)
        else:
            batches = range(0, len(self._suffixes), BATCH)
            parts = [self._suffixes[start : start + BATCH] for start in batches]
            last = torch.cat([self._as_batch(part, cache, past) for part in parts])
        chosen = torch.tensor(self._digits, device=last.device)  # [dimension, 5]
        rows: list[list[float]] = last.float().softmax(-1).gather(1, chosen).double().tolist()
        return rows

    def _takes_any_mask(self) -> bool:
        """Whether our mask can replace the model's, as every layer attends to all earlier tokens."""
        config = self.model.config.get_text_config()
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        windowed = getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")
        kernel = getattr(config, "_attn_implementation", None)
        return layers == {"full_attention"} and not windowed and kernel in ("sdpa", "eager")

    def _as_branches(self, cache: DynamicCache, past: int) -> torch.Tensor:
        """Logits after each suffix, [dimension, vocabulary], from one sequence of all suffixes.

        Each suffix is a branch that sees the `past` tokens in the cache and itself. On a CPU this is
        twice as fast as a batch, which copies the cache for each row.
        """

        model, lengths = self.model, torch.tensor([len(suffix) for suffix in self._suffixes])
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        own = (owner[:, None] == owner).tril()  # [token, token]
        seen = torch.cat([torch.ones(len(owner), past, dtype=torch.bool), own], 1)[None, None]
        mask = torch.zeros(seen.shape, dtype=model.dtype)
        mask.masked_fill_(~seen, torch.finfo(model.dtype).min)
        tokens = [token for suffix in self._suffixes for token in suffix]
        positions = [past + i for suffix in self._suffixes for i in range(len(suffix))]
        output = model(
            input_ids=torch.tensor([tokens], device=model.device),
            attention_mask=mask.to(model.device),
            position_ids=torch.tensor([positions], device=model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=(lengths.cumsum(0) - 1).to(model.device),
        )
        return output.logits[0]

    def _as_batch(self, suffixes: list[list[int]], shared: DynamicCache, past: int) -> torch.Tensor:
        """Logits after each of `suffixes`, [suffix, vocabulary], from one row each.

        This works with any attention. Rows are padded on the right, so that what a row attends to is
        contiguous, as windowed attention needs it.
        """

        cache = copy.deepcopy(shared)
        cache.batch_repeat_interleave(len(suffixes))
        ends = torch.tensor([len(suffix) - 1 for suffix in suffixes])
        positions, place = torch.unique(ends, return_inverse=True)
        logits = self._forward(suffixes, cache, past, positions)  # [suffix, position, vocabulary]
        return logits[torch.arange(len(suffixes)), place]

    def _forward(
        self,
        rows: list[list[int]],
        cache: DynamicCache,
        past: int,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of `rows` after `past` cached tokens, [row, position, vocabulary]. Fills `cache`.

        `positions` are those of the logits that are needed (default: the last).
        """

        device = self.model.device
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        mask = torch.cat([torch.ones(len(rows), past, dtype=torch.long), real], 1).to(device)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(past + torch.arange(width, device=device)).expand(len(rows), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if positions is None else positions.to(device),
        )
        return output.logits

    # --- tokens --------------------------------------------------------------------------------

    def _around_the_item(self) -> tuple[list[int], list[int]]:
        """The tokens before an item and after it, by the tokenizer's chat template if it has one.

        Before it is the fixed text in a user's turn, after it the end of that turn and the start of
        the answer.
        """
        rubric = self.rubric
        fixed = texts.LOCAL_FIXED.format(
            baseline_prompt=rubric.baseline_prompt,
            baseline_response=rubric.baseline_response,
            criteria="\n".join(f"{score} = {rubric.criteria[score]}" for score in SCORES),
            short="\n".join(f"{name}: {text}" for name, text in rubric.short.items()),
        )
        if not self.tokenizer.chat_template:
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return start + self._ids(fixed), []
        rendered = chat_text(
            self.tokenizer,
            [{"role": "user", "content": fixed + PLACEHOLDER}],
            "the rubric",
            add_generation_prompt=True,
            enable_thinking=False,  # templates that know this option then ask for the answer at once
        )
        before, marker, after = rendered.partition(PLACEHOLDER)
        if not marker or PLACEHOLDER in after:
            raise HialignError(
                f"the chat template of the judge {self.name} does not show the user's text exactly "
                "once and unchanged: use another model, or mend the template in its folder"
            )
        return self._ids(before), self._ids(after)

    def _item(self, prompt: str, response: str) -> tuple[list[int], bool]:
        """The tokens between the fixed part and the dimension, and whether they had to be cut.

        An item that does not fit the context is cut from the end of the response. If the prompt alone
        takes more than half of the room, it is cut from its start.
        """
        question = self._ids(neutralized(prompt), untrusted=True)
        answer = self._ids(neutralized(response), untrusted=True)
        opening, between, closing = self._item_marks
        config = self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        truncated = False
        if context:
            marks = len(opening) + len(between) + len(closing) + len(self._after)
            room = context - len(self._fixed) - marks - max(map(len, self._suffixes))
            if room < 2:
                raise HialignError(
                    f"the rubric does not fit the context of the judge {self.name} "
                    f"({context} tokens): use another model or shorten the rubric"
                )
            if truncated := len(question) + len(answer) > room:
                for_question = max(room // 2, room - len(answer))
                question = question[-for_question:]
                answer = answer[: room - len(question)]
        return opening + question + between + answer + closing + self._after, truncated

    def _suffix(self, dimension: str) -> tuple[list[int], list[int]]:
        """The tokens that ask for `dimension`, and the five tokens that would be its scores.

        In some tokenizers a space belongs to the digit after it, in others it is a token, or neither.
        So the text is tried with and without the space.
        """
        text = texts.LOCAL_SUFFIX.format(dimension=dimension)
        for space in (" ", ""):
            encoded = [self._ids(f"{text}{space}{score}") for score in SCORES]
            suffix, digits = encoded[0][:-1], [ids[-1] for ids in encoded]
            if all(ids[:-1] == suffix for ids in encoded) and len(set(digits)) == len(SCORES):
                return suffix, digits
        raise HialignError(
            f"the tokenizer of the judge {self.name} has no single tokens for the scores 1 to 5 "
            f"after {text!r}: this model cannot be a local judge"
        )

    def _ids(self, text: str, untrusted: bool = False) -> list[int]:
        """Token ids. In untrusted text the name of a special token is plain text."""
        options = {"split_special_tokens": True} if untrusted else {}
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])
