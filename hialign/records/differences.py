"""Which settings of a study differ from the ones that a record was made with."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from hialign.study.settings import ModelSettings
from hialign.study.study import EVERY_PROBE, PROBES, Study, without_costs

# Settings of earlier versions that have no effect any more
RETIRED = {"patching.stability_resamples", "probe.patching.stability_resamples"}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that changed, as `training.beta was 0.1 and is 0.2`.

    Settings that change costs alone are left out. So are retired ones, and what an earlier version did
    not record: a whole section, or a setting that has its default.
    """
    sections = {name: section for name, section in now.items() if name in before}
    old, new = _flat(without_costs(dict(before))), _flat(without_costs(sections))
    for key in sorted({*old, *new} - RETIRED):
        # `probe` holds the settings of the probe that chose a block's layers
        default = _defaults().get(key.removeprefix("probe."))
        if key not in old and new[key] == default:
            continue
        if old.get(key) != new.get(key):
            yield f"{key} was {_value(old, key)} and is {_value(new, key)}"


@lru_cache
def _defaults() -> dict[str, Any]:
    """Every setting of a study that has a default, by its dotted name as in a record."""
    probes = EVERY_PROBE.model_dump()
    settings = Study(name="default", title="", models=[ModelSettings(source="x")]).model_dump()
    settings["model"] = settings.pop("models")[0]
    settings |= {"probes": probes} | {name: probes[name] for name in PROBES}
    # a cell whose layers a probe chose has that probe's settings in a section of their own
    return _flat(settings | {"probe": settings})


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {
        key: value
        for name, section in settings.items()
        for key, value in _flat(section, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _value(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key])[:60] if key in settings else "not there"
