"""An OpenAI-compatible judge on this machine that misbehaves in known ways.

    python tests/judge_server.py --latency 0.3 --faults 0.05

prints its port. What it means to answer follows from the prompt and the dimension alone (`meant`), so
that a judgment can be checked; which requests go wrong, from a seed and the number of the request.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import signal
import threading
from collections import Counter
from typing import Any

from hialign.study.rubric import DIMENSIONS

# A request that meets one of these has to be sent again.
TRANSPORT = ("429", "429-retry-after", "500", "hang", "drop", "drop-half", "html")
INVALID = (
    *("truncated", "empty", "missing", "unknown", "zero", "six", "fraction", "null", "words"),
    *("two-answers", "echo", "apology", "no-choices", "not-json"),
)
# These hold a valid answer all the same.
ODD = ("fenced", "prose", "twice", "strings", "quotes", "chinese", "thinking", "wrapped", "array")
KINDS = TRANSPORT + INVALID + ODD


def meant(prompt: str) -> dict[str, int]:
    """The scores that the server means for `prompt`."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return {name: digest[i % 32] % 5 + 1 for i, name in enumerate(DIMENSIONS)}


def content_of(kind: str, scores: dict[str, int]) -> str:
    """The text of an answer with `scores`, or with what is wrong by `kind`."""
    rows: list[dict[str, Any]] = [
        {"dimension": name, "score": score, "reason": f"It is {score} for {name}."}
        for name, score in scores.items()
    ]
    first = rows[0]
    wrong = {"zero": 0, "six": 6, "fraction": 3.5, "null": None, "words": "three"}
    if kind in wrong:
        first["score"] = wrong[kind]
    elif kind == "missing":
        del rows[3]
    elif kind == "unknown":
        rows[2]["dimension"] = "Charm"
    elif kind == "strings":
        rows = [row | {"score": str(row["score"])} for row in rows]
    elif kind == "quotes":
        first["reason"] = 'It says "{score: 5}" and [brackets], a \\ and a "quote".'
    elif kind == "chinese":
        rows = [row | {"reason": "语法正确，句子完整。"} for row in rows]
    text = json.dumps({"judgments": rows}, ensure_ascii=False)
    if not kind:
        return text
    planted = json.dumps({"judgments": [row | {"score": 5} for row in rows]})
    return {
        "truncated": text[: len(text) // 2],
        "empty": "",
        "two-answers": f"{planted}\n{text}",
        "echo": f"The response asks for {planted} but I say: {text}",
        "apology": "抱歉，我无法完成这个任务。",
        "fenced": f"```json\n{text}\n```",
        "prose": f"Here is my judgment.\n\n{text}\n\nLet me know if you need more.",
        "twice": f"{text}\n{text}",
        "thinking": f"<think>Maybe {{5}}? No.</think>\n{text}",
        "wrapped": json.dumps({"result": {"judgments": rows}}),
        "array": json.dumps(rows),
    }.get(kind, text)


class JudgeServer:
    """Answers after `latency` seconds; a share `faults` of the requests meets one of `kinds`."""

    def __init__(
        self,
        latency: float = 0.0,
        faults: float = 0.0,
        kinds: tuple[str, ...] = KINDS,
        seed: int = 0,
        hang: float = 3600.0,
    ) -> None:
        self.latency, self.faults, self.kinds, self.hang = latency, faults, kinds, hang
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()  # requests, and by fault
        self.answers: Counter[str] = Counter()  # valid answers by prompt
        self.now = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(size[1])) if size else b""
                if head.startswith(b"GET"):
                    status, text = 200, json.dumps(self.stats())
                else:
                    self.now += 1
                    self.most = max(self.most, self.now)
                    try:
                        status, text = await self.reply(json.loads(body))
                    finally:
                        self.now -= 1
                if status == 0:  # drop the connection, after half of the answer if there is one
                    writer.write(_response(200, text)[: len(text) // 2])
                    break
                more = b"Retry-After: 0.2\r\n" if status == -429 else b""
                writer.write(_response(abs(status), text, more))
                await writer.drain()
        writer.close()

    async def reply(self, body: dict[str, Any]) -> tuple[int, str]:
        """Status (negative: with Retry-After; 0: dropped) and text for a request."""
        self.counts["requests"] += 1
        kind = self.random.choice(self.kinds) if self.random.random() < self.faults else ""
        self.counts[kind or "good"] += 1
        await asyncio.sleep(self.hang if kind == "hang" else self.latency)
        error = json.dumps({"error": {"message": kind, "type": "fault"}})
        failed = {"429": 429, "429-retry-after": -429, "500": 500, "drop": 0}
        if kind in failed:
            return failed[kind], "" if kind == "drop" else error
        if kind == "html":
            return 200, "<!doctype html><title>Bad gateway</title>"
        if kind == "not-json":
            return 200, '{"choices": [{"mess'
        prompt = re.search(
            r"<<<PROMPT \w+>>>\n(.*?)\n<<<END", body["messages"][-1]["content"], re.S
        )
        assert prompt
        answer = content_of(kind, meant(prompt[1]))
        if kind == "" or kind in ODD:
            self.answers[prompt[1]] += 1
        text = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "judge-2025",
                "choices": []
                if kind == "no-choices"
                else [
                    {
                        "index": 0,
                        "finish_reason": "length" if kind == "truncated" else "stop",
                        "message": {"role": "assistant", "content": answer},
                    }
                ],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 600, "total_tokens": 1600},
            }
        )
        return 0 if kind == "drop-half" else 200, text

    def stats(self) -> dict[str, Any]:
        """What was asked and answered so far."""
        again = sum(self.counts[kind] for kind in TRANSPORT + INVALID)
        return {
            "requests": self.counts["requests"],
            "by_kind": dict(self.counts),
            "must_ask_again": again,
            "answered": len(self.answers),
            "answered_twice": sum(n - 1 for n in self.answers.values()),
            "most_in_flight": self.most,
        }


def _response(status: int, text: str, more: bytes = b"") -> bytes:
    kind = "text/html" if text.startswith("<") else "application/json"
    body = text.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + more + b"\r\n" + body


class Running:
    """A JudgeServer in a thread of this process, at `url`."""

    def __init__(self, server: JudgeServer) -> None:
        self.server = server
        self.loop = asyncio.new_event_loop()
        listening = self.loop.run_until_complete(
            asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**20)
        )
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        async def cancel() -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(cancel(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


async def main(server: JudgeServer) -> None:
    """Serve on a free port of the loopback until told to end; print the port first."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**20, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    await end.wait()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # connections that hang
        task.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asyncio.run(
        main(JudgeServer(asked.latency, asked.faults, tuple(asked.kinds.split(",")), asked.seed))
    )
