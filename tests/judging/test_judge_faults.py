"""A judge's run through everything that goes wrong, against a server on this machine."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import INVALID, KINDS, ODD, TRANSPORT, Running, meant
from pydantic import ValidationError

from hialign.judging.items import judge
from hialign.judging.ledger import Ledger, lines
from hialign.judging.limits import Budget, Pace
from hialign.records.files import read_jsonl
from hialign.study.errors import HialignError
from hialign.study.rubric import DIMENSIONS
from hialign.study.settings import JudgeSettings


def items(n: int) -> list[dict[str, Any]]:
    return [{"prompt_id": i, "prompt": f"Item {i}", "response": f"Answer {i}."} for i in range(n)]


def settings(server: Running | None = None, **changes: Any) -> JudgeSettings:
    values: dict[str, Any] = {"model": "judge", "name": "tester"}
    values["base_url"] = server.url if server else None
    return JudgeSettings(**values | {"concurrency": 8, "timeout": 0.5, "attempts": 8} | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cell" / "judgments-tester.jsonl"


def check(path: Path, n: int) -> list[dict[str, Any]]:
    """Each of `n` judgments once, in order, as the server meant it."""
    rows = read_jsonl(path)
    assert [row["prompt_id"] for row in rows] == list(range(n))
    for row in rows:
        assert row["scores"] == meant(f"Item {row['prompt_id']}"), row
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_is_overcome(start: Any, path: Path, kind: str) -> None:
    """Half of the answers go wrong in one way; every judgment is right all the same."""
    slow = kind in ("429", "500", "drop", "drop-half", "hang")  # the client waits 0.5 s and longer
    n = 6 if slow else 24
    server = start(faults=0.3 if slow else 0.5, kinds=(kind,), seed=3, hang=30)
    # The first of all finds out the format: a 500 would mean that one is not supported.
    judge(items(1), settings(server), path.with_name("first.jsonl"), progress=False)
    summary = judge(items(n), settings(server), path, progress=False)
    assert (summary["done"], summary["failed"]) == (n, 0)
    rows = check(path, n)
    assert server.server.counts[kind] > 1
    if kind in ODD:  # understood at once
        assert {row["attempts"] for row in rows} == {1}
    if kind in INVALID or kind == "html":
        assert max(row["attempts"] for row in rows) > 1


def test_all_faults_at_once_ask_no_more_than_needed(start: Any, path: Path) -> None:
    server = start(faults=0.3, seed=1, hang=30)
    judge(items(151)[150:], settings(server), path.with_name("first.jsonl"), progress=False)
    judge(items(150), settings(server, concurrency=16, timeout=3), path, progress=False)
    check(path, 150)
    stats = server.server.stats()
    assert stats["requests"] == 151 + stats["must_ask_again"]
    assert stats["answered_twice"] == 0
    assert stats["most_in_flight"] <= 16 + sum(stats["by_kind"].get(k, 0) for k in ("hang",))
    assert set(TRANSPORT + INVALID + ODD) == set(KINDS)


def test_an_answer_that_never_comes_right_is_a_missing_value(start: Any, path: Path) -> None:
    server = start(faults=1.0, kinds=("echo",))
    summary = judge(items(2), settings(server, attempts=2), path, progress=False)
    assert (summary["done"], summary["failed"]) == (0, 2)
    for row in read_jsonl(path):
        assert row["scores"] == {}
        assert row["raw"].startswith("The response asks for")
        assert row["usage"] == {"prompt_tokens": 2000, "completion_tokens": 1200}
    # Left as it is on request; its tokens stay counted when it is asked again.
    assert (
        judge(items(2), settings(server), path, retry_failed=False, progress=False)["failed"] == 2
    )
    server.server.faults = 0.0
    summary = judge(items(2), settings(server), path, progress=False)
    assert (summary["done"], summary["failed"], summary["reused"]) == (2, 0, 0)
    assert summary["usage"] == {"prompt_tokens": 2000, "completion_tokens": 1200}
    assert summary["total_usage"] == {"prompt_tokens": 6000, "completion_tokens": 3600}


# --- killed, torn, shared ------------------------------------------------------------------------


CLIENT = """
    from pathlib import Path
    from hialign.judging.items import judge
    from hialign.study.settings import JudgeSettings
    s = JudgeSettings(model="judge", name="tester", base_url={url!r}, concurrency=8, attempts=8)
    judge({items!r}, s, Path({path!r}), progress=False)
