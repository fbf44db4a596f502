"""Processes that end together, and locks that no kill leaves behind.

A study is a tree of processes: `hialign reproduce`, Snakemake, a shell, `hialign run`, a kernel.
Ctrl-C ends all of them and is waited for. When one of them is killed, those below it end by
themselves. Locks are held on open files (flock), so that the system lets them go with a process.

A Python that is still importing answers SIGINT with a traceback, but ends at SIGTERM without a
word. So only the command at the top of the tree is sent SIGINT, and whatever it started SIGTERM.
Those that have work to tidy up turn it into KeyboardInterrupt, by `interruptible`.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from hialign.records.files import writing
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
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Run a command in a process group of its own. Returns its exit code. `output` takes its output.

    `meanwhile` is called a few times a second. At Ctrl-C (or SIGTERM) the command and all that it
    started are ended, and KeyboardInterrupt is raised. Whatever is left of the group when the
    command has ended is ended, too. If this process is killed, the command is sent SIGTERM (on
    Linux). Temporary files lie in a folder of their own below `scratch`, which is deleted
    afterwards. The folder of a process that was killed is deleted the next time.
    """
    with _scratch(scratch) as place, _recorded_interrupts() as interrupts:
        # What torch compiles is kept, wherever temporary files lie.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(paths.cache() / "torchinductor")}
        child = subprocess.Popen(
            command,
            env={**cache, **environment, "TMPDIR": str(place)},
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            signalled: set[int] = set()
            while child.poll() is None:
                if interrupts:
                    _interrupt(child.pid, interrupts, signalled)
                else:
                    meanwhile()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.05 if interrupts else 0.2)
        finally:
            _end_group(child.pid)
    if interrupts:
        raise KeyboardInterrupt
    return child.returncode


def _interrupt(group: int, interrupts: list[float], signalled: set[int]) -> None:
    """Signal each process of a group once, and all of them harder if they take too long to end.

    `signalled` are those that were signalled before. A process that is started meanwhile gets its
    signal the next time. `interrupts` are the moments at which the user pressed Ctrl-C. Each further
    one saves a wait.
    """
    times = max(len(interrupts), 1 + int((time.monotonic() - interrupts[0]) / PATIENCE))
    if times > 2:
        _signal_group(group, signal.SIGKILL)
    elif times == 2 and -group not in signalled:
        signalled.add(-group)
        _signal_group(group, signal.SIGTERM)
    else:
        for pid in set(_members(group)) - signalled:
            signalled.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if pid == group else signal.SIGTERM)


@contextlib.contextmanager
def _recorded_interrupts() -> Iterator[list[float]]:
    """The moments of Ctrl-C or SIGTERM, which do nothing else here."""
    moments: list[float] = []

    def record(number: int, frame: object) -> None:
        # make passes on the Ctrl-C that the terminal has sent already: one within a second is none
        if not moments or time.monotonic() - moments[-1] > 1:
            moments.append(time.monotonic())

    with _handled(record):
        yield moments


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise KeyboardInterrupt, so that what was begun is tidied up."""
    with _handled(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call `handler`. Python allows that in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for the temporary files of this process, below `folder`."""
    prefix = f"{socket.gethostname()}-"
    for old in folder.glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix)  # of another machine if it is no number
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    place = folder / f"{prefix}{os.getpid()}"
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


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
        if not (any(_members(group)) and _signal_group(group, number)):
            return
        while any(_members(group)) and time.monotonic() < until:
            time.sleep(0.05)


def _members(group: int) -> Iterator[int]:
    """The processes of a group that have not ended."""
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it has ended, or it is another user's
            if os.getpgid(pid) == group and _lives(pid):
                yield pid


def watched() -> str:
    """This process, as a job names the one that it ends with."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(process: str) -> bool:
    """Whether a process, as `watched` names it, has ended. False if it is another machine's."""
    host, _, pid = process.rpartition(":")
    return host == socket.gethostname() and not _lives(int(pid))


def end_with_watched(seconds: float = 0.5) -> None:
    """Send this process SIGTERM when the one that `WATCHED` names is gone (if any is named, and it
    is on this machine). A shell stands between the two, so that the system cannot."""
    process = os.environ.get(WATCHED, "")
    if process.rpartition(":")[0] != socket.gethostname():
        return

    def watch() -> None:
        while not is_gone(process):
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lives(pid: int) -> bool:
    """Whether a process has not ended. One that nobody has waited for yet has."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HialignError(
                f"{_holder(path)} is at it already: wait for its end, or stop it"
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {socket.gethostname()}: {doing}\n")
        stream.flush()
        yield
        stream.truncate(0)


def held(folder: Path) -> list[str]:
    """Who holds a lock in a folder, and what for."""
    holders = []
    for path in sorted(folder.glob("*.lock")):
        with path.open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                holders.append(_holder(path))
    return holders


def _holder(path: Path) -> str:
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
