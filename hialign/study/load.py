"""Reading a YAML file into a pydantic model: every mistake in it becomes one line that says where.

`load_yaml` reads studies, rubrics, attacks, claims and the paper's numbers. PyYAML alone lets the
last of two equal keys win. It fails with a traceback on a file that is not UTF-8, on one that is
nested too deeply, and on one whose aliases grow to billions of values.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, RootModel, ValidationError

from hialign.study.errors import HialignError

Model = TypeVar("Model", bound=BaseModel)

MOST_BYTES = 1_000_000  # of a file, also with its aliases written out. A study has a few thousand.
MOST_LEVELS = 40
MOST_PROBLEMS = 8  # that one error lists
KINDS = ("null", "bool", "int", "float", "str", "map", "seq")
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


def load_yaml(
    model: type[Model],
    path: Path,
    noun: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    number_keys: bool = False,
) -> Model:
    """The YAML file `path` as a `model`, which errors call a `noun` ("study", "rubric").

    `defaults` are values of keys that the file leaves out. With `number_keys`, a key may be a whole
    number. Raises HialignError naming the file and the line or the key that is wrong.
    """
    shown = one_line(path)
    content = read_yaml(path, noun, number_keys=number_keys)
    if not issubclass(model, RootModel):
        if not isinstance(content, dict):
            keys = [name for name, field in model.model_fields.items() if field.is_required()]
            keys = [name for name in keys if name not in (defaults or {})]
            raise HialignError(f"{shown} is not a {noun}: it must be a mapping with {keys[0]}, …")
        content = {**(defaults or {}), **content}
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise HialignError(f"{shown}: {explain(error, content)}") from None


def read_yaml(path: Path, noun: str, *, number_keys: bool = False) -> Any:
    """The values in a YAML file, which errors call a `noun`."""
    shown = one_line(path)
    try:
        with open(path, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise HialignError(f"the file is over {_megabytes()}, so it is no {noun}")
        # `utf-8-sig` drops a byte-order mark
        return _Loader(content.decode("utf-8-sig"), number_keys).get_single_data()
    except HialignError as error:
        raise HialignError(f"{shown}: {error}") from None
    except OSError as error:
        raise HialignError(f"cannot read the {noun} {shown}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise HialignError(
            f"{shown} is not UTF-8 text (see byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        problem = one_line(error).replace('in "<unicode string>", line', "in line")
        raise HialignError(f"{shown} is not YAML: {problem}") from None
    except RecursionError:
        raise HialignError(f"{shown}: values are nested over {MOST_LEVELS} levels deep") from None
    except ValueError as error:  # a number of thousands of digits, or a NUL byte in the path
        raise HialignError(f"cannot read the {noun} {shown}: {one_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """A SafeLoader that checks the whole document before it makes values of it."""

    def __init__(self, text: str, number_keys: bool) -> None:
        super().__init__(text)
        self.key_tags = (":str", ":int") if number_keys else (":str",)

    def get_single_node(self) -> yaml.Node | None:
        document = super().get_single_node()
        nodes: list[tuple[yaml.Node, tuple[str, ...]]] = [(document, ())] if document else []
        size = 0
        while nodes:
            node, path = nodes.pop()
            size += 8 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
            if size > MOST_BYTES:
                raise HialignError(f"with its aliases written out, it is over {_megabytes()}")
            if len(path) > MOST_LEVELS:
                raise _wrong(node, f"values are nested over {MOST_LEVELS} levels deep")
            if node.tag not in PLAIN:
                kind = one_line(node.tag.rsplit(":", 1)[-1], 40)
                key = one_line(".".join(path), 80)
                raise _wrong(node, f"{key} is read as a {kind}: put it in quotes if it is text")
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node, path)
                nodes += [(key, path) for key, _ in node.value if key.tag != MERGE]
                nodes += [(value, (*path, str(key.value))) for key, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += [(value, (*path, str(i))) for i, value in enumerate(node.value)]
        return document

    def _check_keys(self, mapping: yaml.MappingNode, path: tuple[str, ...]) -> None:
        """Refuse keys that are not text, and a key that is given twice."""
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            if key.tag == MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(self.key_tags):
                shown = f"{one_line(key.value, 80)} " if isinstance(key, yaml.ScalarNode) else ""
                kind = key.tag.rsplit(":", 1)[-1]
                raise _wrong(key, f"the key {shown}is read as a {kind}: put it in quotes")
            if key.value in lines:
                name = brief(".".join((*path, key.value)))
                problem = f"the key {name} is given twice (first in line {lines[key.value]})"
                raise _wrong(key, f"{problem}: leave one out")
            lines[key.value] = key.start_mark.line + 1


def _wrong(node: yaml.Node, problem: str) -> HialignError:
    return HialignError(f"line {node.start_mark.line + 1}: {problem}")


def _megabytes() -> str:
    return f"{MOST_BYTES / 1e6:g} MB"


def explain(error: ValidationError, content: Any = None) -> str:
    """What pydantic refuses, each as `key.key: what is wrong (it is …)`, together on one line.

    `content` is what was validated. With it, keys are named as they are written there.
    """
    problems: dict[str, str] = {}
    for problem in error.errors():
        key = one_line(".".join(_written(problem["loc"], content)), 120)
        text = one_line(problem["msg"].removeprefix("Value error, "))
        if problem["type"] == "extra_forbidden":
            text = f"unknown key {key!r}"
        elif problem["type"] == "missing":
            text = f"key {key!r} is missing"
        else:
            text = f"{key}: {text}" if key else text
            if not (problem["type"] == "value_error" and isinstance(problem["input"], Mapping)):
                text += f" (it is {brief(problem['input'])})"
        problems.setdefault(key, text)
    texts = list(problems.values())
    more = [f"and {len(texts) - MOST_PROBLEMS} more"] if len(texts) > MOST_PROBLEMS else []
    return "; ".join(texts[:MOST_PROBLEMS] + more)


def _written(location: Sequence[int | str], content: Any) -> list[str]:
    """`location` without what pydantic adds to it, such as the branch of a union.

    An entry of a list is named by its `id` if it has one, else by its number.
    """
    keys: list[str] = []
    for key in location:
        if content is not None and not isinstance(content, Mapping | list):
            break
        if isinstance(content, list) and isinstance(key, int):
            content = content[key] if key < len(content) else None
            name = content.get("id") if isinstance(content, Mapping) else None
            keys.append(name if isinstance(name, str) else str(key))
        else:
            keys.append(str(key))
            content = content.get(key) if isinstance(content, Mapping) else content
    return keys


def brief(value: Any, most: int = 80) -> str:
    """`value` on one line, and cut if it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as YAML writes them
    try:
        return one_line(repr(value[: most + 1] if isinstance(value, str) else value), most)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return f"a {type(value).__name__}"


def one_line(text: object, most: int = 500) -> str:
    """`text` without line breaks and other control characters, and cut if it is long."""
    words = " ".join(str(text).split())
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
