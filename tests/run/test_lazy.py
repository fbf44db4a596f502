"""What a command imports: no torch before there is something to compute."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "trl", "peft")
COMMAND = "import sys; from hialign.run.cli import main; sys.argv[1:] = {}; main()"


@pytest.mark.parametrize(
    "code",
    [
        "import hialign",
        COMMAND.format(["--help"]),
        COMMAND.format(["status", "demo"]),
        # what every job of the workflow imports again
        "import hialign.run.workflow",
    ],
    ids=["import", "help", "status", "workflow"],
)
def test_no_torch_is_imported(code: str) -> None:
    report = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", f"{report}; {code}"], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_what_never_trains_imports_no_trl() -> None:
    modules = ("evaluation.respond", "evaluation.evaluate", "evaluation.explorer")
    modules += ("probes.weights", "probes.patching.probe")
    imports = "; ".join(f"import hialign.{module}" for module in modules)
    code = f"import sys; {imports}; print('trl' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
