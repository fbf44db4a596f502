"""What must be true of a model that is loaded, and the errors that say so if it is not.

Transformers makes up weights that a checkpoint lacks, gives a tokenizer without files, and asks an
unreachable hub again and again. Here each of these is an error of one line.
"""

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session, httpx
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hialign.engine.chat_template import chat_ids
from hialign.study.errors import HialignError
from hialign.study.model_files import VOCABULARIES, files_in
from hialign.study.settings import ModelSettings

SAMPLE = "The quick brown fox, 123. Быстрая лиса. 敏捷的狐狸"  # any tokenizer knows some of it
NAMED = 3  # tensors that an error names before it counts


@contextmanager
def loading(
    settings: ModelSettings, place: str, revision: str | None, tokenizer: bool = False
) -> Iterator[dict[str, Any]]:
    """The options to load from `place` with. Whatever loading raises becomes one HialignError.

    A hub that cannot be reached is asked once, and not again while the context lasts. What the local
    cache holds can be loaded all the same. `tokenizer` says that the tokenizer is being loaded.
    """
    local = Path(place).is_dir()
    unreachable = "" if local else _unreachable()
    offline = constants.HF_HUB_OFFLINE
    # not transformers' local_files_only, which does not keep it from looking for adapters
    constants.HF_HUB_OFFLINE = offline or bool(unreachable)
    try:
        yield {"revision": revision}
    except HialignError:
        raise
    except Exception as error:  # a broken folder makes libraries raise anything
        reason = f"{_reason(error)}. "
        advice = f"Save or download the model in {place} again, or correct its files."
        if local:
            reason = f"{broken}. " if (broken := _unreadable(Path(place))) else reason
            if tokenizer and not any(any(Path(place).glob(name)) for name in VOCABULARIES):
                reason = f"{place} has no tokenizer files (tokenizer.json or the like). "
                advice = "Copy them from the model that this one was made from."
        else:
            if unreachable:
                reason = f"the hub could not be reached ({unreachable}), and this machine has no "
                reason += "copy of the model. "
            advice = (
                "Give a hub id that you can reach (log in with `hf auth login` if it is gated), "
                "a local folder, or embedded:smollm2-135m-instruct."
            )
        hint = getattr(settings, "hint", "")
        raise HialignError(
            f"model {settings.source} could not be loaded: {reason}{advice}{hint and f' {hint}'}"
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def _unreachable() -> str:
    """Why the hub's server does not answer. Empty if it does, or if we are told not to ask."""
    if constants.is_offline_mode():
        return ""
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except httpx.TransportError as error:  # no answer; any answer will do
        return f"{constants.ENDPOINT}: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    """An error's message in one line, with its kind where the message alone says little."""
    text = " ".join(str(error).split())[:300].rstrip(".: ") or "no reason given"
    bare = isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError)
    return f"{type(error).__name__}: {text}" if bare else text


def _unreadable(folder: Path) -> str:
    """Which of a model's files is broken, and how. Empty if each is well-formed by itself."""
    for file in files_in(folder):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):  # reads its header and compares it with the file's size
                    pass
            elif file.suffix == ".json":
                content = json.loads(file.read_text(encoding="utf-8"))
                keys = ("metadata", "weight_map") if file.name.endswith(".index.json") else ()
                if not isinstance(content, dict) or any(not content.get(key) for key in keys):
                    raise ValueError(f"it is no mapping with {' and '.join(keys) or 'settings'}")
            elif file.suffix in (".jinja", ".txt"):
                file.read_text(encoding="utf-8")
        except Exception as error:
            return f"{file} is broken ({_reason(error)})"
    return ""


# --- weights -------------------------------------------------------------------------------------


@contextmanager
def without_report() -> Iterator[None]:
    """Keep transformers from printing a table of weights that do not fit. `check_weights` names them."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def check_weights(settings: ModelSettings, info: dict[str, Any]) -> None:
    """Refuse weights that transformers would have drawn at random, or would have left out.

    `info` is transformers' report on loading. Tied weights are not in it, nor are tensors that the
    family declares as optional.
    """
    shapes = [
        f"{name} is {_by(saved)} instead of {_by(expected)}"
        for name, saved, expected in info["mismatched_keys"]
    ]
    problems = [
        *_several(info["missing_keys"], "missing"),
        *_several(info["unexpected_keys"], "not expected"),
        *_several(shapes, "of another shape"),
        *(" ".join(message.split()) for message in info["error_msgs"]),
    ]
    if problems:
        raise HialignError(
            f"model {settings.source}: its weights are not those that its config.json describes: "
            f"{', and '.join(problems)}. Save or download the whole model again, or correct "
            "config.json"
        )


def _several(names: Collection[str], what: str) -> list[str]:
    """`9 tensors are missing (a, b, c and 6 more)`, or nothing."""
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    verb = "tensor is" if len(names) == 1 else "tensors are"
    return [f"{len(names)} {verb} {what} ({', '.join(sorted(names)[:NAMED])}{more})"]


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


# --- tokenizers ----------------------------------------------------------------------------------


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that knows no text, as transformers gives for a folder without files."""
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if set(ids) <= {tokenizer.unk_token_id}:
        raise ValueError("its tokenizer knows no words")


def check_vocabulary(
    settings: ModelSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a tokenizer that gives ids for which the model has no embedding.

    Added tokens that no plain text needs may lie beyond it: Gemma 3 1B and Code Llama 34B have some,
    and Qwen2 declares an unknown token that its bytes never need.
    `decoder.unpackable` refuses them where a pair holds one after all.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    added = tokenizer.added_tokens_decoder
    ids = [number for number in tokenizer.get_vocab().values() if number not in added]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids += [number for number in [getattr(tokenizer, name)] if number is not None]
    question = [{"role": "user", "content": SAMPLE}]
    largest = max(ids + chat_ids(tokenizer, question, add_generation_prompt=True))
    if largest >= size:
        raise HialignError(
            f"model {settings.source}: its tokenizer has token ids up to {largest}, but its "
            f"embedding has {size} rows, for ids up to {size - 1}. The tokenizer is that of another "
            "model: copy the files of the tokenizer that the model was trained with"
        )
