"""Requests to a judge behind an API, and its answers, for single calls and for batches."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import openai

from hialign.judging.parse import parse_scores
from hialign.study.rubric import SCORES, Rubric, messages, sha256_of
from hialign.study.settings import JudgeSettings

Item = Mapping[str, Any]  # prompt_id, prompt, response
Result = dict[str, Any]  # a judgment without the keys that items.judge adds

FORMATS = ("json_schema", "json_object", "plain")  # tried in this order, as servers differ
OPTIONAL = ("temperature", "seed")  # left out, and recorded as such, if a model refuses them
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "Arrearage")  # error codes
LONGEST_RAW = 20_000  # characters of an answer that are kept


class Dialect:
    """Which parameters and formats a server supports. The first request finds out."""

    def __init__(self) -> None:
        self.format = 0  # index in FORMATS
        self.limit = "max_tokens"  # newer OpenAI models want max_completion_tokens
        self.unsupported: list[str] = []
        self.settled = False  # whether all this is known to work

    def adapt(self, error: openai.APIStatusError) -> bool:
        """Change the request so that the server may accept it. False if there is nothing to change."""
        if error.status_code not in (400, 422, 500, 501) or code_of(error) in NO_CREDIT:
            return False
        text = str(error)
        if "max_completion_tokens" in text and self.limit == "max_tokens":
            self.limit = "max_completion_tokens"
            return True
        for name in OPTIONAL:
            if f"'{name}'" in text and name not in self.unsupported:
                self.unsupported.append(name)
                return True
        self.format = min(self.format + 1, len(FORMATS))
        return self.format < len(FORMATS)

    def body(
        self, settings: JudgeSettings, rubric: Rubric, item: Item, problem: str
    ) -> dict[str, Any]:
        """The request for one judgment. `problem` says what was wrong with the last answer."""
        order = order_of(settings, rubric, item)
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": messages(rubric, item["prompt"], item["response"], problem, order),
            "temperature": settings.temperature,
            "seed": settings.seed,
            self.limit: settings.max_tokens,
        }
        for name in self.unsupported:
            del body[name]
        if FORMATS[self.format] == "json_schema":
            schema = _schema(order or list(rubric.dimensions))
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif FORMATS[self.format] == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body | settings.extra_body


def order_of(settings: JudgeSettings, rubric: Rubric, item: Item) -> list[str] | None:
    """The order of the dimensions, the same for all answers to a prompt. None for the rubric's."""
    if settings.dimension_order == "fixed":
        return None
    names = list(rubric.dimensions)
    random.Random(sha256_of(settings.seed, item["prompt"])).shuffle(names)
    return names


class Answers:
    """The attempts at one judgment. Each answer is read until one has valid scores."""

    def __init__(
        self, settings: JudgeSettings, rubric: Rubric, item: Item, dialect: Dialect
    ) -> None:
        self.settings = settings
        self.rubric = rubric
        self.item = item
        self.dialect = dialect
        self.problem = ""  # with the answer before
        self.result: Result = {"scores": {}, "reasons": {}, "attempts": 0, "repaired": False}
        self.result |= {"usage": {}, "raw": "", "model": settings.model}
        if order := order_of(settings, rubric, item):
            self.result["order"] = order

    @property
    def open(self) -> bool:
        """Whether to ask (again)."""
        return not self.result["scores"] and self.result["attempts"] < self.settings.attempts

    def body(self) -> dict[str, Any]:
        """The next request."""
        return self.dialect.body(self.settings, self.rubric, self.item, self.problem)

    def read(self, completion: Any, clean: Callable[[str], str]) -> dict[str, int]:
        """Take in a completion (the API's JSON, or a web page instead) and return its usage.

        `clean` removes the key from a text.
        """
        body: dict[str, Any] = completion if isinstance(completion, dict) else {}
        usage = _usage_of(body)
        total = self.result["usage"]
        for name, count in usage.items():
            total[name] = total.get(name, 0) + count
        if self.dialect.unsupported:
            self.result["unsupported"] = list(self.dialect.unsupported)
        self.result["model"] = clean(str(body.get("model") or self.settings.model))
        if fingerprint := body.get("system_fingerprint"):
            self.result["system_fingerprint"] = clean(str(fingerprint))
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        choice = choice if isinstance(choice, dict) else {}
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        content = completion if isinstance(completion, str) else message.get("content")
        text = clean(content if isinstance(content, str) else "")
        self.result["raw"] = text[:LONGEST_RAW]
        parsed = parse_scores(text, self.rubric)
        if parsed.scores:
            self.result["attempts"] += 1
            self.result |= {"scores": parsed.scores, "reasons": parsed.reasons}
            self.result |= {"repaired": parsed.repaired}
            self.result.pop("error", None)
            return usage
        problem = "; ".join(parsed.problems)
        if choice.get("finish_reason") == "length":
            problem += f" (it was cut off at max_tokens: {self.settings.max_tokens})"
        elif choice.get("finish_reason") == "content_filter" or message.get("refusal"):
            problem += " (the judge's provider filtered it)"
        self.fail(problem)
        return usage

    def fail(self, problem: str) -> None:
        """Count an attempt that gave no scores. The next request says why."""
        self.result["attempts"] += 1
        self.problem = problem
        tried = self.result["attempts"]
        plural = "s" if tried > 1 else ""
        self.result["error"] = f"no valid answer in {tried} attempt{plural}: {problem}"

    def refused(self, reason: str) -> Result:
        """The result of a request that failed for good."""
        self.result["attempts"] += 1
        return self.result | {"error": f"the request failed: {reason}"}


def _usage_of(body: Mapping[str, Any]) -> dict[str, int]:
    """prompt_tokens, completion_tokens and, if reported, how many of the former were cached."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return {}
    counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and details.get("cached_tokens"):
        counts["cached_tokens"] = details["cached_tokens"]
    return {name: n if isinstance(n, int) else 0 for name, n in counts.items()}


def code_of(error: Exception) -> str:
    """The server's code or type of an error. Empty if it has neither."""
    body = getattr(error, "body", None)
    kind = body.get("type") if isinstance(body, dict) else None
    return str(getattr(error, "code", None) or kind or "")


def _schema(names: list[str]) -> dict[str, Any]:
    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        required = {"required": list(properties), "additionalProperties": False}
        return {"type": "object", "properties": properties} | required

    judgment = closed(
        {
            "dimension": {"type": "string", "enum": names},
            "score": {"type": "integer", "enum": list(SCORES)},
            "reason": {"type": "string"},
        }
    )
    schema = closed({"judgments": {"type": "array", "items": judgment}})
    return {"name": "judgments", "strict": True, "schema": schema}
