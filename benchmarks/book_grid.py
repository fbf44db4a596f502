"""The book of a full paper grid: 20 cells, 1,000 prompts, 16 scores and reasons each; time and memory.

    python benchmarks/book_grid.py [--prompts 1000] [--out benchmarks/results/book_grid-DEVICE.json]

The records are random numbers (tests/simulated.py) in the shape of studies/paper.yml, with an
executed notebook for each stage of each cell. Memory is the most that this process and all that it
starts hold at once (resident; what processes share counts for each of them). Processor time is that
of the same processes, which a busy machine prolongs less than the time on the clock.
"""

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil

from hialign.book import build as book
from hialign.engine import environment
from hialign.records import provenance
from hialign.records.files import write_json
from hialign.study import paths
from hialign.study.study import STAGES, Study, load_study

TESTS = Path(__file__).resolve().parents[1] / "tests"
LIMITS = {"seconds": 180, "bytes": 2 * 2**30}  # what the book is meant to keep to


def main() -> None:
    """Simulate, build, and print (or write) what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from simulated import simulate, simulate_notebooks

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HIALIGN_OUTPUTS"] = folder
        study = load_study("paper")
        simulate(study, options.prompts)
        simulate_notebooks(study, _executed(Path(folder)))
        used = _measured(study)
        html = paths.html_dir(study.name)
        used["megabytes"] = sum(p.stat().st_size for p in html.rglob("*") if p.is_file()) / 1e6
        used["pages"] = len(list(html.rglob("*.html")))
    result = {"cells": len(study.cells()), "prompts": options.prompts, **used}
    result |= {"limits": LIMITS, **environment.environment(), "commit": provenance.commit()}
    shown = ("seconds", "processor_seconds", "peak_bytes", "megabytes", "pages")
    print({name: result[name] for name in shown})
    if options.out:
        write_json(options.out, result)


def _measured(study: Study) -> dict[str, float]:
    """Seconds of a build, and the most memory (bytes) of its processes together."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        this = psutil.Process()
        while not done.wait(0.2):
            held = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            peak = max(peak, held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, worked = time.perf_counter(), _processor_seconds()
    try:
        book.build(study)
    finally:
        seconds = time.perf_counter() - before
        done.set()
        watcher.join()
    worked = _processor_seconds() - worked
    return {"seconds": seconds, "processor_seconds": worked, "peak_bytes": peak}


def _processor_seconds() -> float:
    """What this process and all that it has waited for have computed so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _executed(folder: Path) -> Path:
    """A folder with one notebook a stage, as papermill would leave it: a table and a picture."""
    place = folder / "executed"
    place.mkdir()
    for stage in STAGES:
        template = nbformat.read(paths.notebooks() / f"{stage}.ipynb", as_version=4)
        for cell in template.cells:
            if cell.cell_type == "code":
                cell.execution_count = 1
                text = nbformat.v4.new_output("stream", text="a line of a log\n" * 20)
                cell.outputs = [text]
        nbformat.write(template, place / f"{stage}-x.ipynb")
    return place


if __name__ == "__main__":
    main()
