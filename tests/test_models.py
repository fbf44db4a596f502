"""Models and tokenizers: every kind of source, and what is said when one cannot be had."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hialign import HialignError, load_model, paths
from hialign.models import (
    PLAIN_CHAT_TEMPLATE,
    RANDOM_FAMILIES,
    depth_of,
    embedded_folder,
    identity,
    load_tokenizer,
    locate,
    random_folder,
    weights_sha256,
)
from hialign.study import ModelSettings

CONVERSATION = [
    {"role": "user", "content": "What is rain?"},
    {"role": "assistant", "content": "Water that falls."},
    {"role": "user", "content": "And snow?"},
]
ANSWER = [{"role": "assistant", "content": "Ice that falls."}]


def files_sha256(folder: Path) -> str:
    content = b"".join(p.read_bytes() for p in sorted(folder.glob("*.safetensors")))
    return hashlib.sha256(content).hexdigest()


def one_line(error: pytest.ExceptionInfo[HialignError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A model folder of the user's own."""
    import shutil

    folder = tmp_path / "My-Model"
    shutil.copytree(random_folder("llama"), folder)
    return folder


# --- random models -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_random_families_load_and_speak(family: str) -> None:
    import torch

    model, tokenizer = load_model(f"random:{family}")
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.model_type == family
    assert depth_of(ModelSettings(source=f"random:{family}")) == 6
    ids = tokenizer("Grüße, 世界!", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == "Grüße, 世界!"
    logits = model(input_ids=ids).logits
    assert torch.isfinite(logits).all()
    assert float(logits.detach().std()) > 0.1  # else no test could tell right from wrong with it


def test_depth_of_a_random_model() -> None:
    model, _ = load_model("random:llama:4")
    assert depth_of(ModelSettings(source="random:llama:4")) == len(model.model.layers) == 4


def test_a_random_model_is_the_same_wherever_it_is_made(empty_cache: Path) -> None:
    made = random_folder("llama:3")
    first = files_sha256(made)
    (made / "weights.sha256").unlink()  # looks unfinished, so that it is made again
    assert files_sha256(random_folder("llama:3")) == first


@pytest.mark.parametrize("name", ["lama", "llama:x", "", "llama:-1", "llama:6:7"])
def test_an_unknown_random_model_is_refused(name: str) -> None:
    with pytest.raises(HialignError, match=f"random model '{name}' is not <family>") as caught:
        random_folder(name)
    one_line(caught)


def test_many_at_once_get_the_same_whole_model(empty_cache: Path) -> None:
    code = "from hialign.models import random_folder as f; print(f('llama:3'))"
    run = [sys.executable, "-c", code]

    def ask(_: int) -> str:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        (folder,) = set(pool.map(ask, range(2)))
    assert sorted(p.name for p in Path(folder).parent.iterdir()) == [
        *("random-llama-3-1", "random-llama-3-1.lock"),
    ]
    load_model("random:llama:3")


def test_a_failed_conversion_leaves_nothing(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from hialign import models

    def full(family: str, layers: int, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models, "_make_random", full)
    with pytest.raises(HialignError, match=r"No space left on device; .*HIALIGN_CACHE") as caught:
        random_folder("llama:3")
    one_line(caught)
    left = [p.name for p in (empty_cache / "models").iterdir() if not p.name.endswith(".lock")]
    assert left == []


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_loads_like_its_source(copied: Path) -> None:
    import torch

    model, _ = load_model(str(copied))
    original, _ = load_model("random:llama")
    for name, value in original.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_precision_can_be_chosen() -> None:
    import torch

    model, _ = load_model(ModelSettings(source="random:llama", precision="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_attention_can_be_chosen() -> None:
    model, _ = load_model(ModelSettings(source="random:llama", attention="eager"))
    assert model.config._attn_implementation == "eager"


def test_the_hash_is_that_of_the_files(copied: Path) -> None:
    expected = files_sha256(copied)
    assert weights_sha256(copied) == expected
    assert identity(ModelSettings(source=str(copied))) == {"weights_sha256": expected}
    assert identity(ModelSettings(source="random:llama")) == {"weights_sha256": expected}
    file = copied / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)  # weights.sha256 was copied along, and is no longer right
    assert weights_sha256(copied) != expected


def test_all_shards_are_hashed(copied: Path) -> None:
    before = weights_sha256(copied)
    (copied / "model-00002.safetensors").write_bytes(b"more")
    assert weights_sha256(copied) != before


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HialignError) as caught:
        load_model(str(tmp_path))
    assert one_line(caught) == (
        f"model {tmp_path}: {tmp_path} is no model folder (no config.json there)"
    )
    with pytest.raises(HialignError, match=r"model \./nowhere: .* is no model folder"):
        load_model("./nowhere")


def test_only_safetensors_are_read(copied: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(HialignError, match="could not be loaded") as caught:
        load_model(str(copied))
    one_line(caught)
    with pytest.raises(HialignError, match=r"no \*\.safetensors in .*: hialign loads no other"):
        weights_sha256(copied)


def test_a_torn_file_is_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(HialignError, match="could not be loaded") as caught:
        load_model(str(copied))
    one_line(caught)


# --- the hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [load_model, lambda m: depth_of(ModelSettings(source=m))])
def test_an_unreachable_hub_is_told_in_one_line(ask: Any) -> None:
    with pytest.raises(HialignError) as caught:
        ask("hialign-tests/no-such-model")
    message = one_line(caught)
    assert message.startswith("model hialign-tests/no-such-model could not be loaded: ")
    assert "embedded:smollm2-135m-instruct" in message


@pytest.mark.slow
def test_a_hub_that_refuses_the_connection(tmp_path: Path) -> None:
    """Not the offline switch but a closed port; the hub's client tries for most of a minute."""
    code = (
        "from hialign import load_model, HialignError\n"
        "try: load_model('hialign-tests/no-such-model')\n"
        "except HialignError as error: print(error)\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.strip().splitlines()
    assert line.startswith("model hialign-tests/no-such-model could not be loaded: ")


# --- chat templates ------------------------------------------------------------------------------


def test_a_base_model_gets_the_plain_template() -> None:
    tokenizer = load_tokenizer(ModelSettings(source="random:llama"))
    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    prompt = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "Human: What is rain?\n\nAssistant: Water that falls.</s>\n\nHuman: And snow?\n\nAssistant:"
    )
    whole = tokenizer.apply_chat_template(CONVERSATION + ANSWER, tokenize=False)
    assert whole == prompt + " Ice that falls.</s>"


@pytest.mark.parametrize("source", ["random:llama", "random:gemma3_text"])
def test_a_prompt_is_the_beginning_of_its_answered_whole(source: str) -> None:
    """In tokens: what is trained on begins as what is generated from."""
    tokenizer = load_tokenizer(ModelSettings(source=source))
    prompt = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(CONVERSATION + ANSWER)["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == " Ice that falls.</s>"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    settings = ModelSettings(source="random:llama", chat_template=str(file))
    rendered = load_tokenizer(settings).apply_chat_template(CONVERSATION, tokenize=False)
    assert rendered == "[What is rain?][Water that falls.][And snow?]"
    missing = ModelSettings(source="random:llama", chat_template=str(tmp_path / "none.jinja"))
    with pytest.raises(HialignError, match=r"chat_template .*none\.jinja of model random-llama"):
        load_tokenizer(missing)


def test_a_padding_token_is_always_there(copied: Path) -> None:
    import json

    file = copied / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(ModelSettings(source=str(copied)))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


# --- the embedded model --------------------------------------------------------------------------


def test_an_unknown_embedded_model_is_refused() -> None:
    with pytest.raises(HialignError) as caught:
        load_model("embedded:smollm3")
    assert one_line(caught) == "embedded model 'smollm3' is not one of smollm2-135m-instruct"


def test_a_missing_wheel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HialignError, match=r"not installed: run `make setup`") as caught:
        embedded_folder("smollm2-135m-instruct")
    one_line(caught)


@pytest.mark.slow
def test_the_embedded_model(embedded_model_dir: Path) -> None:
    import torch

    settings = ModelSettings(source="embedded:smollm2-135m-instruct")
    assert locate(settings) == (str(embedded_model_dir), None)
    model, tokenizer = load_model(settings)
    assert (depth_of(settings), model.dtype) == (30, torch.float32)
    assert "<|im_start|>" in tokenizer.chat_template
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0][inputs["input_ids"].shape[1] :])
    assert identity(settings)["weights_sha256"] == files_sha256(embedded_model_dir)


@pytest.mark.slow
def test_two_processes_convert_the_embedded_model_once(
    embedded_model_dir: Path, empty_cache: Path
) -> None:
    """The first use of it on a machine, by two at once: both get the same whole folder."""
    code = (
        "from hialign.models import embedded_folder as f\n"
        "from transformers import AutoModelForCausalLM as M\n"
        "folder = f('smollm2-135m-instruct')\n"
        "M.from_pretrained(folder, use_safetensors=True); print(folder)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    found = [run.communicate(timeout=600) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], found
    (folder,) = {out.strip().splitlines()[-1] for out, _ in found}
    assert Path(folder).parent == paths.cache() / "models"
    assert files_sha256(Path(folder)) == files_sha256(embedded_model_dir)
    left = [p.name for p in Path(folder).parent.iterdir() if not p.name.endswith(".lock")]
    assert left == [Path(folder).name]
