"""Progress bars that leave one line in a saved notebook, however long the run."""

import sys
from typing import Any

from IPython import get_ipython
from IPython.display import display
from tqdm import tqdm


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm that rewrites one output in a notebook instead of printing line upon line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._handle: Any = None
        if _in_notebook() and not kwargs.get("disable"):
            self._handle = display({"text/plain": "…"}, raw=True, display_id=True)
        kwargs.setdefault("mininterval", 2.0 if self._handle or not sys.stderr.isatty() else 0.1)
        kwargs.setdefault("ncols", 100)
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self._handle is None:
            super().display(msg, pos)
        elif text := (str(self) if msg is None else msg):  # tqdm clears by displaying ""
            self._handle.update({"text/plain": text}, raw=True)


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel (papermill's included), not a terminal's IPython."""
    return hasattr(get_ipython(), "kernel")
