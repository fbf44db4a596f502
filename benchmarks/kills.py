"""Kill and interrupt `make book STUDY=smoke` at random moments; the same command has to go on.

    python benchmarks/kills.py --kills 25 --interrupts 10

The study is started, stopped after some seconds, and started again, until it is complete; then it
begins anew in an empty folder, until all stops are made. A stop is `kill -9` of a process drawn from
the tree (or of all its top ones), or Ctrl-C (SIGINT to the foreground group, as a terminal sends
it). After each stop nothing of the tree may be alive or left in the temporary folder. At the end of
each study its adapters must be those of an undisturbed run.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hialign import records

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
        ("hialign.cli run", "job"),
        ("hialign.cli book", "book"),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--interrupts", type=int, default=10)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds before a stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", default="smoke")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    stops = ["kill"] * options.kills + ["interrupt"] * options.interrupts
    rng.shuffle(stops)
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    temporary = base / "tmp"
    temporary.mkdir()
    rows, studies, expected = [], 0, None
    while expected is None or stops:
        outputs = base / f"outputs-{studies}"
        environment = os.environ | {"HIALIGN_OUTPUTS": str(outputs), "TMPDIR": str(temporary)}
        command = ["make", "-s", "book", f"STUDY={options.study}"]
        while True:
            log = (base / "log").open("w+")
            started = time.monotonic()
            run = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            wait = rng.uniform(1, options.longest) if expected is not None and stops else 1e6
            try:
                code = run.wait(timeout=wait)
                log.seek(0)
                text = log.read()
                assert code == 0, text[-3000:]
                print(f"study {studies} is complete after {len(rows)} stops", flush=True)
                break
            except subprocess.TimeoutExpired:
                pass
            kind, below = stops.pop(), tree(run.pid)
            if kind == "interrupt":
                target = "terminal"
                os.killpg(run.pid, signal.SIGINT)
            else:
                chosen = rng.choice(below)
                target = name_of(chosen)
                try:
                    os.kill(chosen, signal.SIGKILL)
                except ProcessLookupError:
                    target = "gone"
            stopped = time.monotonic()
            try:
                code = run.wait(timeout=900)  # where a job was killed, the others run to their end
            except subprocess.TimeoutExpired:
                print("it does not end", flush=True)
                raise
            ended = time.monotonic()
            while (
                alive := [p for p in below if p in tree(p)]
            ) and time.monotonic() < ended + GRACE:
                time.sleep(0.1)
            # Less the cache that torch makes when it is imported
            names = (p.name for p in temporary.iterdir())
            left = sorted(name for name in names if not name.startswith("torchinductor"))
            log.seek(0)
            text = log.read()
            row = {
                "stop": kind,
                "of": target,
                "after": round(stopped - started, 1),
                "code": code,
                "ended": round(ended - stopped, 1),
                "all_ended": round(time.monotonic() - ended, 1),
                "alive": [name_of(p) for p in alive],
                "temporary": left,
                "traceback": "Traceback" in text,
                "last": text.strip().splitlines()[-1][:200] if text.strip() else "",
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        found = adapters(outputs)
        expected = expected or found
        assert found == expected, "the adapters are others than an undisturbed run's"
        studies += 1
    result = {
        "study": options.study,
        "stops": rows,
        "studies": studies,
        "left_alive": sum(bool(r["alive"]) for r in rows),
        "left_files": sum(bool(r["temporary"]) for r in rows),
        "tracebacks": sum(r["traceback"] for r in rows),
        **records.environment(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kills.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
