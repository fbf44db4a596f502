"""Progress bars that a saved notebook keeps as one line, and that the terminal shows meanwhile."""

import os
import sys
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import display
from tqdm import tqdm

from hialign.records import running


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm that rewrites one output cell in a notebook instead of printing line upon line.

    What a cell shows stays in its kernel until the cell ends. Where `hialign run` or `hialign
    reproduce` waits for the notebook, the bar is therefore written into a file, too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._handle: Any = None
        if _in_notebook() and not kwargs.get("disable"):
            self._handle = display({"text/plain": "…"}, raw=True, display_id=True)
        shown = self._handle or sys.stderr.isatty()
        kwargs.setdefault("mininterval", 0.4 if self._handle else 0.1 if shown else 2.0)
        kwargs.setdefault("ncols", 100)
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if place := os.environ.get(running.PROGRESS):
            running.write(Path(place), self._progress())
        if self._handle is None:
            super().display(msg, pos)
        elif text := (str(self) if msg is None else msg):  # tqdm clears by displaying ""
            self._handle.update({"text/plain": text}, raw=True)

    def _progress(self) -> running.Progress:
        rate = self.format_dict["rate"]  # steps per second, None before the first
        remaining = (self.total - self.n) / rate if rate and self.total else None
        return running.Progress(
            step=self.desc.removesuffix(": "), done=self.n, total=self.total, remaining=remaining
        )


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel (papermill's included), not a terminal's IPython."""
    return hasattr(get_ipython(), "kernel")
