"""A judge behind an OpenAI-compatible endpoint.

The client of `openai` retries transport errors and honours `Retry-After`. This module asks again when
an answer cannot be used. An error that every item would meet (no credit, a refused key, an unknown
model, no server) stops the run. An error of one item is recorded as its missing value.
"""

import asyncio
import ipaddress
import json
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from hialign.judging.limits import Budget, Pace
from hialign.judging.request import FORMATS, NO_CREDIT, Answers, Dialect, Item, Result, code_of
from hialign.study.errors import HialignError
from hialign.study.rubric import Rubric
from hialign.study.settings import JudgeSettings

T = TypeVar("T")
Keep = Callable[[Item, Result], None]

TRANSPORT_RETRIES = 6  # by the client, with its backoff of 0.5 to 8 s
POOL = 8  # connections of one client
MOST_REFUSALS = 10  # refused items in a row, after which the run stops
MOST_PAGES = 3  # web pages instead of answers, from an address that has never answered


class OpenAIJudge:
    """Asks `settings.model` for the scores of `rubric`, `settings.concurrency` items at a time.

    `spent` (USD) counts towards `settings.max_cost`.
    """

    def __init__(self, settings: JudgeSettings, rubric: Rubric, spent: float = 0.0) -> None:
        self.settings = settings
        self.rubric = rubric
        self.dialect = Dialect()
        self._spent = spent
        url = urlsplit(settings.base_url or "")
        if settings.base_url and (url.scheme not in ("http", "https") or not url.hostname):
            raise HialignError("judge.base_url must look like https://host/v1")
        self._place = (
            f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}" if url.hostname else ""
        )
        self.loopback = _is_loopback(url.hostname)
        self.key = os.environ.get(settings.api_key_env, "").strip()
        if not self.key and not self.loopback:
            raise HialignError(
                f"the judge {settings.model} needs an API key: set the environment variable "
                f"{settings.api_key_env} (or name another in judge.api_key_env)"
            )
        if not self.key.isascii():
            raise HialignError(f"the API key in {settings.api_key_env} holds characters no key has")
        self._refusals = 0  # in a row
        self._reached = False  # whether the server ever answered

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.settings.name!r}, model={self.settings.model!r})"

    def judge(self, items: Sequence[Item], keep: Keep) -> None:
        """Call `keep(item, result)` for each item when its result comes in.

        A result has scores, reasons, attempts, repaired, usage, raw and model. Without a valid answer,
        it has "error" and empty scores. Raises HialignError if the run cannot continue, after waiting
        for the requests in flight and keeping their results. Works inside a running event loop too,
        as in a notebook.
        """
        run(self._judge_all(items, keep))

    async def _judge_all(self, items: Sequence[Item], keep: Keep) -> None:
        queue: Iterator[Item] = iter(items)
        stopped: list[HialignError] = []

        async def work(client: openai.AsyncOpenAI) -> None:
            for item in queue:  # shared: each worker takes the next
                try:
                    keep(item, await self.ask(client, item))
                except HialignError as error:
                    stopped.append(error)
                if stopped:
                    return

        async with AsyncExitStack() as stack:
            count = min(self.settings.concurrency, len(items))
            self.begin()
            # A pool looks through all its connections for each request, so small pools are faster.
            clients = [
                await stack.enter_async_context(self.client()) for _ in range(0, count, POOL)
            ]
            workers = [asyncio.create_task(work(clients[i // POOL])) for i in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if stopped:
            raise stopped[0]

    def begin(self) -> None:
        """Create the objects that belong to one event loop."""
        self._probing = asyncio.Lock()
        self._pace = Pace(self.settings)
        self._budget = Budget(self.settings, self._spent)

    def client(self) -> openai.AsyncOpenAI:
        """A client that keeps the pace and retries errors that may pass."""

        async def before(request: Any) -> None:
            await self._pace.wait(int(request.headers.get("content-length", 0)))

        async def after(response: Any) -> None:
            if response.status_code in (429, 503):
                self._pace.refused(response.headers.get("retry-after"))
            broke = response.status_code == 429 and b"insufficient_quota" in await response.aread()
            unsupported = response.status_code == 500 and FORMATS[self.dialect.format] != "plain"
            if broke or (unsupported and not self.dialect.settled):
                response.headers["x-should-retry"] = "false"  # which the client obeys

        return openai.AsyncOpenAI(
            api_key=self.key or "none",
            base_url=self.settings.base_url,
            max_retries=TRANSPORT_RETRIES,
            timeout=openai.Timeout(self.settings.timeout, connect=10.0),
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not self.loopback,  # no proxy between us and this machine
                event_hooks={"request": [before], "response": [after]},
            ),
        )

    async def ask(self, client: openai.AsyncOpenAI, item: Item) -> Result:
        """The result for one item, after as many attempts as are needed and allowed."""

        answers = Answers(self.settings, self.rubric, item, self.dialect)
        while answers.open:
            try:
                await self._attempt(client, answers)
            except (openai.APIResponseValidationError, json.JSONDecodeError) as error:
                self.stop_if_hopeless(error)
                answers.fail("its answer is not a completion")
            except openai.APIError as error:
                self.stop_if_hopeless(error)
                return answers.refused(self.said(error))
        return answers.result

    async def _attempt(self, client: openai.AsyncOpenAI, answers: Answers) -> None:
        """One answer. While the first request finds out what the server supports, the others wait."""

        if not self.dialect.settled:
            async with self._probing:
                while not self.dialect.settled:
                    try:
                        await self._send(client, answers)
                    except openai.APIStatusError as error:
                        if not self.dialect.adapt(error):
                            self.dialect.format = 0  # the item may be to blame, so start over
                            raise
                    else:
                        self.dialect.settled = self._reached  # a web page tells nothing
                        return
        await self._send(client, answers)

    async def _send(self, client: openai.AsyncOpenAI, answers: Answers) -> None:
        body = answers.body()
        size = sum(len(message["content"].encode()) for message in body["messages"])
        async with self._budget.call(size) as usage:
            # A plain dict, because `chat.completions.create` spends half of its time on types
            completion = await client.post("/chat/completions", cast_to=object, body=body)
            if isinstance(completion, dict):
                self._reached, self._refusals = True, 0
            elif self._refused_often(most=MOST_REFUSALS if self._reached else MOST_PAGES):
                raise self.stop(
                    "answered with a web page instead of JSON: does judge.base_url end in /v1?"
                )
            usage |= answers.read(completion, self.clean)
        self._pace.answered(usage)

    def stop_if_hopeless(self, error: Exception) -> None:
        """Raise HialignError if every other item would fail in the same way."""

        status = getattr(error, "status_code", None)
        if code_of(error) in NO_CREDIT or status == 402:
            raise self.stop(f"has no credit left: {self.said(error)}") from None
        if status in (401, 403):
            raise self.stop(
                f"refused the key in {self.settings.api_key_env}: {self.said(error)}"
            ) from None
        if status == 404:
            raise self.stop(f"knows no such model or address: {self.said(error)}") from None
        unreachable = isinstance(error, openai.APIConnectionError) and not isinstance(
            error, openai.APITimeoutError
        )
        if unreachable and not self._reached:
            raise self.stop(f"cannot be reached: {self.said(error.__cause__ or error)}") from None
        if self._refused_often():
            raise self.stop(
                f"refused {self._refusals} requests in a row, the last with: {self.said(error)}"
            ) from None

    def _refused_often(self, most: int = MOST_REFUSALS) -> bool:
        self._refusals += 1
        return self._refusals >= most

    def stop(self, reason: str) -> HialignError:
        where = f" at {self._place}" if self._place else ""
        return HialignError(
            f"the judge {self.settings.model}{where} {reason.rstrip('.')}. All judgments so far are "
            "kept: run the same command again to continue"
        )

    def said(self, error: BaseException) -> str:
        """The server's own message, shortened to one line without the key."""
        body = getattr(error, "body", None)
        text = body.get("message") if isinstance(body, dict) else None
        return self.clean(" ".join(str(text or error).split()))[:300]

    def clean(self, text: str) -> str:
        """`text` without the key and without characters that no file can hold."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self.key, "[key]") if len(self.key) >= 8 else text


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in another thread if a loop is already running, as in a notebook."""
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
