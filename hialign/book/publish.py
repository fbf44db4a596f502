"""Publishing: the part of a finished study that a book needs, without weights and without secrets.

`hialign publish STUDY` copies records, executed notebooks and explorations to outputs/published/.
This is the one part of outputs/ that git keeps. `hialign site` builds the books of all that is there,
on a machine that has neither adapters nor a GPU.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from hialign.records.explorations import Explorations
from hialign.records.files import read_json, replace_folder, stamps, write_json, write_record
from hialign.records.stages import ADAPTER, COPY_RECORD
from hialign.records.status import probe_status, required, state, status
from hialign.report.replication.registered import RECORD as REGISTRATION
from hialign.report.replication.registered import registration
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.pair_files import withheld
from hialign.study.study import Study, probe_runs

# Files by their pattern in a study's folder; `{cell}` is a cell's folder. All else stays behind:
# adapters, checkpoints, built pages, locks, judgments under earlier settings.
COPIED = (
    "{cell}/*.json",
    "{cell}/training.jsonl",
    "{cell}/responses.jsonl",
    "{cell}/judgments-*.jsonl",
    "judge-validation-*.json",
    "notebooks/*.ipynb",
    "*/probes/*.json",
    "*/probes/*/*.json",
)
LEFT = re.compile(r"^\.|\.earlier\.|\.partial|\.failed\.|^explore-")
WRITTEN_BY_MODELS = re.compile(r"^(responses|judgments-.*)\.jsonl$|/explorations/")
HOLDS_TEXTS = re.compile(
    r"^(responses|judgments-.*)\.jsonl$|^(train|respond|evaluate|judge)-.*\.ipynb$"
)
# Of a tranche whose texts are withheld no notebook is published, whatever it shows
MAY_HOLD_TEXTS = re.compile(r"^(responses|judgments-.*)\.jsonl$|\.ipynb$|^judge-validation-")
PUBLISHED_BLOCKS = ("full", "local", "mid", "global")  # whose adapters may be published
MOST_BYTES = 8_000_000  # of all published adapters of a study together
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters: a shorter value of such a variable is found everywhere
SECRETS = (
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\bgh[opsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}",
    r"\bAKIA[A-Z0-9]{16}\b",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
)
HOMES = r"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[\w.-]+|(?<![\w.])/root/"


class Published(NamedTuple):
    """What was published: where, how many files and bytes."""

    folder: Path
    files: int
    bytes: int


class Adapters(NamedTuple):
    """Which adapters are published: those of one seed. `save` writes a copy of one in bfloat16."""

    seed: str
    save: Callable[[Path, Path], None]


def publish(
    study: Study,
    partial: bool = False,
    with_responses: bool | None = None,
    adapters: Adapters | None = None,
) -> Published:
    """Copy what the book needs of a study to `outputs/published/<study>/`, whole or not at all.

    Args:
        study: the study.
        partial: whether it is published even if a cell is not done.
        with_responses: whether the texts of models and judges are published, too. None publishes
            them only if the prompts are our own.
        adapters: whose adapters are published with it. By default none.

    Raises:
        HialignError: if a cell is not done, if nobody has said whether responses to prompts from
            elsewhere may be published, for texts and adapters of a tranche of which nothing but
            numbers may be (`pair_files.WITHHELD`), if adapters are too large, and if a file holds a
            secret or a path of this machine.
    """
    if tranches := withheld(study.preferences):
        _refuse_texts(study, tranches, with_responses, adapters)
    if study.preferences.source != "builtin" and with_responses is None:
        raise HialignError(
            f"study {study.name} has responses to prompts of {study.preferences.source}, which may "
            "be sensitive or not ours to publish: --with-responses publishes them, "
            "--without-responses the numbers alone"
        )
    if (open_cells := _unfinished(study)) and not partial:
        raise HialignError(
            f"study {study.name} is not finished: {open_cells[0]} (of {len(open_cells)}); "
            f"`hialign reproduce {study.name}` finishes it, --partial publishes it as it is"
        )
    place = paths.published() / paths.slug(study.name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise HialignError(f"cannot write {place.parent}: {error.strerror}") from None
    try:
        for source in files_of(study, with_responses is not False):
            target = staged / source.relative_to(paths.study_dir(study.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        _copy_registration(study, staged)
        if adapters:
            _copy_adapters(study, adapters, staged)
        resolved = study.model_dump(mode="json")
        text = yaml.safe_dump(resolved, sort_keys=False)
        (staged / "study.yml").write_text(text, encoding="utf-8")
        check(staged)
        staged.chmod(0o755)  # a temporary folder is its owner's alone
        replace_folder(staged, place)
    except OSError as error:
        raise HialignError(f"cannot write {place}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    sizes = [p.stat().st_size for p in place.rglob("*") if p.is_file()]
    return Published(place, len(sizes), sum(sizes))


def files_of(study: Study, with_responses: bool = True) -> Iterator[Path]:
    """The files of a study that are published."""
    folder = paths.study_dir(study.name)
    cells = [cell.folder.relative_to(folder) for cell in study.cells()]
    texts = MAY_HOLD_TEXTS if withheld(study.preferences) else HOLDS_TEXTS
    for pattern in COPIED:
        for cell in cells if "{cell}" in pattern else cells[:1]:
            found = folder.glob(pattern.format(cell=cell))
            kept = [p for p in sorted(found) if p.is_file() and not LEFT.search(p.name)]
            yield from (p for p in kept if with_responses or not texts.search(p.name))
    for model in study.models if with_responses else []:
        if any(state(c).trusted for c in study.cells() if c.model == model):
            yield from Explorations(study.cell(model.name, "base")).files()


def _refuse_texts(
    study: Study, tranches: list[str], with_responses: bool | None, adapters: Adapters | None
) -> None:
    """Refuse what would show or give away pairs of `tranches`."""
    where = f"study {study.name} is made of {', '.join(tranches)}, of which"
    if with_responses:
        raise HialignError(
            f"{where} no prompt and no response to one may be published: --without-responses "
            "publishes the numbers"
        )
    if adapters:
        raise HialignError(
            f"{where} no adapter may be published that was trained on it: leave out --with-adapters"
        )


def _copy_registration(study: Study, staged: Path) -> None:
    """The study's registration, with a record of its hash and of its first commit."""
    if found := registration(study):
        shutil.copyfile(found.file, staged / found.file.name)
        about = {"sha256_of_file": found.original or found.sha256}
        about |= {"committed": found.committed, "commit": found.commit}
        write_record(staged / REGISTRATION, about)


