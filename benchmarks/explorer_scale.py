"""The book's Explore page with 1,000 prompts, 5 strategies, 4 models, 16 scores and reasons each.

    python benchmarks/explorer_scale.py [--prompts 1000] [--models 4] [--out FILE.json]

Makes up the records of such a study (responses of about 3,000 characters, reasons of about 90),
writes the page's files in a process of its own, opens the page from the disk in a headless Chromium
and measures: sizes; seconds and peak memory of the writer; milliseconds until the list is there and
until its texts are, of each kind of filter and sort (from the event to the next frame), of the search
of all texts; the longest task of each (PerformanceObserver) and the elements in the document.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hialign.records.files import write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
WORDS = re.findall(r"\w+", __doc__ or "")


def study(models: int) -> Any:
    from hialign.study.study import Study

    return Study(
        name="scale",
        title="Simulated, to measure the page",
        models=[{"source": f"random:m{i}", "label": f"Model {i + 1}"} for i in range(models)],
        preferences={"source": "builtin"},
    )


def simulate(models: int, prompts: int) -> None:
    """Write the records under HIALIGN_OUTPUTS; the numbers come from one seed."""
    from hialign.study.rubric import DIMENSIONS

    rng = random.Random(0)

    def text(characters: int) -> str:
        return " ".join(rng.choices(WORDS, k=characters // 5))

    asked = [text(rng.randint(60, 1500)) for _ in range(prompts)]
    for cell in study(models).cells():
        judge = cell.study.judge.name
        responses, judgments = [], []
        for i, prompt in enumerate(asked):
            tokens = min(512, int(rng.gauss(400, 200)) if i % 50 else 512)
            tokens = max(5, tokens)
            ends = "length" if tokens == 512 else "stop"
            row = {"prompt_id": f"{i:012x}", "prompt": prompt, "response": text(8 * tokens)}
            responses.append(row | {"tokens": tokens, "finish_reason": ends})
            failed = rng.random() < 0.01
            judgments.append(
                {
                    "prompt_id": f"{i:012x}",
                    "scores": {} if failed else {d: rng.randint(1, 5) for d in DIMENSIONS},
                    "reasons": {} if failed else {d: text(90) for d in DIMENSIONS},
                    "judge": judge,
                    **({"error": "no valid answer in three attempts"} if failed else {}),
                }
            )
        write_jsonl(cell.folder / "responses.jsonl", responses)
        write_jsonl(cell.folder / f"judgments-{judge}.jsonl", judgments)


def write(models: int, folder: Path) -> dict[str, Any]:
    """In a process of its own, so that its peak memory is its own."""
    sys.path.append(str(ROOT / "tests"))
    from explorer_page import assemble

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    sizes = assemble(study(models), folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "index_bytes": sizes.index,
        "total_bytes": sizes.total,
        "files": len(list(folder.glob("explore/*.js"))),
        "largest_file_bytes": max(p.stat().st_size for p in folder.glob("explore/texts-*.js")),
        "responses": sizes.responses,
        "seconds": round(time.perf_counter() - started, 2),
        "memory_before_mib": before // 1024,
        "peak_memory_mib": peak // 1024,
    }


OBSERVE = """
window.tasks = [];
new PerformanceObserver((list) => list.getEntries().forEach((e) => tasks.push(e.duration)))
  .observe({ type: "longtask", buffered: true });
window.when = {};
new MutationObserver(() => {
  const ready = (name, what) => { if (!(name in when) && what) when[name] = performance.now(); };
  ready("list_ms", document.querySelector(".hx-card"));
  ready("texts_ms", document.querySelector(".hx-card") && !document.querySelector(".hx-wait"));
}).observe(document, { childList: true, subtree: true });
"""
# From the event to the frame after it, and the longest task in that time
TIMED = """async ([selector, value, event]) => {
  tasks.length = 0;
  const element = document.querySelector(selector);
  const start = performance.now();
  if (event === "click") element.click();
  else { element.value = value; element.dispatchEvent(new Event(event)); }
  const handler = performance.now() - start;
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const frame = performance.now() - start;
  while (document.querySelector(".hx-wait")) await new Promise((done) => setTimeout(done, 5));
  const texts = performance.now() - start;
  await new Promise((done) => setTimeout(done, 300));
  const round = (x) => Math.round(10 * x) / 10;
  return { handler_ms: round(handler), frame_ms: round(frame), texts_ms: round(texts),
           longest_task_ms: Math.max(0, ...tasks) };
}"""
ACTIONS = {
    "sort by score": [".hx-field-sort select", "lowest", "change"],
    "sort by disagreement of two": [".hx-field-sort select", "pair", "change"],
    "sort by disagreement of all": [".hx-field-sort select", "all", "change"],
    "another dimension": [".hx-field-dimension select", "3", "change"],
    "filter: missing judgments": [".hx-field-filter select", "missing", "change"],
    "filter: none": [".hx-field-filter select", "all", "change"],
    "next page": [".hx-pager button:last-of-type", "", "click"],
    "a square of the heat map": [".hx-map button[data-strategy='3']", "", "click"],
    "another model": [".hx-field-model select", "1", "change"],
}


def browse(folder: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(p for name in names if (p := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.add_init_script(OBSERVE)
        page.goto(f"file://{folder}/explore.html")
        page.wait_for_function("'texts_ms' in when")
        page.wait_for_timeout(500)
        found: dict[str, Any] = {"browser": browser.version}
        found |= {k: round(v) for k, v in page.evaluate("when").items()}
        found["longest_task_at_start_ms"] = page.evaluate("Math.max(0, ...tasks)")
        found["elements"] = page.evaluate("document.querySelectorAll('*').length")
        found["actions"] = {k: page.evaluate(TIMED, v) for k, v in ACTIONS.items()}
        page.fill("input[type=search]", "milliseconds frame")
        page.wait_for_timeout(500)
        page.evaluate("tasks.length = 0")
        started = time.perf_counter()
        page.check(".hx-check input")
        page.get_by_text("All texts were searched.").wait_for(timeout=120_000)
        found["search_all_texts_seconds"] = round(time.perf_counter() - started, 2)
        page.wait_for_timeout(300)
        found["search_longest_task_ms"] = page.evaluate("Math.max(0, ...tasks)")
        found["search_found"] = page.inner_text(".hx-count")
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--out", default="")
    parser.add_argument("--write", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        print(json.dumps(write(args.models, Path(args.write))))
        return
    from hialign.engine.environment import environment

    with tempfile.TemporaryDirectory() as name:
        os.environ["HIALIGN_OUTPUTS"] = f"{name}/outputs"
        simulate(args.models, args.prompts)
        html = Path(name) / "html"
        command = [sys.executable, __file__, "--models", str(args.models), "--write", str(html)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = {"prompts": args.prompts, "models": args.models}
        found |= {"writer": json.loads(done.stdout), "page": browse(html)}
    print(json.dumps(found, indent=2))
    if args.out:
        write_json(Path(args.out), found | environment())


if __name__ == "__main__":
    main()
