"""The Explore page without a whole book: its raw block in a bare page, and a study's files beside it."""

import re
from pathlib import Path

from hialign.book import responses as explorer
from hialign.study import paths
from hialign.study.study import Study

PAGE = """<!doctype html>
<html lang="en" data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Explore</title></head>
<body><main class="bd-main"><h1>Explore</h1>
{block}
</main></body></html>
"""


def assemble(study: Study, folder: Path) -> explorer.Sizes:
    """Write `explore.html` and `explore/` into `folder`, as `hialign.book.build` would."""
    text = (paths.book_source() / "explore.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\{raw\} html\n(.*?)```", text, re.DOTALL)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "explore.html").write_text(PAGE.format(block="".join(blocks)), encoding="utf-8")
    return explorer.write(study, folder / "explore")
