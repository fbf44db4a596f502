"""Judging through a Batch API, from every state that a killed process can leave."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import vouch
from judge_server import content_of, meant
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from hialign.judging.batch import judge_in_batches
from hialign.judging.cells import judge
from hialign.judging.cost import spent
from hialign.records.files import read_jsonl, write_jsonl
from hialign.records.stages import judgments_file
from hialign.study.errors import HialignError
from hialign.study.study import Study

PRICES = {"input": 1.0, "output": 10.0}  # 1,000 + 600 tokens: 0.007 USD, 0.0035 in a batch


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Provider:
    """Files and batches, and single completions."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("/v1")
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.single = 0
        self.asked: list[str] = []  # custom ids, in order
        self.say: Any = lambda key, times: ""  # what goes wrong with a request, by `content_of`
        self.times: dict[str, int] = {}
        self.expire: set[str] = set()  # custom ids that the first batch does not get to
        self.states = ["completed"]  # of a batch, one for each time it is looked at
        server.expect_request(re.compile("/v1/.*")).respond_with_handler(self.handle)

    def handle(self, request: Request) -> Response:
        path, parts = request.path, request.path.split("/")
        if path == "/v1/chat/completions":
            self.single += 1
            return reply(self.completion(json.loads(request.data), ""))
        if path == "/v1/files":
            name = f"file-{len(self.files)}"
            self.files[name] = request.files["file"].read().decode()
            return reply({"id": name, "object": "file", "purpose": request.form["purpose"]})
        if path.endswith("/content"):
            return Response(self.files[parts[3]], content_type="application/jsonl")
        if path == "/v1/batches" and request.method == "POST":
            name = f"batch-{len(self.batches)}"
            body = json.loads(request.data)
            assert body["endpoint"] == "/v1/chat/completions"
            entry = {"id": name, "object": "batch", "status": "validating", "states": 0}
            self.batches[name] = entry | {"input_file_id": body["input_file_id"]}
            return reply(self.batches[name])
        if path == "/v1/batches":
            return reply({"object": "list", "data": list(self.batches.values()), "has_more": False})
        batch = self.batches[parts[3]]
        if batch["status"] not in ("completed", "expired", "failed"):
            batch["status"] = self.states[min(batch["states"], len(self.states) - 1)]
            batch["states"] += 1
            if batch["status"] in ("completed", "expired"):
                self.work(batch)
            elif batch["status"] == "failed":
                batch["errors"] = {"data": [{"message": "line 1 is too long", "code": "bad"}]}
        return reply(batch)

    def work(self, batch: dict[str, Any]) -> None:
        """Answer what the input file asks, in another order, errors apart."""
        good, bad = [], []
        for line in reversed(self.files[batch["input_file_id"]].splitlines()):
            request = json.loads(line)
            key = request["custom_id"]
            if key in self.expire:
                self.expire.remove(key)
                bad.append(
                    {"custom_id": key, "error": {"code": "batch_expired", "message": "late"}}
                )
                continue
            self.asked.append(key)
            self.times[key] = self.times.get(key, 0) + 1
            wrong = self.say(key, self.times[key])
            if wrong == "500":
                body = {"error": {"message": "sorry"}}
                bad.append({"custom_id": key, "response": {"status_code": 500, "body": body}})
                continue
            body = self.completion(request["body"], wrong)
            good.append({"custom_id": key, "response": {"status_code": 200, "body": body}})
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[name] = f"{name}-{batch['id']}"
                # raw U+2028 in a line, as ensure_ascii=False leaves it
                lines = (json.dumps(row | {"id": "a\u2028b"}, ensure_ascii=False) for row in rows)
                self.files[batch[name]] = "\n".join(lines) + "\n"
        batch["request_counts"] = {
            "total": len(good) + len(bad),
            "completed": len(good),
            "failed": len(bad),
        }

    def completion(self, body: dict[str, Any], wrong: str) -> dict[str, Any]:
        asked = body["messages"][-1]["content"]
        prompt = re.search(r"<<<PROMPT \w+>>>\n(.*?)\n<<<END", asked, re.S)
        assert prompt
        message = {"role": "assistant", "content": content_of(wrong, meant(prompt[1]))}
        return {
            "model": "judge-2025",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 600},
        }


