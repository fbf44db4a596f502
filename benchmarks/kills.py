"""Kill and interrupt `make book STUDY=smoke` at random moments; the same command has to go on.

    python benchmarks/kills.py --kills 25 --interrupts 10

The study is started and stopped again and again, and started anew where a stop has ended it, until
it is complete; then it begins in an empty folder, until all stops are made. A stop is `kill -9` of a
process drawn from the tree, or Ctrl-C (SIGINT to the foreground group, as a terminal sends it). What
a stop should end has to be gone soon after, and the temporary folder empty when the run has ended.
At the end of each study its adapters must be those of an undisturbed run.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from hialign.engine import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
GRACE = 40.0  # seconds in which what is left of a tree has to end


def tree(pid: int) -> list[int]:
    """A process and all below it, as /proc has them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[-1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, new = [pid], [pid]
    while new:
        new = [p for p, parent in parents.items() if parent in new]
        found += new
    return [p for p in found if p in parents]


def name_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "gone"
    line = " ".join(words)
    for word, name in (
        ("ipykernel", "kernel"),
        ("snakemake", "snakemake"),
        ("hialign.run run", "job"),
        ("hialign.run book", "book"),
        ("build_book", "book build"),
        ("hialign reproduce", "hialign"),
    ):
        if word in line:
            return name
    return Path(words[0]).name


def adapters(outputs: Path) -> dict[str, str]:
    files = sorted(outputs.rglob("adapter/adapter_model.safetensors"))
    digest = {
        str(f.relative_to(outputs)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files
    }
    assert digest
    return digest


def start(outputs: Path, temporary: Path, log: Any, study: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"HIALIGN_OUTPUTS": str(outputs), "TMPDIR": str(temporary)}
    command = ["make", "-s", "book", f"STUDY={study}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def stop(run: "subprocess.Popen[bytes]", kind: str, rng: random.Random) -> tuple[str, list[int]]:
    """Stop something: what it was, and which processes have to end with it."""
    below = tree(run.pid)
    if kind == "interrupt":
        os.killpg(run.pid, signal.SIGINT)
        return "terminal", below
    # Without make, hialign goes on to its end, and the next run would name it
    chosen = rng.choice([p for p in below if name_of(p) != "make"])
    target, ending = name_of(chosen), tree(chosen)
    os.kill(chosen, signal.SIGKILL)
    return target, ending


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--interrupts", type=int, default=10)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds before a stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", default="smoke")
    parser.add_argument("--undisturbed", type=Path, help="outputs of a run without a stop")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    stops = ["kill"] * options.kills + ["interrupt"] * options.interrupts
    rng.shuffle(stops)
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    temporary = base / "tmp"
    temporary.mkdir()
    expected = adapters(options.undisturbed) if options.undisturbed else None
    rows: list[dict[str, Any]] = []
    studies = 0
    while stops or expected is None:
        outputs, code, starts = base / f"outputs-{studies}", None, 0
        while code != 0:
            log = (base / "log").open("w+", encoding="utf-8")
            began, starts = time.monotonic(), starts + 1
            run = start(outputs, temporary, log, options.study)
            while run.poll() is None:
                wait = rng.uniform(1, options.longest) if stops and expected else 1e6
                try:
                    run.wait(timeout=wait)
                except subprocess.TimeoutExpired:
                    row: dict[str, Any] = {"stop": stops.pop()}
                    row["after"] = round(time.monotonic() - began, 1)
                    stopped = time.monotonic()
                    row["of"], ending = stop(run, row["stop"], rng)
                    while any(p in tree(p) for p in ending) and time.monotonic() < stopped + GRACE:
                        time.sleep(0.1)
                    row["ended"] = round(time.monotonic() - stopped, 1)
                    row["alive"] = [name_of(p) for p in ending if p in tree(p)]
                    rows.append(row)
                    print(json.dumps(row), flush=True)
            code = run.returncode
            log.seek(0)
            text = log.read()
            # Less the cache that torch makes when it is imported
            names = (p.name for p in temporary.iterdir())
            left = sorted(name for name in names if not name.startswith("torchinductor"))
            traceback = "Traceback" in text
            print(json.dumps({"code": code, "left": left, "traceback": traceback}), flush=True)
            if rows:
                rows[-1] |= {"left": left, "traceback": traceback, "last": text[-200:].strip()}
            assert "is at it already" not in text, text[-500:]
        found = adapters(outputs)
        assert expected is None or found == expected, "other adapters than an undisturbed run's"
        expected = found
        studies += 1
        print(f"study {studies} is complete: {len(rows)} stops so far, {starts} starts", flush=True)
    result = {
        "study": options.study,
        "stops": rows,
        "studies": studies,
        "left_alive": sum(bool(r["alive"]) for r in rows),
        "left_files": sum(bool(r.get("left")) for r in rows),
        "tracebacks": sum(bool(r.get("traceback")) for r in rows),
        **environment.environment(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kills.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
