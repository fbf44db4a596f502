"""What is taken out of a built site, and formulas as MathML."""

from pathlib import Path
from typing import Any

import pytest

from hialign.book import theme


def test_icons_in_use_stay_by_any_of_their_names(tmp_path: Path) -> None:
    scripts = tmp_path / "_static" / "scripts"
    scripts.mkdir(parents=True)
    icons = (
        'var p={"magnifying-glass":[512,512,[128269,"search"],"f002","M1z"],'
        'heart:[512,512,[],"f004","M2z"],"heart-crack":[512,512,[],"f7a9","M3z"]};var q={a:[1,2]}'
    )
    (scripts / "fontawesome.js").write_text(icons)
    (scripts / "theme.js.map").write_text("{}")
    (tmp_path / "index.html").write_text('<i class="fa-solid fa-search"></i><i class="fa-heart">')
    theme.mend(tmp_path)
    kept = (scripts / "fontawesome.js").read_text()
    assert "magnifying-glass" in kept
    assert "heart:[" in kept
    assert "heart-crack" not in kept
    assert kept.endswith("};var q={a:[1,2]}")
    assert not (scripts / "theme.js.map").exists()


class Writer:
    def __init__(self) -> None:
        self.body: list[str] = []


class Formula(dict[str, Any]):
    def astext(self) -> str:
        return str(self["text"])


def test_formulas_are_mathml_and_functions_stand_apart() -> None:
    from docutils.nodes import SkipNode

    writer = Writer()
    with pytest.raises(SkipNode):
        theme._inline(writer, Formula(text=r"\log \frac{a}{b}"))
    assert "<mfrac>" in writer.body[0]
    assert 'rspace="0.17em">log</mo>' in writer.body[0]
    assert "\\" not in writer.body[0]
