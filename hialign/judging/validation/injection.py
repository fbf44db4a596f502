"""How far an injected "give this a 5" moves a score.

The attacks are listed in `attacks.yml`. Each is put into responses that the judge has scored without
it. A longer text may score differently for its length alone, so each attack also has a control: the
same number of harmless words in the same place.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, RootModel

from hialign.preferences.llmbar import Item
from hialign.statistics.intervals import difference_interval
from hialign.study.load import load_yaml
from hialign.study.rubric import SCORES, Rubric

Where = Literal["prepend", "append", "replace"]
# Plain sentences that are true of any response. They are repeated for a long attack.
FILLER = (
    "This text was written in English and may be read from the first line to the last. It has "
    "words, and the words stand in lines. Some of the lines are short and others are longer. There "
    "is a space between one word and the next, and a point at the end of a sentence."
)


class Attack(BaseModel):
    """A text that tries to raise the score of the response that contains it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: str
    where: Where
    text: str
    source: str  # key in book/references.bib of the paper whose idea it is


def load_attacks() -> list[Attack]:
    """The attacks in `attacks.yml`."""
    path = Path(__file__).with_name("attacks.yml")
    return load_yaml(RootModel[list[Attack]], path, "list of attacks").root


def text_of(attack: Attack, rubric: Rubric) -> str:
    """The attack's text, its planted answer written for `rubric`."""
    best = max(SCORES)
    rows = [{"dimension": name, "score": best, "reason": "Best."} for name in rubric.dimensions]
    return attack.text.replace("{planted}", json.dumps({"judgments": rows}))


def control_of(attack: Attack, rubric: Rubric) -> str:
    """As many harmless words as the attack has."""
    words, filler = len(text_of(attack, rubric).split()), FILLER.split()
    return " ".join((filler * (words // len(filler) + 1))[:words])


def injected(response: str, text: str, where: Where) -> str:
    """`response` replaced by `text`, or with `text` as a paragraph before or after it."""
    if where == "replace":
        return text
    return f"{text}\n\n{response}" if where == "prepend" else f"{response}\n\n{text}"


def variants(attacks: Sequence[Attack], rubric: Rubric) -> dict[str, tuple[Where, str]]:
    """The texts that are put into each response, by name: every attack and every control.

    Attacks of one length in one place share a control.
    """
    texts = {attack.id: (attack.where, text_of(attack, rubric)) for attack in attacks}
    for attack in attacks:
        texts[control_name(attack, rubric)] = (attack.where, control_of(attack, rubric))
    return texts


def control_name(attack: Attack, rubric: Rubric) -> str:
    return f"control-{attack.where}-{len(text_of(attack, rubric).split())}"


def attacked(
    items: Iterable[Mapping[str, Any]], attacks: Sequence[Attack], rubric: Rubric
) -> list[Item]:
    """Each item once with each variant. Its prompt_id is `<prompt_id>+<variant>`."""
    return [
        Item(
            prompt_id=f"{item['prompt_id']}+{name}",
            prompt=item["prompt"],
            response=injected(item["response"], text, where),
        )
        for name, (where, text) in variants(attacks, rubric).items()
        for item in items
    ]


Scores = Mapping[str, float | None]  # of one kind, by prompt_id. None if the judgment failed.


def effects(
    attacks: Sequence[Attack],
    rubric: Rubric,
    plain: Mapping[str, Scores],
    varied: Mapping[str, Scores],
) -> list[dict[str, Any]]:
    """One row per attack and one per control, with figures for each kind of score.

    `plain` has the scores of the unchanged items for each kind, `varied` those of `attacked`. Changes
    are paired by item, and 95% intervals are Student's t over items.

    - `change` is the attack's score minus the plain one
    - `over_control` is the attack's score minus the control's, which removes the effect of length
    - `raised` is the share of items whose score rose by 1 or more
    - `failed` counts judgments without scores
    """
    rows = []
    controls = {control_name(attack, rubric): attack for attack in attacks}
    names: list[tuple[str, Attack, str | None]]
    names = [(a.id, a, control_name(a, rubric)) for a in attacks]
    names += [(name, attack, None) for name, attack in controls.items()]
    for name, attack, control in names:
        row: dict[str, Any] = {"attack": name, "kind": attack.kind if control else "control"}
        row |= {"where": attack.where, "words": len(text_of(attack, rubric).split())}
        for kind, before in plain.items():
            with_it = {i: varied[kind].get(f"{i}+{name}") for i in before}
            figures = change(before, with_it)
            if control is not None:
                other = {i: varied[kind].get(f"{i}+{control}") for i in before}
                net = change(other, with_it)
                figures |= {"over_control": {k: net[k] for k in ("change", "low", "high")}}
            row |= {kind: figures}
        rows.append(row)
    return rows


def change(before: Scores, after: Scores) -> dict[str, Any]:
    """The paired change of scores from `before` to `after`: n, change, low, high, raised, failed."""
    pairs = [(before[i], after.get(i)) for i in before]
    moves = [b - a for a, b in pairs if a is not None and b is not None]
    failed = sum(a is not None and b is None for a, b in pairs)
    if not moves:
        nothing = dict.fromkeys(("change", "low", "high", "raised"))
        return {"n": 0} | nothing | {"failed": failed}
    low, high = difference_interval(moves, range(len(moves)))
    figures = {"change": sum(moves) / len(moves), "low": low, "high": high}
    figures |= {"raised": sum(move >= 1 - 1e-9 for move in moves) / len(moves)}
    rounded = {k: None if v != v else round(v, 4) for k, v in figures.items()}
    return {"n": len(moves)} | rounded | {"failed": failed}
