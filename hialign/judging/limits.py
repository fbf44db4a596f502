"""The limits of a run of calls: requests and tokens per minute, the server's pauses, and money."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiolimiter import AsyncLimiter

from hialign.judging.cost import BYTES_PER_TOKEN, cost_of
from hialign.study.errors import HialignError
from hialign.study.settings import JudgeSettings

LONGEST_PAUSE = 120.0  # seconds, even if a server asks for more


class Pace:
    """Delays requests. Retries of the client count too, as they do for the server."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._requests = self._tokens = None
        if per_minute := settings.requests_per_minute:
            # The bucket holds the requests of one second (at least one), to avoid bursts
            period = max(1.0, 60 / per_minute)
            self._requests = AsyncLimiter(per_minute * period / 60, period)
        if per_minute := settings.tokens_per_minute:
            self._tokens = AsyncLimiter(per_minute / 6, 10)
        self._open_at = 0.0  # by the loop's clock
        self._refused = 0  # in a row
        self._mean = 0.0  # tokens of a call, asked and answered
        self._calls = 0

    async def wait(self, size: int) -> None:
        """Wait until a request of `size` bytes may be sent."""
        loop = asyncio.get_running_loop()
        while (pause := self._open_at - loop.time()) > 0:
            await asyncio.sleep(pause)
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            expected = self._mean or size / BYTES_PER_TOKEN
            await self._tokens.acquire(min(expected, self._tokens.max_rate))

    def refused(self, retry_after: str | None) -> None:
        """Count a refused request. After two in a row, all requests obey `Retry-After` (seconds)."""
        self._refused += 1
        if self._refused < 2:
            return
        with contextlib.suppress(TypeError, ValueError):
            seconds = min(float(retry_after or ""), LONGEST_PAUSE)
            self._open_at = max(self._open_at, asyncio.get_running_loop().time() + seconds)

    def answered(self, usage: dict[str, int]) -> None:
        """Learn how many tokens a call takes from the `usage` of one."""
        self._refused = 0
        tokens = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        self._calls += 1
        self._mean += (tokens - self._mean) / self._calls


class Budget:
    """The money that may still be spent. A call is sent only if all calls in flight can be paid.

    The highest cost of each call is reserved. It assumes an answer of `max_tokens` and, for the
    prompt, the most tokens per byte that were seen so far.
    """

    def __init__(self, settings: JudgeSettings, spent: float = 0.0) -> None:
        self.settings = settings
        self.spent = spent  # USD, elsewhere in the study and here
        self._reserved = 0.0
        self._flying = 0
        self._settled = asyncio.Condition()
        # Two bytes per token, as in the languages with most tokens, until a call reports its number
        self._density = 1 / 2
        self._told = False

    @contextlib.asynccontextmanager
    async def call(self, size: int) -> AsyncIterator[dict[str, int]]:
        """A call of `size` bytes. The caller puts its usage into the dict that this yields.

        It waits while the calls in flight may cost less than reserved and so leave enough. Raises
        HialignError if they cannot.
        """
        usage: dict[str, int] = {}
        prices, limit = self.settings.prices, self.settings.max_cost
        worst = 0.0
        if prices and limit is not None:
            worst = self.worst(size)
            async with self._settled:
                while self.spent + self._reserved + worst > limit:
                    if not self._flying:
                        raise self.passed(worst)
                    await self._settled.wait()
                    worst = self.worst(size)
                self._reserved += worst
                self._flying += 1
        try:
            yield usage
        finally:
            if prices:
                self.spent += cost_of(usage, prices) or 0.0
                if seen := usage.get("prompt_tokens"):
                    self._density = max(1.1 * seen / size, self._density if self._told else 0.0)
                    self._told = True
            if worst:
                async with self._settled:
                    self._reserved -= worst
                    self._flying -= 1
                    self._settled.notify_all()

    def worst(self, size: int, batch: bool = False) -> float:
        """The highest cost in USD of a call of `size` bytes."""
        usage: dict[str, Any] = {"prompt_tokens": size * self._density}
        usage["completion_tokens"] = self.settings.max_tokens
        return cost_of(usage, self.settings.prices, batch) or 0.0

    def passed(self, worst: float) -> HialignError:
        """The error if the next call, which may cost `worst` USD, could exceed the limit."""
        return HialignError(
            f"the judge {self.settings.name} stops before max_cost: {self.spent:.4f} of "
            f"{self.settings.max_cost:g} USD are spent, and the next call may take {worst:.4f}. All "
            "judgments so far are kept: raise judge.max_cost and run the same command again to continue"
        )
