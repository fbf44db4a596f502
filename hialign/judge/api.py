"""A judge behind an OpenAI-compatible endpoint.

One owner per layer: the client of `openai` retries transport errors (and honours `Retry-After`);
this module asks again when an answer cannot be used. What would fail for each item alike (no credit,
a refused key, an unknown model, no server) stops the run; what concerns one item is its missing value.
"""

import asyncio
import ipaddress
import json
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from hialign.errors import HialignError
from hialign.judge.parse import parse_scores
from hialign.judge.rubric import SCORES, Rubric, messages
from hialign.study import JudgeSettings

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
Item = Mapping[str, Any]  # prompt_id, prompt, response
Result = dict[str, Any]  # a record without what judge() adds
Keep = Callable[[Item, Result], None]

TRANSPORT_RETRIES = 5  # by the client, with its backoff of 0.5 to 8 s
FORMATS = ("json_schema", "json_object", "plain")  # tried in this order; support differs by server
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "Arrearage")  # error codes
MOST_REFUSALS = 10  # refused items in a row after which the rest would fare no better
LONGEST_RAW = 20_000  # characters of an answer that are kept


class OpenAIJudge:
    """Asks `settings.model` for the scores of `rubric`, `settings.concurrency` items at a time."""

    def __init__(self, settings: JudgeSettings, rubric: Rubric) -> None:
        self.settings = settings
        self.rubric = rubric
        url = urlsplit(settings.base_url or "")
        if settings.base_url and (url.scheme not in ("http", "https") or not url.hostname):
            raise HialignError("judge.base_url must look like https://host/v1")
        self._place = (
            f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}" if url.hostname else ""
        )
        self._loopback = _is_loopback(url.hostname)
        self._key = os.environ.get(settings.api_key_env, "").strip()
        if not self._key and not self._loopback:
            raise HialignError(
                f"the judge {settings.model} needs an API key: set the environment variable "
                f"{settings.api_key_env} (or name another in judge.api_key_env)"
            )
        if not self._key.isascii():
            raise HialignError(f"the API key in {settings.api_key_env} holds characters no key has")
        self._format = 0  # index in FORMATS
        self._limit = "max_tokens"  # newer OpenAI models want max_completion_tokens
        self._settled = False  # whether format and limit are known to work
        self._refusals = 0  # in a row

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.settings.name!r}, model={self.settings.model!r})"

    def judge(self, items: Sequence[Item], keep: Keep | None = None) -> list[Result]:
        """A result for each item, in order; `keep(item, result)` is called as each comes in.

        A result has scores, reasons, attempts, repaired, usage, raw, model, and, where there is no
        valid answer, "error" and empty scores. HialignError if the run cannot go on; what was kept
        until then stays kept. Works inside a running event loop too (a notebook's).
        """
        results: list[Result | None] = [None] * len(items)

        def done(index: int, result: Result) -> None:
            results[index] = result
            if keep is not None:
                keep(items[index], result)

        _run(self._judge_all(items, done))
        return [result for result in results if result is not None]

    async def _judge_all(self, items: Sequence[Item], done: Callable[[int, Result], None]) -> None:
        import openai

        async def retry_only_what_may_pass(response: Any) -> None:
            broke = response.status_code == 429 and b"insufficient_quota" in await response.aread()
            unsupported = response.status_code == 500 and FORMATS[self._format] != "plain"
            if broke or (unsupported and not self._settled):
                response.headers["x-should-retry"] = "false"  # which the client obeys

        http = openai.DefaultAsyncHttpxClient(
            trust_env=not self._loopback,  # no proxy between us and this machine
            event_hooks={"response": [retry_only_what_may_pass]},
        )
        self._probing = asyncio.Lock()
        queue: Iterator[tuple[int, Item]] = iter(enumerate(items))

        async def work(client: "openai.AsyncOpenAI") -> None:
            for index, item in queue:  # shared: each worker takes the next
                done(index, await self._judge_one(client, item))

        async with openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.settings.base_url,
            max_retries=TRANSPORT_RETRIES,
            http_client=http,
        ) as client:
            count = min(self.settings.concurrency, len(items))
            workers = [asyncio.create_task(work(client)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _judge_one(self, client: "openai.AsyncOpenAI", item: Item) -> Result:
        import openai

        result: Result = {"scores": {}, "reasons": {}, "attempts": 0, "repaired": False}
        result |= {"usage": {}, "raw": "", "model": self.settings.model}
        problem = ""
        while result["attempts"] < self.settings.attempts:
            result["attempts"] += 1
            asked = messages(self.rubric, item["prompt"], item["response"], problem)
            try:
                completion = await self._ask(client, asked)
            except (openai.APIError, json.JSONDecodeError) as error:
                self._stop_if_hopeless(error)
                return result | {"error": f"the request failed: {self._said(error)}"}
            self._refusals = 0
            text, cut = self._read(completion, result)
            parsed = parse_scores(text, self.rubric)
            if parsed.scores:
                result |= {"scores": parsed.scores, "reasons": parsed.reasons}
                return result | {"repaired": parsed.repaired}
            problem = "; ".join(parsed.problems)
            if cut:
                problem += f" (it was cut off at max_tokens: {self.settings.max_tokens})"
        return result | {"error": f"no valid answer in {result['attempts']} attempts: {problem}"}

    async def _ask(self, client: "openai.AsyncOpenAI", asked: list[dict[str, Any]]) -> Any:
        """One completion. The first finds out, while the others wait, what the server supports."""
        import openai

        if not self._settled:
            async with self._probing:
                while not self._settled:
                    try:
                        completion = await self._send(client, asked)
                    except openai.APIStatusError as error:
                        if not self._adapt(error):
                            self._format = 0  # it was this item's fault, as far as we know
                            raise
                    else:
                        self._settled = True
                        return completion
        return await self._send(client, asked)

    async def _send(self, client: "openai.AsyncOpenAI", asked: list[dict[str, Any]]) -> Any:
        settings = self.settings
        options: dict[str, Any] = {self._limit: settings.max_tokens}
        if FORMATS[self._format] == "json_schema":
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": _schema(self.rubric),
            }
        elif FORMATS[self._format] == "json_object":
            options["response_format"] = {"type": "json_object"}
        return await client.chat.completions.create(
            model=settings.model,
            messages=asked,  # type: ignore[arg-type]
            temperature=settings.temperature,
            seed=settings.seed,
            **options,
        )

    def _adapt(self, error: "openai.APIStatusError") -> bool:
        """Whether there is another way to put the request that this server may take."""
        if error.status_code not in (400, 422, 500, 501) or _code(error) in NO_CREDIT:
            return False
        if "max_completion_tokens" in str(error) and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            return True
        self._format = min(self._format + 1, len(FORMATS))
        return self._format < len(FORMATS)

    def _read(self, completion: Any, result: Result) -> tuple[str, bool]:
        """The answer's text and whether it was cut off; its usage is added to `result`."""
        if isinstance(completion, str):  # what the client makes of a page that is not JSON
            raise self._stop(
                "answered with a web page instead of JSON: does judge.base_url end in /v1?"
            )
        if usage := getattr(completion, "usage", None):
            for name in ("prompt_tokens", "completion_tokens"):
                count = getattr(usage, name, None) or 0
                result["usage"][name] = result["usage"].get(name, 0) + count
        result["model"] = getattr(completion, "model", None) or self.settings.model
        choices = getattr(completion, "choices", None) or []
        content = choices[0].message.content if choices and choices[0].message else None
        text = self._clean(content or "")
        result["raw"] = text[:LONGEST_RAW]
        return text, bool(choices) and choices[0].finish_reason == "length"

    def _stop_if_hopeless(self, error: Exception) -> None:
        """Raise HialignError for what would meet every other item too."""
        import openai

        status = getattr(error, "status_code", None)
        if _code(error) in NO_CREDIT or status == 402:
            raise self._stop(f"has no credit left: {self._said(error)}") from None
        if status in (401, 403):
            raise self._stop(
                f"refused the key in {self.settings.api_key_env}: {self._said(error)}"
            ) from None
        if status == 404:
            raise self._stop(f"knows no such model or address: {self._said(error)}") from None
        if isinstance(error, openai.APIConnectionError) and not isinstance(
            error, openai.APITimeoutError
        ):
            raise self._stop(f"cannot be reached: {self._said(error.__cause__ or error)}") from None
        self._refusals += 1
        if self._refusals >= MOST_REFUSALS:
            raise self._stop(
                f"refused {self._refusals} requests in a row, the last with: {self._said(error)}"
            ) from None

    def _stop(self, reason: str) -> HialignError:
        where = f" at {self._place}" if self._place else ""
        return HialignError(
            f"the judge {self.settings.model}{where} {reason.rstrip('.')}. What is judged so far is "
            "kept: start again to go on from there"
        )

    def _said(self, error: BaseException) -> str:
        """The server's own words, on one line, short, without the key."""
        body = getattr(error, "body", None)
        text = body.get("message") if isinstance(body, dict) else None
        return self._clean(" ".join(str(text or error).split()))[:300]

    def _clean(self, text: str) -> str:
        """`text` without the key, and such that any file can hold it."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text


def _schema(rubric: Rubric) -> dict[str, Any]:
    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        required = {"required": list(properties), "additionalProperties": False}
        return {"type": "object", "properties": properties} | required

    judgment = closed(
        {
            "dimension": {"type": "string", "enum": list(rubric.dimensions)},
            "score": {"type": "integer", "enum": list(SCORES)},
            "reason": {"type": "string"},
        }
    )
    schema = closed({"judgments": {"type": "array", "items": judgment}})
    return {"name": "judgments", "strict": True, "schema": schema}


def _code(error: Exception) -> str:
    body = getattr(error, "body", None)
    kind = body.get("type") if isinstance(body, dict) else None
    return str(getattr(error, "code", None) or kind or "")


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in a thread of its own where a loop runs already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def main() -> T:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await coroutine

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, main())
        try:
            return future.result()
        except KeyboardInterrupt:
            for loop, task in started:
                if task is not None and not future.done():
                    loop.call_soon_threadsafe(task.cancel)
            raise
