"""The reference's log-probabilities, computed once and kept."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence

from filelock import FileLock
from transformers import PreTrainedModel

from hialign.engine.tokens import TokenPair
from hialign.records.files import read_record, write_record
from hialign.study import paths
from hialign.study.errors import HialignError


class Reference:
    """The base model's log-probabilities of each pair, computed once and kept in the cache.

    The key covers the weights, the precision and every token (so the template and the truncation
    too). `values` holds (chosen, rejected) in nats for each pair, None where it is not known yet.
    """

    def __init__(
        self, model: PreTrainedModel, identity: dict[str, str], pairs: Sequence[TokenPair]
    ) -> None:
        weights = next(model.parameters())
        tokens = [(t.ids, t.start) for pair in pairs for t in pair]
        key_of = [identity, str(weights.dtype), weights.device.type, tokens]
        key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()[:24]
        self.path = paths.cache() / "reference" / f"{key}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._identity, self._pairs = identity, pairs
        self.values: list[tuple[float, float] | None] = [None] * len(pairs)
        with self._lock():  # who fills it holds the lock
            self._read()

    def _lock(self) -> FileLock:
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> None:
        if self.path.is_file():
            with contextlib.suppress(HialignError):  # it was changed since: computed again
                known = read_record(self.path)["log_probs"]
                self.values = [(chosen, rejected) for chosen, rejected in known]
        self._saved = self.complete

    @property
    def complete(self) -> bool:
        return None not in self.values

    def fill(
        self, compute: Callable[[Sequence[TokenPair]], list[tuple[float, float]]]
    ) -> list[tuple[float, float]]:
        """All values, computed now unless they are known; a second process waits for the first."""
        with self._lock():
            self._read()
            if not self.complete:
                self.values = list(compute(self._pairs))
                self.save()
        return [both for both in self.values if both]

    def save(self) -> None:
        """Keep the values, if all are known and are not kept yet."""
        if self.complete and not self._saved:
            content = {"identity": self._identity, "log_probs": self.values}
            write_record(self.path, content)
            self._saved = True
