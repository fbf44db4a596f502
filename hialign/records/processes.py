"""Processes that end together, and locks that no kill leaves behind.

A study is a tree of processes: `hialign reproduce`, Snakemake, a shell, `hialign run`, a kernel.
Ctrl-C is passed on to all of them and waited for. When one of them is killed, those below it end by
themselves. Locks are held on open files (flock), so that the system lets them go with a process.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from hialign.study import paths
from hialign.study.errors import HialignError

WATCHED = "HIALIGN_PARENT"  # `host:pid` of the process without which a job is not wanted
THREADS = "HIALIGN_THREADS"  # of training, as `hialign reproduce` was started with
PATIENCE = 10.0  # seconds in which processes end after a signal, before they are sent the next
PR_SET_PDEATHSIG = 1


def supervised(
    command: Sequence[str],
    environment: Mapping[str, str],
    scratch: Path,
    output: IO[str] | None = None,
) -> int:
    """Run a command in a process group of its own; its exit code. `output` takes what it prints.

    Ctrl-C (or SIGTERM) is passed on to the whole group and waited for; then KeyboardInterrupt is
    raised. Whatever is left of the group when the command has ended is ended, too. If this process
    is killed, the command is sent SIGTERM (on Linux). Temporary files lie in a folder of their own
    below `scratch`, which is deleted afterwards; that of a process that was killed, the next time.
    """
    with _scratch(scratch) as place:
        # what torch compiles is kept, wherever temporary files lie
        kept = {"TORCHINDUCTOR_CACHE_DIR": str(paths.cache() / "torchinductor")}
        return _supervised(command, {**kept, **environment, "TMPDIR": str(place)}, output)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for the temporary files of this process, below `folder`."""
    mine = f"{socket.gethostname()}-"
    for old in folder.glob(f"{mine}*"):
        pid = old.name.removeprefix(mine)  # of another machine if it is no number
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    place = folder / f"{mine}{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HialignError(f"cannot write {place}: {error.strerror}") from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _supervised(
    command: Sequence[str], environment: Mapping[str, str], output: IO[str] | None
) -> int:
    asked: list[float] = []
    child = subprocess.Popen(
        command,
        env=dict(environment),
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )

    def pass_on(number: int, _: object) -> None:
        now = time.monotonic()
        if not asked:
            _signal_group(child.pid, signal.SIGINT)
        elif now - asked[-1] > 1:  # make passes on the Ctrl-C that the terminal has sent already
            _signal_group(child.pid, signal.SIGTERM)
        asked.append(now)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may say what signals do
        before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.2)
                break
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=PATIENCE)
                break
            _signal_group(child.pid, number)
        child.wait()
    finally:
        _end_group(child.pid)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    return child.returncode


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when its parent ends. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
        return False
    return True


def _end_group(group: int) -> None:
    """End the processes of a group that have outlived its first one."""
    for number, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + seconds
        if not (_alive(group) and _signal_group(group, number)):
            return
        while _alive(group) and time.monotonic() < until:
            time.sleep(0.05)


def _alive(group: int) -> bool:
    """Whether a process of a group has not ended. One that nobody has waited for yet has."""
    if not Path("/proc/self/stat").is_file():
        return _signal_group(group, 0)
    stats = (_stat(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat"))
    return any(stat[2] == str(group) and stat[0] != "Z" for stat in stats if stat)


def _stat(pid: int | str) -> list[str]:
    """State, parent and group of a process, … as /proc has them; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rsplit(")", 1)[-1].split()


def watched() -> str:
    """This process, as a job names the one that it ends with."""
    return f"{socket.gethostname()}:{os.getpid()}"


def end_with_watched(seconds: float = 0.5) -> None:
    """Send this process SIGTERM when the one that `WATCHED` names is gone (if any is named, and it
    is on this machine). A shell stands between the two, so that the system cannot."""
    host, _, pid = os.environ.get(WATCHED, "").rpartition(":")
    if host != socket.gethostname():
        return

    def watch() -> None:
        while _lives(int(pid)):
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    stat = _stat(pid)
    return not (stat and stat[0] == "Z")  # one that nobody has waited for has ended, too


def threads(stage: str = "train") -> int:
    """Threads of a stage that computes: all cores, unless OMP_NUM_THREADS says otherwise.

    Training has as many by hand as in a study, because sums in another order are other numbers, and
    adapters must be equal to the last bit. A study runs its other stages beside each other, where
    Snakemake gives each a core.
    """
    for name in (THREADS, "OMP_NUM_THREADS") if stage == "train" else ("OMP_NUM_THREADS",):
        if (chosen := os.environ.get(name, "")).isdigit() and int(chosen):
            return int(chosen)
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- locks ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock `path`, in which stands who holds it and what for. HialignError if another
    process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise HialignError(f"cannot write {path}: {error.strerror}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HialignError(
                f"{_told(path)} is at it already: wait for its end, or stop it"
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {socket.gethostname()}: {doing}\n")
        stream.flush()
        yield
        stream.truncate(0)


def held(folder: Path) -> list[str]:
    """Who holds a lock in a folder, and what for."""
    found = []
    for path in sorted(folder.glob("*.lock")):
        with path.open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                found.append(_told(path))
    return found


def _told(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip()
    return f"process {text[:200]}" if text else "another process"


def wait_for_all(folder: Path, seconds: float = 3 * PATIENCE) -> None:
    """Wait until no lock in a folder is held: jobs of a run that was killed end by themselves.
    HialignError names those that do not."""
    until = time.monotonic() + seconds
    while working := held(folder):
        if time.monotonic() > until:
            raise HialignError(
                f"{working[0]} (one of {len(working)}) is still at work on this study: wait for "
                "its end, or stop it"
            )
        time.sleep(0.2)
