"""The reference's log-probabilities, computed once and kept."""

import contextlib
from collections.abc import Callable, Sequence

from filelock import FileLock
from transformers import PreTrainedModel

from hialign.engine.tokens import TokenPair
from hialign.records.files import read_record, write_record
from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError


class Reference:
    """The base model's log-probabilities of N pairs, computed once and kept in the cache.

    The key covers the weights, the precision, the device and every token, and therefore also the
    chat template and the truncation.

    Attributes:
        values: N, the log-probabilities of (chosen, rejected) in nats, None before they are
            computed.
    """

    def __init__(
        self, model: PreTrainedModel, identity: dict[str, str], pairs: Sequence[TokenPair]
    ) -> None:
        weights = next(model.parameters())
        tokens = [(t.ids, t.start) for pair in pairs for t in pair]
        key_of = [identity, str(weights.dtype), weights.device.type, tokens]
        key = json_sha256(key_of, 24)
        self.path = paths.cache() / "reference" / f"{key}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._identity, self._pairs = identity, pairs
        self.values: list[tuple[float, float] | None] = [None] * len(pairs)
        with self._lock():  # another process may be filling it
            self._read()

    def _lock(self) -> FileLock:
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> None:
        if self.path.is_file():
            with contextlib.suppress(HialignError):  # a file that was changed is computed again
                log_probs = read_record(self.path)["log_probs"]
                self.values = [(chosen, rejected) for chosen, rejected in log_probs]
        self._saved = self.complete

    @property
    def complete(self) -> bool:
        return None not in self.values

    def fill(
        self, compute: Callable[[Sequence[TokenPair]], list[tuple[float, float]]]
    ) -> list[tuple[float, float]]:
        """All values, computed now unless they are there. A second process waits for the first."""
        with self._lock():
            self._read()
            if not self.complete:
                self.values = list(compute(self._pairs))
                self.save()
        return [both for both in self.values if both]

    def save(self) -> None:
        """Write the values to the cache, once all of them are there."""
        if self.complete and not self._saved:
            content = {"identity": self._identity, "log_probs": self.values}
            write_record(self.path, content)
            self._saved = True
