"""The base class of all settings of a study, and the kinds of numbers in them.

Upper bounds are far above what anybody would want. They catch a slip of the keyboard before anything
starts.
"""

import re
import unicodedata
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hialign.study import paths
from hialign.study.blocks import LARGEST_RANK, LARGEST_SEED

SEVERAL_LINES = ("title", "description")  # the only texts that may have more than one

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Steps = Annotated[int, Field(ge=0, le=10_000_000)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Pairs = Annotated[int, Field(ge=0, le=100_000_000)]  # or prompts
Resamples = Annotated[int, Field(ge=20, le=1_000_000)]


class Settings(BaseModel):
    """A section of a study. It refuses keys that are not fields, and numbers that are not finite.

    Two sections are equal if their fields are. Private attributes do not count.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse control characters, and `true` for a number, which pydantic would read as 1."""
        name = str(info.field_name)
        numeric = _wants_number(cls.model_fields[name].annotation)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, bool) and numeric:
                raise ValueError("it must be a number, not true or false")
            if isinstance(part, str):
                text = re.sub(r"[\n\t]", "", part) if name in SEVERAL_LINES else part
                if has_control(text):
                    raise ValueError("it has a line break or another control character")
        return value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__


def _wants_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_wants_number, get_args(annotation)))


def has_control(text: str) -> bool:
    """Whether `text` has a line break, a tab, another control character or half a character."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def check_name(name: str) -> str:
    """`name` itself if files can be named after it. Raises ValueError if they cannot."""
    if not name.strip():
        raise ValueError("the name is empty: give a `name`")
    if has_control(name):
        raise ValueError("the name has control characters: give another `name`")
    if len(name) > 100 or len(paths.slug(name).encode()) > 150:
        raise ValueError("the name has over 100 characters (or 150 bytes): give a shorter `name`")
    return name


def check_folder(name: str) -> str:
    """`name` itself if a folder of a user can have it. Raises ValueError if none can."""
    folder = paths.slug(check_name(name))
    if folder.startswith("."):
        raise ValueError(f"the name {name!r} begins with a dot: give another `name`")
    if folder.casefold() in paths.RESERVED:
        raise ValueError(
            f"the name {name!r} is reserved for a folder that hialign makes: give another `name`"
        )
    return name