def _copy_adapters(study: Study, adapters: Adapters, staged: Path) -> None:
    """Adapters of one seed in bfloat16, each with a record of its hashes and of what it is a copy of."""
    one, total = study.at(adapters.seed), 0
    for model in one.models:
        for block in [block for block in one.blocks if block in PUBLISHED_BLOCKS]:
            cell = one.cell(model.name, block)
            record = required(cell, "train")
            target = staged / cell.folder.relative_to(paths.study_dir(study.name)) / "adapter"
            target.mkdir(parents=True, exist_ok=True)
            weights, config = (Path(name).name for name in ADAPTER)
            adapters.save(cell.folder / ADAPTER[0], target / weights)
            settings = read_json(cell.folder / ADAPTER[1])
            write_json(target / config, settings | {"base_model_name_or_path": model.source})
            content = {
                "dtype": "bfloat16",
                "of": {Path(name).name: record["files"][name]["sha256"] for name in ADAPTER},
                "files": stamps({name: target / name for name in (weights, config)}),
            }
            write_record(target / COPY_RECORD, content)
            total += sum(file.stat().st_size for file in target.iterdir())
    if total > MOST_BYTES:
        raise HialignError(
            f"the adapters of study {study.name} have {total / 1e6:.1f} MB in bfloat16, over the "
            f"{MOST_BYTES / 1e6:.0f} MB that are published: leave out --with-adapters"
        )


def check(folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a folder in which a file holds a secret or a path of this machine, by the file's name.

    Secrets are the values of variables that are called so, and what looks like a provider's key.
    Places in general (`/home/…`) are not looked for in what models wrote, who may well name one.
    """
    values = {
        value: name
        for name, value in environment.items()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET
    }
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"):
        name = file.relative_to(folder)
        text = file.read_text(encoding="utf-8")
        for value, variable in values.items():
            if value in text:
                raise HialignError(
                    f"{name} has the value of {variable} in it: nothing is published"
                )
        if any(re.search(pattern, text) for pattern in SECRETS):
            raise HialignError(f"{name} has what looks like a key in it: nothing is published")
        places = [re.escape(place) + r"(?![\w-])" for place in _places()]
        if not WRITTEN_BY_MODELS.search(f"/{name}") and not WRITTEN_BY_MODELS.search(file.name):
            places.append(HOMES)
        if found := re.search("|".join(places), text):
            raise HialignError(
                f"{name} has a path of this machine in it ({found[0]}): nothing is published; "
                "name models and data by hub id, or by a path relative to the repository"
            )


def _places() -> list[str]:
    """Folders of this machine as a file would name them, without those that every machine has."""
    found = {Path.home(), paths.root(), paths.outputs(), paths.cache(), Path(sys.prefix)}
    found |= {Path.cwd()} | ({data} if (data := paths.shared_data()) else set())
    deep = [place for place in found if len(place.parts) > 2 or place == Path.home()]
    return sorted((str(place) for place in deep if len(place.parts) > 1), key=len, reverse=True)


def _unfinished(study: Study) -> list[str]:
    return [
        f"{stage} of {cell.model.label}, {cell.block}{f', {cell.seed}' * bool(cell.seed)} is {state}"
        for cell in study.cells()
        for stage, state in status(cell).items()
        if state != "done"
    ] + [
        f"the {probe} probe of {model.label} is {state}"
        for one, model, probe in probe_runs(study)
        if (state := probe_status(one, model, probe)) != "done"
    ]