"""


def client(server: Running, path: Path, n: int) -> "subprocess.Popen[bytes]":
    code = textwrap.dedent(CLIENT).format(url=server.url, items=items(n), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_loses_at_most_what_is_in_flight(start: Any, path: Path) -> None:
    server, n = start(latency=0.05, faults=0.2, kinds=INVALID + ODD, seed=2), 200
    for share in (0.3, 0.6):
        process = client(server, path, n)
        wait_for(lambda share=share: len(server.server.answers) > share * n)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = [row for row in lines(Ledger(path).partial) if row["scores"]]
        assert len(kept) >= len(server.server.answers) - 2 * 8
    assert client(server, path, n).wait() == 0
    check(path, n)
    stats = server.server.stats()
    assert n <= stats["requests"] <= n + stats["must_ask_again"] + 2 * 8
    assert not Ledger(path).partial.exists()


@pytest.mark.slow
def test_two_processes_on_one_file_are_refused(start: Any, path: Path) -> None:
    server = start(latency=0.2)
    process = client(server, path, 40)
    wait_for(lambda: server.server.counts["requests"] > 1)
    with pytest.raises(HialignError, match=r"judging .* into .* is at it already"):
        judge(items(40), settings(server), path, progress=False)
    assert process.wait() == 0
    check(path, 40)
    assert server.server.counts["requests"] == 40
    assert judge(items(40), settings(server), path, progress=False)["reused"] == 40


def test_a_torn_line_is_repaired(start: Any, path: Path) -> None:
    server = start()
    judge(items(3), settings(server), path, progress=False)
    whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.rename(Ledger(path).partial)
    Ledger(path).partial.write_text(whole[0] + whole[1][:50])
    assert judge(items(3), settings(server), path, progress=False)["reused"] == 1
    check(path, 3)


def test_equal_responses_are_judged_once(start: Any, path: Path) -> None:
    server = start()
    judge(items(3), settings(server), path, progress=False)
    other = path.with_name("judgments-other.jsonl")
    changed = [*items(2), {"prompt_id": 2, "prompt": "Item 2", "response": "Another."}]
    summary = judge(changed, settings(server), other, also=[path], progress=False)
    assert (summary["done"], summary["reused"]) == (1, 2)
    assert server.server.counts["requests"] == 4
    rows = check(other, 3)
    assert [row.get("shared", False) for row in rows] == [True, True, False]
    assert summary["total_usage"] == {"prompt_tokens": 1000, "completion_tokens": 600}


def test_what_was_paid_for_is_found_again_when_settings_come_back(start: Any, path: Path) -> None:
    server = start()
    judge(items(3), settings(server), path, progress=False)
    assert judge(items(3), settings(server, seed=1), path, progress=False)["done"] == 3
    assert judge(items(3), settings(server), path, progress=False)["reused"] == 3
    assert judge(items(3), settings(server, seed=1), path, progress=False)["reused"] == 3
    assert server.server.counts["requests"] == 6
    check(path, 3)


def test_a_run_over_fewer_items_drops_nothing_that_was_paid_for(start: Any, path: Path) -> None:
    server = start()
    judge(items(4), settings(server), path, progress=False)
    path.rename(Ledger(path).partial)  # as if killed before the end
    assert judge(items(2), settings(server), path, progress=False)["reused"] == 2
    check(path, 2)
    assert judge(items(4), settings(server), path, progress=False)["reused"] == 4
    check(path, 4)
    assert server.server.counts["requests"] == 4


# --- limits --------------------------------------------------------------------------------------


def sent_at(pace: Pace, sizes: list[int]) -> list[float]:
    """The loop's times at which requests of `sizes` bytes may go out, one after the other."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = []
        for size in sizes:
            await pace.wait(size)
            times.append(loop.time())
        return times

    return asyncio.run(main())


def test_requests_per_minute_are_respected() -> None:
    times = sent_at(Pace(settings(requests_per_minute=1200)), [1] * 41)
    # 20 a second, of which one second's worth may go at once.
    assert times[-1] - times[0] >= (41 - 1 - 20) / 20 - 0.05
    assert sum(t < times[0] + 0.5 for t in times) <= 20 + 10 + 1


def test_tokens_per_minute_are_respected() -> None:
    pace = Pace(settings(tokens_per_minute=60_000))
    pace.answered({"prompt_tokens": 900, "completion_tokens": 100})
    times = sent_at(pace, [1] * 12)  # 1,000 tokens a second; ten seconds' worth may go at once
    assert times[9] - times[0] < 0.5
    assert times[11] - times[0] >= 1.9


def test_retries_count_as_requests(start: Any, path: Path) -> None:
    server = start(faults=0.5, kinds=("429-retry-after",), seed=1)
    judge(items(10), settings(server, requests_per_minute=600), path, progress=False)
    check(path, 10)
    assert server.server.counts["requests"] > 10


def test_requests_that_are_told_to_wait_hold_all_back() -> None:
    async def main(told: list[str], answers: int = 0) -> float:
        pace, clock = Pace(settings()), asyncio.get_running_loop().time
        for text in told:
            pace.refused(text)
            for _ in range(answers):
                pace.answered({})
        began = clock()
        await pace.wait(1)
        return clock() - began

    assert asyncio.run(main(["9", "0.4"])) >= 0.39
    assert asyncio.run(main(["9"])) < 5  # once is an accident
    assert asyncio.run(main(["9", "9", "9"], answers=1)) < 5
    assert asyncio.run(main(["9", "soon"])) < 5  # a date: the client waits for that one alone


