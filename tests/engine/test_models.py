"""Models and tokenizers: every kind of source, and what is said when one cannot be had."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hialign import HialignError, load_model
from hialign.engine import embedded
from hialign.engine.embedded import embedded_folder, random_folder, weights_sha256
from hialign.engine.models import PLAIN_CHAT_TEMPLATE, depth_of, identity, load_tokenizer, locate
from hialign.study import paths
from hialign.study.model_files import RANDOM_FAMILIES, model_files
from hialign.study.settings import ModelSettings

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


def test_what_a_killed_process_left_of_a_model_is_deleted(empty_cache: Path) -> None:
    left = empty_cache / "models" / "random-llama-2-1.abcd1234"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"0")
    folder = random_folder("llama:2")
    assert folder.name == "random-llama-2-1"
    assert not left.exists()


@pytest.mark.slow
def test_many_at_once_get_the_same_whole_model(empty_cache: Path) -> None:
    code = "from hialign.engine.models import random_folder as f; print(f('llama:3'))"
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

    def full(family: str, layers: int, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded, "_make_random", full)
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


# --- weights that are not those of the configuration ---------------------------------------------


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a folder with one file of weights."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def sharded(folder: Path) -> dict[str, Any]:
    """Spread the weights of a folder over two files; the index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {n: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        part = {n: tensors[n] for n in names if places[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(folder: Path) -> str:
    with pytest.raises(HialignError) as caught:
        load_model(str(folder))
    return one_line(caught)


def without_layer_2(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.2." in name]:
        del tensors[name]


@pytest.mark.parametrize("shards", [False, True])
def test_missing_weights_are_never_made_up(copied: Path, shards: bool) -> None:
    changed(copied, without_layer_2)
    if shards:
        sharded(copied)
    assert refused(copied) == (
        f"model {copied}: its weights are not those that its config.json describes: 9 tensors are "
        "missing (model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.weight, "
        "model.layers.2.mlp.gate_proj.weight and 6 more). Save or download the whole model again, "
        "or correct config.json"
    )


def test_renamed_and_reshaped_weights_are_refused(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    name = "model.layers.2.self_attn.q_proj.weight"
    changed(copied, lambda tensors: tensors.update({"query": tensors.pop(name)}))
    assert f"1 tensor is missing ({name}), and 1 tensor is not expected (query)." in refused(copied)
    changed(copied, lambda tensors: tensors.update({name: torch.zeros(5, 8)}))
    changed(copied, lambda tensors: tensors.pop("query"))
    assert f"1 tensor is of another shape ({name} is 5x8 instead of 32x32)." in refused(copied)
    assert "REPORT" not in capsys.readouterr().err


def test_other_layers_than_the_configuration_says_are_refused(copied: Path) -> None:
    configured(copied, num_hidden_layers=5)
    assert "9 tensors are not expected (model.layers.5." in refused(copied)
    configured(copied, num_hidden_layers=7)
    assert "9 tensors are missing (model.layers.6." in refused(copied)
    configured(copied, num_hidden_layers=0)
    with pytest.raises(HialignError, match="gives it 0 layers"):
        depth_of(ModelSettings(source=str(copied)))


@pytest.mark.parametrize("saved", [False, True], ids=["head not saved", "head saved"])
def test_tied_weights_may_be_saved_or_not(copied: Path, saved: bool) -> None:
    import torch

    def tie(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if not saved:
            del tensors["lm_head.weight"]

    changed(copied, tie)
    configured(copied, tie_word_embeddings=True)
    model, _ = load_model(str(copied))
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    configured(copied, tie_word_embeddings=False)
    if not saved:
        assert "1 tensor is missing (lm_head.weight)" in refused(copied)


def test_what_a_family_declares_to_be_ignorable_is_ignored(tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "pythia"
    shutil.copytree(random_folder("gpt_neox"), folder)
    name = "gpt_neox.layers.0.attention.masked_bias"  # in the checkpoints of its authors
    changed(folder, lambda tensors: tensors.update({name: torch.tensor(-1e9)}))
    load_model(str(folder))


FIRST = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f, _: (f / FIRST).unlink(), f"No such file or directory: .*{FIRST}"),
        (lambda f, _: (f / FIRST).write_bytes(b""), f"{FIRST} is broken"),
        (lambda f, _: (f / FIRST).write_bytes(b"\xff" * 999), f"{FIRST} is broken"),
        (lambda f, _: (f / INDEX).write_text("{"), f"{INDEX} is broken"),
        (lambda f, _: (f / INDEX).write_text("[]"), f"{INDEX} is broken .it is no mapping with"),
        (lambda f, _: (f / INDEX).write_text('{"metadata": {"a": 1}}'), f"{INDEX} is broken"),
        (lambda f, _: (f / INDEX).write_bytes(b"\xff\xfe"), f"{INDEX} is broken .'utf-8' codec"),
        (
            lambda f, index: (f / INDEX).write_text(
                json.dumps(
                    index
                    | {"weight_map": {n: f for n, f in index["weight_map"].items() if f == FIRST}}
                )
            ),
            "tensors are missing",
        ),
    ],
)
def test_broken_shards_are_refused(
    copied: Path, break_it: Callable[[Path, dict[str, Any]], object], said: str
) -> None:
    import re

    break_it(copied, sharded(copied))
    assert re.search(said, refused(copied))


def test_whole_shards_are_read(copied: Path) -> None:
    import torch

    sharded(copied)
    model, original = load_model(str(copied))[0], load_model("random:llama")[0]
    for name, value in original.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize("size", [0, 4, 5000, -1])
def test_a_torn_file_is_refused(copied: Path, size: int) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"could not be loaded: {file} is broken" in refused(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"hidden_act": "none such"},
        {"rope_parameters": {"rope_type": "none such"}},
        {"model_type": "none such"},
        {"model_type": "t5"},
        {"dtype": "float99"},
        {"quantization_config": 5},
    ],
    ids=str,
)
def test_a_broken_configuration_is_one_line(copied: Path, changes: dict[str, Any]) -> None:
    configured(copied, **changes)
    assert "could not be loaded: " in refused(copied)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_one_line(copied: Path, name: str, content: bytes) -> None:
    (copied / name).write_bytes(content)
    message = refused(copied)
    if content != b"{}":
        assert f"{copied / name} is broken" in message


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_folder(family), folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert refused(folder) == (
        f"model {folder} could not be loaded: {folder} has no tokenizer files (tokenizer.json or "
        "the like). Copy them from the model that this one was made from."
    )


def tokens_changed(folder: Path, **changes: Any) -> None:
    """Change the tokenizer's settings; None takes one away."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def vocabulary_changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_a_tokenizer_that_knows_no_words_is_refused(copied: Path) -> None:
    vocabulary_changed(copied, lambda content: content["model"]["vocab"].clear())
    assert "its tokenizer knows no words" in refused(copied)


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    vocabulary_changed(copied, lambda content: content["model"]["vocab"].update(zebra=100_000))
    assert (
        "has token ids up to 100000, but its embedding has 259 rows, for ids up to 258."
        in refused(copied)
    )


def test_an_end_beyond_the_embedding_is_refused(copied: Path) -> None:
    tokens_changed(copied, eos_token="<end>")
    assert "has token ids up to 259, but its embedding has 259 rows" in refused(copied)


def test_a_special_token_that_no_text_needs_may_lie_beyond_the_embedding(copied: Path) -> None:
    """Gemma 3 1B has one for images."""
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    image = {"id": 259, "content": "<image>", "special": True, **dict.fromkeys(flags, False)}
    vocabulary_changed(copied, lambda content: content["added_tokens"].append(image))
    _, tokenizer = load_model(str(copied))
    assert tokenizer("<image>", add_special_tokens=False)["input_ids"] == [259]


def test_a_tokenizer_without_an_end_is_refused(copied: Path) -> None:
    tokens_changed(copied, eos_token=None)
    assert "has neither a chat template nor an eos_token" in refused(copied)
    tokens_changed(copied, pad_token=None, chat_template="{{ messages[0].content }}")
    assert "has neither a pad_token nor an eos_token" in refused(copied)
    tokens_changed(copied, pad_token="<pad>")
    assert load_model(str(copied))[1].pad_token == "<pad>"


# --- the hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [load_model, lambda m: depth_of(ModelSettings(source=m))])
def test_an_unreachable_hub_is_told_in_one_line(ask: Any) -> None:
    with pytest.raises(HialignError) as caught:
        ask("hialign-tests/no-such-model")
    message = one_line(caught)
    assert message.startswith("model hialign-tests/no-such-model could not be loaded: ")
    assert message.endswith("embedded:smollm2-135m-instruct.")


def test_a_hint_ends_the_line() -> None:
    class Hinted(ModelSettings):
        @property
        def hint(self) -> str:
            return "Did you mean random:llama?"

    with pytest.raises(HialignError, match=r"-instruct\. Did you mean random:llama\?$"):
        load_tokenizer(Hinted(source="hialign-tests/no-such-model"))


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_a_hub_that_answers_is_asked(
    monkeypatch: pytest.MonkeyPatch, httpserver: Any, status: int
) -> None:
    """Whatever it answers to the first question: the hub's client knows what to make of it."""
    from huggingface_hub import constants

    from hialign.engine.model_checks import loading

    httpserver.expect_request("/").respond_with_data("", status=status)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", httpserver.url_for("/"))
    with loading(ModelSettings(source="a/b"), "a/b", None):
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with loading(ModelSettings(source="a/b"), "a/b", None):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    assert len(httpserver.log) == 1


def test_a_hub_that_refuses_the_connection(tmp_path: Path) -> None:
    """Not the offline switch but a closed port: one quiet try, and one line. A copy in the hub's
    cache is loaded all the same."""
    code = (
        "from hialign import load_model, HialignError\n"
        "from hialign.engine.models import depth_of, identity\n"
        "from hialign.study.study import ModelSettings\n"
        "for name in ('no-such-model', 'cached'):\n"
        "    settings = ModelSettings(source=f'hialign-tests/{name}')\n"
        "    try:\n"
        "        load_model(settings)\n"
        "        print(depth_of(settings), identity(settings))\n"
        "    except HialignError as error: print(error)\n"
    )
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--hialign-tests--cached"
    shutil.copytree(random_folder("llama"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    environment = {
        **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    line, loaded = run.stdout.strip().splitlines()
    assert line.startswith(
        "model hialign-tests/no-such-model could not be loaded: the hub could not be reached "
        "(http://127.0.0.1:9: [Errno 111] Connection refused), and this machine has no copy of "
    )
    assert "Retrying" not in run.stderr
    assert loaded == f"6 {{'revision': '{commit}'}}"


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


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (b"{% for m in messages %}", "TemplateSyntaxError in line 1: Unexpected end of template"),
        (b"{{ raise_exception('a system\\nturn first') }}", "TemplateError: a system turn first. "),
        (b"{{ 1 / 0 }}", "ZeroDivisionError: division by zero. "),
        (b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        (b"{{ messages[0].content.a.b }}", "UndefinedError: "),
        (b" {# nothing #} ", "renders nothing for the conversation that begins 'zebra'"),
        (b"Hello.", "ignores the messages: it renders 'Hello.' whatever the user asks"),
        (b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["the model's", "the study's"])
def test_a_broken_template_is_refused(
    copied: Path, tmp_path: Path, template: bytes, said: str, own: bool
) -> None:
    file = tmp_path / "chat.jinja" if own else copied / "chat_template.jinja"
    file.write_bytes(template)
    settings = ModelSettings(source=str(copied), chat_template=str(file) if own else None)
    with pytest.raises(HialignError) as caught:
        load_tokenizer(settings)
    message = one_line(caught)
    if own:
        assert message.startswith(f"chat_template {file} of model My-Model")
    if own or template != b"\xff\xfe":
        assert said in message
    else:
        assert f"{file} is broken ('utf-8' codec" in message


def test_a_padding_token_is_always_there(copied: Path) -> None:
    tokens_changed(copied, pad_token=None)
    tokenizer = load_tokenizer(ModelSettings(source=str(copied)))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


# --- files ---------------------------------------------------------------------------------------


def test_the_files_of_a_folder(copied: Path, tmp_path: Path) -> None:
    for name in ("README.md", "training_args.json", "pytorch_model.bin", "notes.txt"):
        (copied / name).write_text("no part of the model")
    (copied / "additional_chat_templates").mkdir()
    (copied / "additional_chat_templates" / "tools.jinja").write_text("x")
    (copied / "chat_template.jinja").write_text("x")
    (copied / "merges.txt").write_text("x")
    own = tmp_path / "chat.jinja"
    settings = ModelSettings(source=str(copied), chat_template=str(own))
    names = [
        *("additional_chat_templates/tools.jinja", "chat_template.jinja", "config.json"),
        *("generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json"),
        "tokenizer_config.json",
    ]
    expected = [copied / name for name in names]
    assert model_files(settings) == expected  # the study's own template is not there
    own.write_text("x")
    assert model_files(settings) == sorted([*expected, own])
    assert model_files(ModelSettings(source=str(tmp_path / "none"))) == []
    sharded(copied)
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    found = {file.name for file in model_files(settings)}
    assert found >= {*shards, "model.safetensors.index.json"}


@pytest.mark.parametrize(
    "source",
    *[
        [
            *("random:llama", "embedded:smollm2-135m-instruct", "embedded:none", "random:none"),
            *("hialign-tests/model", "./nowhere"),
        ]
    ],
)
def test_the_files_of_what_is_not_there_are_not_made(empty_cache: Path, source: str) -> None:
    assert model_files(ModelSettings(source=source)) == []
    assert not empty_cache.exists()


def test_the_files_of_a_made_model_are_found_without_torch(empty_cache: Path) -> None:
    folder = random_folder("llama:3")
    code = (
        "import sys; from hialign.study.model_files import model_files; "
        "from hialign.study.settings import ModelSettings; "
        "print(*(f.name for f in model_files(ModelSettings(source='random:llama:3')))); "
        "assert not {'torch', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == sorted(
        p.name for p in folder.iterdir() if p.name != "weights.sha256"
    )


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
        "from hialign.engine.models import embedded_folder as f\n"
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
