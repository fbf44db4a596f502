"""The hash of what a record or a cache entry depends on."""

import hashlib
import json
from typing import Any


def json_sha256(content: Any, digits: int = 64, *, sort_keys: bool = True) -> str:
    """The first `digits` hexadecimal digits of the sha256 of `content`, written as JSON.

    The order of keys counts only if `sort_keys` is False.
    """
    text = json.dumps(content, sort_keys=sort_keys)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
