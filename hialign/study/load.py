"""Reading a study's YAML file: every mistake in it becomes one line that says where it is.

PyYAML alone lets the last of two equal keys win. It fails with a traceback on a file that is not
UTF-8, that is nested too deeply, or whose aliases grow to billions of values.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hialign.study.errors import HialignError

MOST_BYTES = 1_000_000  # of a file, also with its aliases written out; a study has a few thousand
MOST_LEVELS = 40
MOST_PROBLEMS = 8  # that one error lists
KINDS = ("null", "bool", "int", "float", "str", "map", "seq")
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class _Loader(yaml.SafeLoader):
    """A SafeLoader that checks the whole document before it makes values of it."""

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
                raise _wrong(node, f"{key} is read as a {kind}; put it in quotes if it is text")
            if isinstance(node, yaml.MappingNode):
                _check_keys(node, path)
                nodes += [(key, path) for key, _ in node.value if key.tag != MERGE]
                nodes += [(value, (*path, str(key.value))) for key, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += [(value, (*path, str(i))) for i, value in enumerate(node.value)]
        return document


def _check_keys(mapping: yaml.MappingNode, path: tuple[str, ...]) -> None:
    """Refuse keys that are not text, and a key that stands twice."""
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        if key.tag == MERGE:
            continue
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
            shown = f"{one_line(key.value, 80)} " if isinstance(key, yaml.ScalarNode) else ""
            kind = key.tag.rsplit(":", 1)[-1]
            raise _wrong(key, f"the key {shown}is read as a {kind}; put it in quotes")
        if key.value in lines:
            name = brief(".".join((*path, key.value)))
            problem = f"the key {name} stands twice (first in line {lines[key.value]})"
            raise _wrong(key, f"{problem}; leave one out")
        lines[key.value] = key.start_mark.line + 1


def _wrong(node: yaml.Node, problem: str) -> HialignError:
    return HialignError(f"line {node.start_mark.line + 1}: {problem}")


def _megabytes() -> str:
    return f"{MOST_BYTES / 1e6:g} MB"


def read_study(path: Path) -> dict[str, Any]:
    """The mapping in a study's file. HialignError names the file and, if it can, the line."""
    shown = one_line(path)
    try:
        with open(path, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise HialignError(f"the file is over {_megabytes()}, so it is no study")
        # `utf-8-sig` drops a byte-order mark
        study = yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except HialignError as error:
        raise HialignError(f"{shown}: {error}") from None
    except OSError as error:
        raise HialignError(f"cannot read the study {shown}: {error.strerror}") from None
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
        raise HialignError(f"cannot read the study {shown}: {one_line(error)}") from None
    if not isinstance(study, dict):
        raise HialignError(f"{shown} is not a study: it must be a mapping with models, blocks, …")
    return study


def explain(error: ValidationError, content: Any = None) -> str:
    """What pydantic refuses, each as `key.key: what is wrong (it is …)`, together on one line.

    `content` is what was validated. With it, keys are named as they stand there.
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
    """`location` without what pydantic adds to it, such as the branch of a union."""
    keys: list[str] = []
    for key in location:
        if content is not None and not isinstance(content, Mapping | list):
            break
        keys.append(str(key))
        if isinstance(content, Mapping):
            content = content.get(key)
        elif isinstance(content, list) and isinstance(key, int):
            content = content[key] if key < len(content) else None
    return keys


def brief(value: Any, most: int = 80) -> str:
    """`value` on one line, and cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as YAML writes them
    try:
        return one_line(repr(value[: most + 1] if isinstance(value, str) else value), most)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return f"a {type(value).__name__}"


def one_line(text: object, most: int = 500) -> str:
    """`text` without line breaks and other control characters, and cut where it is long."""
    words = " ".join(str(text).split())
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