def reply(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), content_type="application/json")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with HTTPServer(threaded=True) as server:
        yield Provider(server)


@pytest.fixture
def study(provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two cells with five responses each, of which two are equal in both."""
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path / "outputs"))
    judge = {"model": "judge", "name": "tester", "base_url": provider.url, "prices": PRICES}
    study = Study(
        name="batched", title="t", models=["random:llama"], blocks=["base", "mid"], judge=judge
    )
    for cell in study.cells():
        rows = [
            {"prompt_id": i, "prompt": f"Item {i}", "response": "equal" if i < 2 else cell.block}
            for i in range(5)
        ]
        write_jsonl(cell.folder / "responses.jsonl", rows)
        vouch(cell, "respond")
    return study


def batched(study: Study, **options: Any) -> dict[str, int]:
    return judge_in_batches(study, poll_seconds=0, say=lambda text: None, **options)


def check(study: Study) -> list[dict[str, Any]]:
    """The cells' files, as the notebook leaves them: nothing is asked for any more."""
    rows = []
    for cell in study.cells():
        counts = judge(cell, retry_failed=False)
        assert counts["done"] == 0
        found = read_jsonl(judgments_file(cell))
        assert [row["prompt_id"] for row in found] == list(range(5))
        assert all(row["scores"] == meant(f"Item {row['prompt_id']}") for row in found)
        rows += found
    return rows


def state_of(study: Study) -> Path:
    return study.cells()[0].folder.parents[1] / "batches-tester.json"


def test_a_batch_from_end_to_end(provider: Provider, study: Study) -> None:
    provider.states = ["validating", "in_progress", "finalizing", "completed"]
    assert batched(study) == {"judged": 8, "failed": 0, "in_flight": 0}
    assert provider.single == 1  # finds out what the server takes
    assert len(provider.asked) == 7
    assert not state_of(study).exists()
    rows = check(study)
    assert provider.single == 1
    assert [row.get("shared", False) for row in rows].count(True) == 2
    assert sum("batch" in row and not row.get("shared") for row in rows) == 7
    assert spent(study) == pytest.approx(0.007 + 7 * 0.0035)
    assert batched(study)["in_flight"] == 0  # nothing to do
    assert len(provider.batches) == 1


def test_what_failed_or_expired_is_queued_again(provider: Provider, study: Study) -> None:
    bad = {"500": 1, "truncated": 2}
    provider.say = lambda key, times: (
        "500" if provider.asked[0] == key and times <= bad["500"]
        else "truncated" if provider.asked[1:2] == [key] and times <= bad["truncated"]
        else ""
    )  # fmt: skip
    batched(study, wait=False)
    waiting = list(json.loads(state_of(study).read_text())["batches"][0]["keys"])
    provider.expire = {waiting[3]}
    assert batched(study) == {"judged": 8, "failed": 0, "in_flight": 0}
    assert len(provider.batches) == 3
    assert sorted(provider.times.values()) == [1, 1, 1, 1, 1, 2, 3]
    rows = check(study)
    assert sorted(row["attempts"] for row in rows if not row.get("shared"))[-2:] == [2, 3]
    # The requests that are sent again say what was wrong.
    assert "could not be used" in provider.files[provider.batches["batch-2"]["input_file_id"]]


def test_what_never_comes_right_is_a_missing_value(provider: Provider, study: Study) -> None:
    provider.say = lambda key, times: "six" if key == provider.asked[0] else ""
    assert batched(study) == {"judged": 7, "failed": 1, "in_flight": 0}
    assert max(provider.times.values()) == 3
    failed = [judge(cell, retry_failed=False)["failed"] for cell in study.cells()]
    assert sum(failed) == 1
    assert provider.single == 1
    provider.say = lambda key, times: ""  # another job asks again, for that one alone
    assert batched(study)["judged"] == 8
    assert (len(provider.batches), provider.single) == (3, 2)  # it was the one that finds out
    check(study)
    assert spent(study) == pytest.approx(2 * 0.007 + (6 + 3) * 0.0035)


@pytest.mark.parametrize(
    "at", ["probe", "file", "create", "created", "wait", "fetched", "kept", "end"]
)
def test_resumes_from_any_state(
    provider: Provider, study: Study, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Killed at `at`, started again: every judgment once, and no request twice."""
    from hialign.judging import batch, ledger

    provider.states = ["in_progress", "completed"]
    save, add, count = batch._Job.save, ledger.Ledger.add, {"save": 0, "add": 0}

    def saved(job: Any) -> None:
        count["save"] += 1
        places = {"probe": 1, "create": 2, "created": 3, "end": 4}  # which time it is written
        if at == "created" and count["save"] == 3:
            raise Killed  # submitted, but its number not written down
        save(job)
        if places.get(at) == count["save"]:
            raise Killed

    def added(self: Any, record: dict[str, Any]) -> None:
        count["add"] += 1
        if at == "kept" and count["add"] == 4:
            raise Killed
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(batch._Job, "save", saved)
        patch.setattr(ledger.Ledger, "add", added)
        if at == "file":  # uploaded, and not written down
            patch.setattr(batch._Job, "_files", _killed_after(batch._Job._files))
        if at == "wait":
            patch.setattr(batch.time, "sleep", _kill)
        if at == "fetched":
            patch.setattr(batch._Job, "_take", _kill)
        with pytest.raises(Killed):
            batched(study)
    assert batched(study) == {"judged": 8, "failed": 0, "in_flight": 0}
    assert sorted(provider.times.values()) == [1] * 7
    assert provider.single == 1
    assert len(provider.batches) == 1
    check(study)


def _kill(*_: Any) -> None:
    raise Killed


def _killed_after(files: Any) -> Any:
    def killed(*args: Any) -> Any:
        for _ in files(*args):
            raise Killed
        yield

    return killed


def test_without_waiting(provider: Provider, study: Study) -> None:
    provider.states = ["in_progress", "in_progress", "completed"]
    assert batched(study, wait=False) == {"judged": 1, "failed": 0, "in_flight": 7}
    assert batched(study, wait=False)["in_flight"] == 7
    assert batched(study, wait=False)["in_flight"] == 7
    assert batched(study, wait=False) == {"judged": 8, "failed": 0, "in_flight": 0}
    assert len(provider.batches) == 1


def test_a_batch_for_all_is_fetched_for_all(provider: Provider, study: Study) -> None:
    provider.states = ["in_progress", "completed"]
    assert batched(study, wait=False)["in_flight"] == 7
    assert batched(study, cells=study.cells()[:1])["judged"] == 5
    assert batched(study)["judged"] == 8
    assert sorted(provider.times.values()) == [1] * 7
    check(study)


def test_a_refused_batch_is_told_and_can_be_submitted_anew(
    provider: Provider, study: Study
) -> None:
    provider.states = ["failed"]
    with pytest.raises(HialignError, match="was refused: line 1 is too long"):
        batched(study)
    provider.states = ["completed"]
    assert batched(study)["judged"] == 8
    check(study)


def test_max_cost_bounds_a_batch(provider: Provider, study: Study) -> None:
    """Only what can be paid for at its worst is let out: here three of seven, then no more."""
    with pytest.raises(HialignError, match="stops before max_cost"):
        batched(with_judge(study, max_cost=0.018, max_tokens=600))
    assert 2 <= len(provider.asked) <= 4
    assert spent(study) <= 0.018
    assert batched(with_judge(study, max_cost=1.0, max_tokens=600))["judged"] == 8
    assert sorted(provider.times.values()) == [1] * 7


def with_judge(study: Study, **changes: Any) -> Study:
    assert study.judge
    return study.model_copy(update={"judge": study.judge.model_copy(update=changes)})


def test_many_requests_are_split(
    provider: Provider, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hialign.judging import batch

    monkeypatch.setattr(batch, "MOST_REQUESTS", 3)
    assert batched(study)["judged"] == 8
    assert [len(text.splitlines()) for name, text in provider.files.items() if name[5:].isdigit()] == [3, 3, 1]  # fmt: skip
    check(study)


def test_a_local_judge_has_no_batches(study: Study) -> None:
    with pytest.raises(HialignError, match="local judge"):
        batched(with_judge(study, backend="local"))
