"""A study's judgments through a provider's Batch API: half the price, within a day.

Files of requests are written, submitted, polled and fetched. Requests that failed or expired are
queued again. Each step is first written to `batches-<judge>.json` of the study. So the same command
continues from any state after a kill, and nothing is submitted, or paid for, twice.
"""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import openai

from hialign.judging.api import TRANSPORT_RETRIES, OpenAIJudge, run
from hialign.judging.cells import items_of, one_at_a_time
from hialign.judging.cost import spent
from hialign.judging.items import paid
from hialign.judging.ledger import Ledger, key_of
from hialign.judging.limits import Budget
from hialign.judging.request import Answers, Result
from hialign.preferences.llmbar import Item
from hialign.records.files import read_json, write_json
from hialign.records.stages import judge_of, judgments_file
from hialign.records.status import state
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.rubric import load_rubric
from hialign.study.study import Cell, Study

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # in one batch. OpenAI's limits are the smallest of all providers'.
MOST_BYTES = 190_000_000  # of one file
ENDED = ("completed", "expired", "cancelled", "failed")
NOT_ITS_FAULT = ("batch_expired", "batch_cancelled")  # a request that was never tried


def judge_in_batches(
    study: Study,
    cells: Sequence[Cell] | None = None,
    *,
    wait: bool = True,
    poll_seconds: float = 60.0,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Judge every response of `cells` (default: all of `study`) that has no valid judgment.

    Each judgment is added to its cell's ledger.

    With `wait` False it returns when all possible requests are submitted, and the same call continues
    later. Returns how many are judged, failed and in flight. Raises HialignError, with everything kept,
    for errors that stop a run of single calls too. A batch cannot be stopped half-way, so only as many
    requests are submitted as `max_cost` can pay for at their highest cost.
    """
    if judge_of(study).backend != "openai":
        raise HialignError(
            f"study {study.name} has a local judge: --batch is for one behind an API"
        )
    with one_at_a_time(study):
        job = _Job(study, cells or study.cells(), say)
        while True:
            job.collect()
            job.submit()
            flying = sum(len(batch["keys"]) for batch in job.state["batches"])
            if not flying or not wait:
                break
            time.sleep(poll_seconds)
        judged = len(job.done & set(job.wanted))
        counts = {"judged": judged, "failed": len(job.state["failed"])}
        if not flying:
            job.file.unlink(missing_ok=True)
    return counts | {"in_flight": flying}


class _Batch(TypedDict):
    """A batch in flight."""

    input_file_id: str
    batch_id: str | None  # None until it is known to be submitted
    keys: list[str]
    worst: float  # its highest cost in USD


class _Unfinished(TypedDict):
    """The attempts so far at a judgment that has to be asked for again."""

    result: Result
    problem: str


class _State(TypedDict):
    """The content of `batches-<judge>.json`."""

    batches: list[_Batch]
    open: dict[str, _Unfinished]  # by key
    failed: list[str]  # keys that are given up
    dialect: dict[str, Any] | None  # how the server is asked, once that is known


class _Job:
    """The data of one call of `judge_in_batches`. `state` is what is on disk."""

    def __init__(self, study: Study, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
        self.study = study
        self.settings = judge_of(study)
        self.say = say
        self.rubric = load_rubric(self.settings.rubric)
        self.judge = OpenAIJudge(self.settings, self.rubric, spent(study))
        self.file = paths.judge_batches(study.name, self.settings.name)
        self.state = _State(batches=[], open={}, failed=[], dialect=None)
        if self.file.is_file():
            self.state = cast(_State, read_json(self.file))
        if dialect := self.state["dialect"]:
            self.judge.dialect.__dict__.update(dialect)
        self.owners: dict[str, tuple[Cell, Item]] = {}  # by key. Equal texts are judged once.
        self.done: set[str] = set()
        self.failures: dict[str, Mapping[str, Any]] = {}  # of earlier runs
        self.wanted: list[str] = []  # keys of `cells`. Batches may hold others too.
        for cell in study.cells():
            if cell not in cells and not state(cell, "respond").trusted:
                continue
            ledger = Ledger(judgments_file(cell))
            self.done |= ledger.judged()
            self.failures |= {r["key"]: r for r in ledger.all() if not r["scores"]}
            for item in items_of(cell):
                key = key_of(self.settings, self.rubric.sha256, item)
                self.owners.setdefault(key, (cell, item))
                if cell in cells:
                    self.wanted.append(key)

    def save(self) -> None:
        """Write the state before the next step."""
        write_json(self.file, self.state)

    def client(self) -> openai.OpenAI:
        """The client for files and batches."""

        return openai.OpenAI(
            api_key=self.judge.key or "none",
            base_url=self.settings.base_url,
            max_retries=TRANSPORT_RETRIES,
            timeout=self.settings.timeout,
            http_client=openai.DefaultHttpxClient(trust_env=not self.judge.loopback),
        )

    # --- fetching --------------------------------------------------------------------------------

    def collect(self) -> None:
        """Take in the batches that have ended, and leave the others in the state."""
        if not self.state["batches"]:
            return
        with self._told(), self.client() as client:
            for entry in list(self.state["batches"]):
                batch_id = entry["batch_id"] or self._adopt(client, entry)
                if batch_id is None:
                    self.state["batches"].remove(entry)  # it was never submitted
                    self.save()
                    continue
                batch = client.batches.retrieve(batch_id)
                counts = getattr(batch, "request_counts", None)
                done = f", {counts.completed} of {counts.total}" if counts else ""
                self.say(f"batch {batch.id}: {batch.status}{done}")
                if batch.status not in ENDED:
                    continue
                lines = [
                    line
                    for file in (batch.output_file_id, batch.error_file_id)
                    # splitlines() would also split at U+2028, which JSON may hold
                    for line in (client.files.content(file).text.split("\n") if file else ())
                    if line.strip()
                ]
                if not lines and batch.status == "failed":
                    self.state["batches"].remove(entry)
                    self.save()
                    said = "; ".join(
                        e.message or "" for e in getattr(batch.errors, "data", None) or []
                    )
                    raise HialignError(
                        f"the batch {batch.id} was refused: {self.judge.clean(said)[:300]}. All "
                        "judgments so far are kept: run the same command again to submit the rest"
                    )
                self._take(entry, lines)
                self.state["batches"].remove(entry)
                self.save()

    def _adopt(self, client: openai.OpenAI, entry: _Batch) -> str | None:
        """The id of `entry`'s batch if the process was killed between submitting and saving it."""
        for batch in client.batches.list():
            if batch.input_file_id == entry["input_file_id"]:
                entry["batch_id"] = batch.id
                self.save()
                return batch.id
        return None

    def _take(self, entry: _Batch, lines: list[str]) -> None:
        """Put the answers in `lines` into the ledgers, and unusable ones into the state."""
        fresh: dict[str, dict[str, Any]] = {}
        for text in lines:
            line = json.loads(text)
            key = line["custom_id"]
            error, response = line.get("error") or {}, line.get("response") or {}
            if key not in self.owners or key in self.done or error.get("code") in NOT_ITS_FAULT:
                continue
            answers = self._answers(key)
            body = response.get("body")
            if response.get("status_code") == 200:
                answers.read(body, self.judge.clean)
            else:
                reason = body.get("error") if isinstance(body, dict) else None
                said = (reason or error or {}).get("message") or response.get("status_code")
                answers.fail(f"the request failed: {self.judge.clean(str(said))[:300]}")
            result = answers.result
            if result["scores"] or not answers.open:
                fresh[key] = result | {"batch": entry["batch_id"]}
            else:
                self.state["open"][key] = {"result": result, "problem": answers.problem}
        self._keep(fresh, batch=True)

    def _answers(self, key: str) -> Answers:
        """The attempts so far at the judgment `key`."""
        answers = Answers(self.settings, self.rubric, self.owners[key][1], self.judge.dialect)
        if unfinished := self.state["open"].get(key):
            answers.result = copy.deepcopy(unfinished["result"])  # the state must not change
            answers.problem = unfinished["problem"]
        return answers

    def _keep(self, fresh: Mapping[str, dict[str, Any]], batch: bool) -> None:
        """Add results to their cells' ledgers."""
        by_cell: dict[Path, list[dict[str, Any]]] = {}
        for key, result in fresh.items():
            cell, item = self.owners[key]
            common = {"judge": self.settings.name, "rubric_sha256": self.rubric.sha256, "key": key}
            record = {"prompt_id": item["prompt_id"], **result, **common}
            record = paid(record, self.settings, self.failures.get(key, {}), batch)
            by_cell.setdefault(judgments_file(cell), []).append(record)
            self.state["open"].pop(key, None)
            if result["scores"]:
                self.done.add(key)
            elif key not in self.state["failed"]:
                self.state["failed"].append(key)
        for path, rows in by_cell.items():
            with Ledger(path) as ledger:
                for record in rows:
                    ledger.add(record)

    # --- submitting ------------------------------------------------------------------------------

    def submit(self) -> None:
        """Submit what is neither judged, nor given up, nor in flight."""
        flying = {key for batch in self.state["batches"] for key in batch["keys"]}
        settled = self.done | flying | set(self.state["failed"])
        todo = [key for key in dict.fromkeys(self.wanted) if key not in settled]
        if not todo:
            return
        if not self.judge.dialect.settled:
            # One single call finds out whether key and model are right and what the server supports
            run(self._probe(todo.pop(0)))
            self.state["dialect"] = vars(self.judge.dialect)
            self.save()
            if not todo:
                return
        with self._told(), self.client() as client, tempfile.TemporaryDirectory() as scratch:
            for path, keys, worst in self._files(todo, Path(scratch)):
                with path.open("rb") as stream:
                    uploaded = client.files.create(file=stream, purpose="batch")
                entry = _Batch(input_file_id=uploaded.id, batch_id=None, keys=keys, worst=worst)
                self.state["batches"].append(entry)
                self.save()
                batch = client.batches.create(
                    input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h"
                )
                entry["batch_id"] = batch.id
                self.save()
                self.say(f"batch {batch.id}: {len(keys)} requests submitted")

    async def _probe(self, key: str) -> None:
        self.judge.begin()
        async with self.judge.client() as client:
            result = await self.judge.ask(client, self.owners[key][1])
        self._keep({key: result}, batch=False)

    def _files(self, todo: list[str], folder: Path) -> Iterator[tuple[Path, list[str], float]]:
        """Files of requests, each within the limits, with their keys and their highest cost in USD.

        There are only as many as can be paid for at their highest cost.
        """
        budget = Budget(self.settings, spent(self.study))
        left = (self.settings.max_cost or float("inf")) - budget.spent
        left -= sum(batch["worst"] for batch in self.state["batches"])
        rows: list[str] = []
        keys: list[str] = []
        size, total = 0, 0.0
        for number, key in enumerate(todo):
            body = self._answers(key).body()
            worst = budget.worst(sum(len(m["content"].encode()) for m in body["messages"]), True)
            if worst > left:
                if not keys and not self.state["batches"]:
                    raise budget.passed(worst)
                break
            left -= worst
            total += worst
            request = {"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}
            rows.append(json.dumps(request, ensure_ascii=False))
            keys.append(key)
            size += len(rows[-1].encode()) + 1
            if len(keys) == MOST_REQUESTS or size > MOST_BYTES:
                yield _written(folder / f"requests-{number}.jsonl", rows), keys, total
                rows, keys, size, total = [], [], 0, 0.0
        if keys:
            yield _written(folder / "requests.jsonl", rows), keys, total

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn the client's errors into a HialignError that says what to do."""
        try:
            yield
        except openai.APIError as error:
            self.judge.stop_if_hopeless(error)
            raise self.judge.stop(
                f"refused a request of the Batch API: {self.judge.said(error)}"
            ) from None


def _written(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
