"""Where the repository is: one address, in pyproject.toml (`[project.urls] Repository`).

Everything that links to it (badges, the set-up cell of the notebooks) asks here, and leaves the link
out while there is none.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata

from hialign.study import paths

GITHUB = re.compile(r"https://github\.com/[A-Za-z0-9][\w.-]*/[\w.-]*\w")
BRANCH = "main"


def address() -> str | None:
    """`https://github.com/<owner>/<name>`, or None if the project names no address of this kind."""
    found = _named().removesuffix("/").removesuffix(".git")
    return found if GITHUB.fullmatch(found) else None


def _named() -> str:
    """The address as it is written: in the checkout's pyproject.toml, else in the package."""
    if paths.in_checkout():
        text = (paths.root() / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        return str(project.get("urls", {}).get("Repository", ""))
    try:
        urls = metadata("hialign").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    named = dict(url.split(", ", 1) for url in urls if ", " in url)
    return str(named.get("Repository", ""))


def badge(template: str) -> str:
    """A Markdown link that opens a notebook's template in Colab, or nothing without an address.

    It is a text, because the usual badge is a picture on another host.
    """
    if (found := address()) is None:
        return ""
    place = found.removeprefix("https://")
    path = f"{place}/blob/{BRANCH}/notebooks/{template}.ipynb"
    return f"[Open in Colab](https://colab.research.google.com/{path.replace('.com', '', 1)})"


def package() -> str:
    """What pip installs hialign from, or nothing without an address."""
    found = address()
    return f"git+{found}@{BRANCH}" if found else ""
