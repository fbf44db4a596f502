"""Kills and Ctrl-C at any moment: nothing is left behind, and the same command goes on.

`benchmarks/kills.py` does this with `make book STUDY=smoke`, many times over.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hialign.records import files, processes
from hialign.study import paths
from hialign.study.study import load_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the tree of processes is read from /proc"),
]
LONGEST = 25.0  # seconds before a stop, of about 60 that the study takes
GRACE = 40.0  # seconds in which what is left of a tree has to end


def tree(pid: int) -> list[int]:
    """A process and all below it that have not ended."""
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    return [process.pid for process in family if processes._lives(process.pid)]


def left_in(folder: Path) -> list[str]:
    """What is left of temporary files, less the cache that torch makes when it is imported."""
    return [p.name for p in folder.iterdir() if not p.name.startswith("torchinductor")]


class Run:
    """`hialign reproduce` of a study, as a shell starts it."""

    def __init__(self, study: Path, temporary: Path, with_book: bool = False) -> None:
        self.log = study.with_suffix(".log").open("w+", encoding="utf-8")
        command = [sys.executable, "-m", "hialign.run", "reproduce", str(study), "--cores", "2"]
        command += [] if with_book else ["--no-book"]
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=self.log,
            env=os.environ | {"TMPDIR": str(temporary)},
            start_new_session=True,
        )

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=600)
        self.log.seek(0)
        return code, self.log.read()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study that was run without a stop, and its outputs."""
    from helpers import write_study

    place = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIALIGN_OUTPUTS", str(place / "outputs"))
        study = write_study(place, blocks=["base", "mid"], training={"save_steps": 1})
        (place / "tmp").mkdir()
        code, text = Run(study, place / "tmp").end()
        assert code == 0, text
        yield place


def adapters(outputs: Path) -> dict[str, str]:
    found = sorted(outputs.rglob("adapter_model.safetensors"))
    assert found
    return {str(p.relative_to(outputs)): files.sha256_of(p) for p in found}


@pytest.mark.parametrize("seed", [0, 1])  # benchmarks/kills.py draws many more
@pytest.mark.parametrize("stop", ["kill", "interrupt"])
def test_the_same_command_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str, seed: int
) -> None:
    rng = random.Random(f"{stop} {seed}")
    outputs, temporary = tmp_path / "outputs", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(outputs))
    study = undisturbed / "tiny.yml"
    run = Run(study, temporary)
    time.sleep(rng.uniform(1, LONGEST))
    below = tree(run.process.pid)
    if stop == "interrupt":
        os.killpg(run.process.pid, signal.SIGINT)
    elif below:
        os.kill(rng.choice(below), signal.SIGKILL)
    code, text = run.end()
    until = time.monotonic() + GRACE
    while (alive := [p for p in below if p in tree(p)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive == []
    assert left_in(temporary) == []
    assert "Traceback" not in text, text
    if stop == "interrupt" and code:
        assert code == 130
        assert f"`hialign reproduce {study} --cores 2 --no-book` goes on from here" in text
    code, text = Run(study, temporary).end()
    assert code == 0, text
    assert adapters(outputs) == adapters(undisturbed / "outputs")
    assert left_in(temporary) == []


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "print('importing', flush=True)\nimport time; time.sleep(99)"
    )
    place = f"{tmp_path}{os.pathsep}{paths.package().parent}"
    process = subprocess.Popen(
        [sys.executable, "-m", "hialign.run", "reproduce", "smoke"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": place},
        # a shell's background job ignores it, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=GRACE)
    assert process.returncode == 130
    assert text.strip().splitlines() == [
        "Interrupted. What is done is kept: `hialign reproduce smoke` goes on from here."
    ]


def test_a_book_that_is_killed_leaves_no_process_and_no_file(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Sphinx runs, the one process that a build starts."""
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(undisturbed / "outputs"))
    command = [sys.executable, "-m", "hialign.run", "book", str(undisturbed / "tiny.yml")]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, **silent)
    until = time.monotonic() + 120
    while "jupyter_book" not in _commands(below := tree(run.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(below) > 1
    run.kill()
    run.wait()
    until = time.monotonic() + GRACE
    while (alive := [p for p in below if p in tree(p)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive == []
    assert left_in(tmp_path) == []


def _commands(pids: list[int]) -> str:
    """The command lines of some processes, of those that are still there."""
    found = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    return "\n".join(p.read_text(errors="replace") for p in found if p.is_file())


def test_a_run_beside_another_is_refused_and_named(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(undisturbed / "outputs"))
    study = load_study(undisturbed / "tiny.yml")
    lock = paths.study_dir(study.name) / ".reproduce.lock"
    with processes.locked(lock, "hialign reproduce tiny"):
        code, text = Run(undisturbed / "tiny.yml", undisturbed / "tmp").end()
    assert code == 1
    assert f"process {os.getpid()} on" in text
    assert "wait for its end, or stop it" in text
    code, text = Run(undisturbed / "tiny.yml", undisturbed / "tmp").end()
    assert (code, "Nothing to be done." in text) == (0, True)


def test_a_study_and_a_stage_by_hand_have_the_same_threads(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_study: Callable[..., Path],
) -> None:
    """So that their adapters are equal to the last bit; OMP_NUM_THREADS is 1 in these tests."""
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path / "outputs"))
    command = [sys.executable, "-m", "hialign.run", "run", "train", "-p", "block", "mid"]
    command += ["-p", "study", str(undisturbed / "tiny.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert adapters(tmp_path / "outputs") == adapters(undisturbed / "outputs")
    by_hand, by_study = (
        json.loads((place / "tiny/random-llama/mid/manifest.json").read_text(encoding="utf-8"))
        for place in (tmp_path / "outputs", undisturbed / "outputs")
    )
    assert by_hand["cpu_threads"] == by_study["cpu_threads"]
