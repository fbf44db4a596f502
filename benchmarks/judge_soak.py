"""Twenty thousand judgments through faults and three kill -9, against a server on this machine.

    python benchmarks/judge_soak.py [--calls 20000] [--out FILE.json]

The server (`tests/judge_server.py`) answers after 300 ms; 5% of its answers are faults of all kinds:
429, 500, hangs, dropped connections, web pages, broken, incomplete, odd and planted answers. The
client is killed at a quarter, a half and three quarters of the way, and started again. Checked: each
judgment is there once and is what the server meant, and the server got no more requests than needed,
plus the faults that must be asked again, plus those in flight at the kills. Measured: wall time over
the ideal (calls x latency / concurrency), processor time a call, peak memory.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from hialign.records.files import read_jsonl, write_json

TESTS = Path(__file__).resolve().parents[1] / "tests"
LATENCY, FAULTS, CONCURRENCY = 0.3, 0.05, 64  # seconds, share of requests, requests in flight
TIMEOUT = 2.0  # seconds, after which a hanging request is sent again


def items(n: int) -> list[dict[str, Any]]:
    """As long as real ones are: about 100 words of prompt and 200 of response."""
    words = "a plain answer goes on for some time and then it ends with a question "
    return [
        {"prompt_id": i, "prompt": f"Item {i}. " + 7 * words, "response": f"{i}: " + 14 * words}
        for i in range(n)
    ]


def client(port: int, folder: Path, n: int) -> None:
    """The process that is killed."""
    from hialign.judging.items import judge
    from hialign.study.settings import JudgeSettings

    settings = JudgeSettings(
        model="soak",
        base_url=f"http://127.0.0.1:{port}/v1",
        concurrency=CONCURRENCY,
        timeout=TIMEOUT,
        attempts=5,
        prices={"input": 1.2, "output": 6.0},
    )
    if n:
        print(json.dumps(judge(items(n), settings, folder / "judgments-soak.jsonl")))


def stats(port: int) -> dict[str, Any]:
    """What the server has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
        return dict(json.load(answer))


def start(port: int, folder: Path, n: int) -> subprocess.Popen[str]:
    """A client in a process of its own."""
    command = [sys.executable, __file__, "--client", str(port), str(folder), str(n)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def end(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for it: what it took of the processor and of memory, however it ended."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {"cpu": usage.ru_utime + usage.ru_stime, "memory_bytes": usage.ru_maxrss * 1024}


def soak(n: int, kills: int) -> dict[str, Any]:
    """One whole run; AssertionError where a promise is not kept."""
    sys.path.insert(0, str(TESTS))
    from judge_server import meant

    command = [sys.executable, str(TESTS / "judge_server.py"), "--latency", str(LATENCY)]
    command += ["--faults", str(FAULTS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    port = int(server.stdout.readline())
    found: dict[str, Any] = {"calls": n, "kills": kills, "restart_seconds": []}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            idle = end(start(port, folder, 0))  # what starting alone takes
            began = time.monotonic()
            parts = []
            for number in range(1, kills + 2):
                started, before = time.monotonic(), stats(port)["requests"]
                process = start(port, folder, n)
                while stats(port)["requests"] == before:
                    time.sleep(0.02)
                found["restart_seconds"].append(round(time.monotonic() - started, 2))
                if number <= kills:
                    while stats(port)["answered"] < n * number / (kills + 1):
                        time.sleep(0.5)
                    process.send_signal(signal.SIGKILL)
                parts.append(end(process))
            wall = time.monotonic() - began
            assert process.returncode == 0, process.returncode
            counted = stats(port)
            rows = read_jsonl(folder / "judgments-soak.jsonl")
            assert process.stdout
            summary = json.loads(process.stdout.read())
            assert not list(folder.glob("*.partial.jsonl"))
    finally:
        server.terminate()
    asked = items(n)
    assert [row["prompt_id"] for row in rows] == list(range(n)), "not each judgment once"
    wrong = [
        r["prompt_id"]
        for r, i in zip(rows, asked, strict=True)
        if r["scores"] != meant(i["prompt"])
    ]
    assert not wrong, f"{len(wrong)} judgments are not what the server meant: {wrong[:5]}"
    most = n + counted["must_ask_again"] + kills * CONCURRENCY
    assert n <= counted["requests"] <= most, (n, counted["requests"], most)
    cpu = sum(part["cpu"] for part in parts) - len(parts) * idle["cpu"]
    ideal = n * LATENCY / CONCURRENCY
    return found | {
        "requests": counted["requests"],
        "requests_at_most": most,
        "by_kind": counted["by_kind"],
        "most_in_flight": counted["most_in_flight"],
        "reused_by_the_last": summary["reused"],
        "failed": summary["failed"],
        "wall_seconds": round(wall, 1),
        "ideal_seconds": round(ideal, 1),
        "wall_over_ideal": round(wall / ideal, 3),
        "wall_over_ideal_without_starts": round((wall - sum(found["restart_seconds"])) / ideal, 3),
        "cpu_ms_per_call": round(1e3 * cpu / counted["requests"], 2),
        "peak_memory_bytes": max(part["memory_bytes"] for part in parts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--out", default="")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        port, folder, n = args.client
        client(int(port), Path(folder), int(n))
        return
    from hialign.engine.environment import environment

    found = soak(args.calls, args.kills)
    print(json.dumps(found, indent=2))
    if args.out:
        settings = {"latency": LATENCY, "faults": FAULTS, "concurrency": CONCURRENCY}
        write_json(Path(args.out), {**settings, **found, **environment()})


if __name__ == "__main__":
    main()
