"""Base and its tuned counterpart, which is an adapter of the study or another model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from hialign.engine.decoder import Decoder
from hialign.engine.models import config_of, identity, load_model, load_tokenizer
from hialign.engine.modules import decoder_layers
from hialign.probes.pairs import ProbePair, check_packable, held_out
from hialign.probes.patching.runs import Side
from hialign.probes.record import adapter_of
from hialign.study.blocks import check_block
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell

SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Source:
    """The tuned model's source: an adapter of the study, or another model."""

    kind: str  # `adapter` or `model`
    identity: dict[str, str]
    adapter: Path | None = None  # its folder
    model: ModelSettings | None = None

    def check_tokens(self, cell: Cell, pairs: Sequence[ProbePair]) -> None:
        """Refuse a model that reads other tokens under the same chat template: states would not match."""
        if self.model is None:
            return
        theirs = load_tokenizer(self.model)
        theirs.chat_template = load_tokenizer(cell.model).chat_template
        try:
            same = [p.tokens for p in held_out(cell, theirs)[0]] == [p.tokens for p in pairs]
        except HialignError:  # the pairs are too long for it
            same = False
        if not same:
            raise HialignError(
                f"the tokenizer of {self.model.source} gives the pairs other tokens than that of "
                f"{cell.model.source}: patching needs two models with one tokenizer"
            )


def tuned_source(cell: Cell, name: str) -> Source:
    """The block or model called `name`, checked by its files alone."""
    try:
        check_block(name)
    except HialignError:
        return _model_source(cell, name)
    if name == "base":
        raise HialignError("probes.patching.tuned is base, which is not tuned: name another block")
    folder, sha256 = adapter_of(cell, name)
    return Source("adapter", sha256, adapter=folder)


def _model_source(cell: Cell, name: str) -> Source:
    settings = ModelSettings(
        source=name, precision=cell.model.precision, attention=cell.model.attention
    )
    configs = []
    for which in (cell.model, settings):
        try:
            configs.append(config_of(which).get_text_config())
        except HialignError as error:
            raise HialignError(
                f"probes.patching.tuned: {name!r} is no block, and as a model it could not be "
                f"loaded: {error}"
            ) from None
    for key in SHAPE:
        ours, theirs = (getattr(config, key, None) for config in configs)
        if ours != theirs:
            raise HialignError(
                f"probes.patching.tuned: {name} has {key} {theirs}, {cell.model.source} has {ours}: "
                "patching needs two models of one architecture"
            )
    return Source("model", identity(settings), model=settings)


@contextmanager
def both(
    cell: Cell, source: Source, pairs: Sequence[ProbePair]
) -> Iterator[tuple[dict[str, Side], list[str]]]:
    """Lend base and tuned, and name the parameters outside the layers in which the two differ.

    With an adapter they are one model, with the adapter off and on.
    """
    model, _ = load_model(cell.model)
    check_packable(model, pairs)
    if source.adapter is not None:
        try:
            adapted = PeftModel.from_pretrained(model, source.adapter).eval()
        except (ValueError, RuntimeError) as error:
            raise HialignError(
                f"the adapter in {source.adapter} does not fit {cell.model.source}: "
                f"{str(error).splitlines()[0][:300]}"
            ) from None
        with Decoder(model) as decoder:
            yield {"base": Side(decoder, adapted.disable_adapter), "tuned": Side(decoder)}, []
        return
    assert source.model is not None
    other, _ = load_model(source.model)
    with Decoder(model) as ours, Decoder(other) as theirs:
        outside = _differing(model, other, cell.model.source, source.model.source)
        yield {"base": Side(ours), "tuned": Side(theirs)}, outside


def _differing(
    model: PreTrainedModel, other: PreTrainedModel, name: str, other_name: str
) -> list[str]:
    """The parameters outside the layers in which two models differ. HialignError for other shapes."""
    prefix, _ = decoder_layers(model)
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    for key in sorted({*ours, *theirs}):
        if key not in ours or key not in theirs or ours[key].shape != theirs[key].shape:
            raise HialignError(
                f"probes.patching.tuned: {other_name} and {name} differ in the shape of {key}: "
                "patching needs two models of one architecture"
            )
    outside = [key for key in ours if not key.startswith(f"{prefix}.")]
    return [key for key in outside if not bool((ours[key] == theirs[key]).all())]
