"""Processes end together, and a lock is free when whoever held it was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hialign import HialignError
from hialign.records import processes

WAIT = 20.0  # seconds in which a process has to be seen to start or to end


def python(code: str, **options: object) -> "subprocess.Popen[str]":
    run = [sys.executable, "-u", "-c", code]
    return subprocess.Popen(run, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def ended(pid: int) -> bool:
    """Whether a process is gone within `WAIT`."""
    until = time.monotonic() + WAIT
    while processes._lives(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


SUPERVISOR = """
import os, sys
from pathlib import Path
from hialign.records.processes import supervised
try:
    command = [sys.executable, "-u", "-c", {child!r}]
    print("code", supervised(command, os.environ, Path({scratch!r})), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
# A child that starts one of its own, tells both numbers and sleeps
CHILD = """
import os, subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
try:
    print(os.getpid(), inner.pid, flush=True)
    {then}
except KeyboardInterrupt:
    print("kept", flush=True)
    {last}
"""


def supervisor(
    then: str, scratch: Path, last: str = "pass"
) -> "tuple[subprocess.Popen[str], list[int]]":
    child = CHILD.format(then=then, last=last)
    code = SUPERVISOR.format(child=child, scratch=str(scratch))
    process = python(code, stderr=subprocess.PIPE)
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_a_command_is_run_and_its_exit_code_given(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    assert processes.supervised(command, os.environ, tmp_path) == 3


def test_temporary_files_go_with_the_process_that_made_them(tmp_path: Path) -> None:
    host = processes.watched().partition(":")[0]
    ended = python("")
    ended.wait()
    for name in (
        f"{host}-{ended.pid}",
        f"{host}-{os.getppid()}",
        f"elsewhere-{ended.pid}",
        f"{host}-2-1",
    ):
        (tmp_path / name).mkdir()
    code = "import os, tempfile; print(tempfile.mkdtemp(), flush=True)"
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        processes.supervised([sys.executable, "-c", code], os.environ, tmp_path, log)
        log.seek(0)
        made = Path(log.read().strip())
    assert made.parent == tmp_path / f"{host}-{os.getpid()}"
    kept = {"log", f"{host}-{os.getppid()}", f"elsewhere-{ended.pid}", f"{host}-2-1"}
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_what_outlives_its_command_is_ended(tmp_path: Path) -> None:
    process, (child, inner) = supervisor("raise SystemExit(0)", tmp_path)
    out, _ = process.communicate(timeout=WAIT)
    assert out == "code 0\n"
    assert ended(child)
    assert ended(inner)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_passed_on_and_waited_for(tmp_path: Path, number: int) -> None:
    process, (child, inner) = supervisor("time.sleep(600)", tmp_path)
    process.send_signal(number)
    out, errors = process.communicate(timeout=WAIT)
    assert out == "kept\ninterrupted\n"
    assert errors == "", "a Python that is importing would answer SIGINT with a traceback"
    assert ended(child)
    assert ended(inner)


def test_what_is_started_after_an_interrupt_is_ended_too(tmp_path: Path) -> None:
    last = "subprocess.run(['sleep', '600'])"
    process, (child, _) = supervisor("time.sleep(600)", tmp_path, last)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=WAIT)
    assert out == "kept\ninterrupted\n"
    assert time.monotonic() - began < processes.PATIENCE
    assert ended(child)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells of a parent's end on Linux")
def test_a_command_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    process, (child, _) = supervisor("time.sleep(600)", tmp_path)
    process.kill()
    assert ended(child)


def test_a_job_ends_with_the_process_that_it_watches() -> None:
    watched = python("import time; time.sleep(600)")
    names = os.environ | {
        processes.WATCHED: processes.watched().replace(str(os.getpid()), str(watched.pid))
    }
    code = "from hialign.records.processes import end_with_watched as e; e(0.05); print('on', flush=True); import time; time.sleep(600)"
    job = python(code, env=names)
    assert job.stdout is not None
    assert job.stdout.readline() == "on\n"
    watched.kill()
    watched.wait()
    assert job.wait(timeout=WAIT) == -signal.SIGTERM


def test_a_job_does_not_end_with_a_process_of_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(processes.WATCHED, "elsewhere:1")
    processes.end_with_watched(0.01)
    time.sleep(0.1)


HOLDER = """
import sys, time
from pathlib import Path
from hialign.records.processes import locked
with locked(Path(sys.argv[1]), "train: a model"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_names_who_holds_it_and_is_free_once_that_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "locks" / "a.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(HialignError, match=rf"process {holder.pid} on .*: train: a model is at it"),
        processes.locked(place, "something else"),
    ):
        raise AssertionError
    assert processes.held(place.parent)[0].startswith(f"process {holder.pid} on ")
    with pytest.raises(HialignError, match=rf"process {holder.pid} .* is still at work"):
        processes.wait_for_all(place.parent, seconds=0.1)
    holder.kill()
    holder.wait()
    processes.wait_for_all(place.parent, seconds=5)
    with processes.locked(place, "something else"):
        pass
    assert processes.held(place.parent) == []


def test_threads_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.threads() == 3
    monkeypatch.setenv(processes.THREADS, "5")
    assert processes.threads() == 5
    assert processes.threads("respond") == 3
    monkeypatch.delenv(processes.THREADS)
    for nonsense in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert processes.threads() >= 1