PRICES = {"input": 1.0, "output": 10.0}  # 1,000 + 600 tokens: 0.007 USD


def test_cost_is_summed_and_max_cost_never_passed(start: Any, path: Path) -> None:
    server = start(latency=0.01)
    asked = settings(server, prices=PRICES, max_cost=0.1, max_tokens=600)
    with pytest.raises(HialignError, match=r"stops before max_cost: 0\.0\d+ of 0\.1 USD") as error:
        judge(items(50), asked, path, progress=False)
    assert "raise judge.max_cost" in str(error.value)
    kept = lines(Ledger(path).partial)
    assert all(row["cost"] == 0.007 for row in kept)
    assert 10 <= len(kept) <= 14
    assert sum(row["cost"] for row in kept) <= 0.1
    assert server.server.counts["requests"] == len(kept)  # nothing in flight was thrown away
    summary = judge(
        items(50), settings(server, prices=PRICES, max_tokens=600), path, progress=False
    )
    assert summary["reused"] == len(kept)
    assert summary["total_cost"] == pytest.approx(50 * 0.007)
    assert summary["cost"] == pytest.approx((50 - len(kept)) * 0.007)
    with pytest.raises(HialignError, match="max_cost"):  # what others of the study took counts
        judge(items(1), asked, path.with_name("b.jsonl"), spent=0.099, progress=False)


def test_a_budget_waits_for_what_is_in_flight() -> None:
    async def main() -> list[str]:
        asked = settings(prices=PRICES, max_cost=0.015, max_tokens=1000)
        budget, order = Budget(asked), []

        async def call(name: str) -> None:
            async with budget.call(1000) as usage:
                order.append(f"{name} starts")
                await asyncio.sleep(0.01)
                usage |= {"prompt_tokens": 250, "completion_tokens": 10}
                order.append(f"{name} ends")

        await asyncio.gather(call("a"), call("b"))
        assert budget.spent == pytest.approx(2 * (250 + 100) / 1e6)
        return order

    # At its worst each takes 0.0105 USD: together they could pass the limit.
    assert asyncio.run(main()) == ["a starts", "a ends", "b starts", "b ends"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_cost": 1.0}, "max_cost needs prices"),
        ({"max_cost": 0.0, "prices": PRICES}, "max_cost"),
        ({"prices": {"input": 1}}, "output"),
        ({"dimension_order": "random", "backend": "local", "model": "m"}, "dimension_order"),
        ({"dimension_order": "shuffled"}, "fixed"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        JudgeSettings(**changes)


# --- protocol ------------------------------------------------------------------------------------


def test_dimensions_in_a_random_order(start: Any, path: Path) -> None:
    server = start()
    bodies: list[dict[str, Any]] = []
    reply = server.server.reply

    async def spy(body: dict[str, Any]) -> Any:
        bodies.append(body)
        return await reply(body)

    server.server.reply = spy
    twins = [*items(6), {"prompt_id": 6, "prompt": "Item 0", "response": "Another."}]
    asked = settings(server, dimension_order="random", concurrency=1)
    judge(twins, asked, path, progress=False)
    rows = read_jsonl(path)
    orders = [tuple(row["order"]) for row in rows]
    assert len(set(orders[:6])) == 6
    assert orders[0] == orders[6]  # the same for all answers to one prompt
    assert all(sorted(order) == sorted(DIMENSIONS) for order in orders)
    for body, order in zip(bodies, orders, strict=True):
        system = body["messages"][0]["content"]
        places = [system.index(f'"{name}": ') for name in order]
        assert places == sorted(places)
        kind = body["response_format"]["json_schema"]["schema"]["properties"]["judgments"]["items"]
        assert kind["properties"]["dimension"]["enum"] == list(order)
    again = path.with_name("again.jsonl")
    judge(twins, asked, again, progress=False)
    assert [tuple(row["order"]) for row in read_jsonl(again)] == orders
    fixed = judge(twins, settings(server), path, progress=False)
    assert fixed["reused"] == 0
    assert "order" not in read_jsonl(path)[0]


def test_what_a_model_does_not_take_is_left_out_and_recorded(start: Any, path: Path) -> None:
    server = start()
    reply = server.server.reply

    async def picky(body: dict[str, Any]) -> Any:
        for name in ("temperature", "seed"):
            if name in body:
                text = f"Unsupported parameter: '{name}' is not supported with this model."
                return 400, json.dumps({"error": {"message": text}})
        assert body["enable_thinking"] is False
        return await reply(body)

    server.server.reply = picky
    asked = settings(server, extra_body={"enable_thinking": False})
    assert judge(items(3), asked, path, progress=False)["done"] == 3
    assert [row["unsupported"] for row in check(path, 3)] == [["temperature", "seed"]] * 3
