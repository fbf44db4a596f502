"""Kernels do not share a port space: each has sockets of its own, gone when it is."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from hialign.book.kernels import Kernel
from nbclient import NotebookClient

WHERE = (
    "from ipykernel.kernelapp import IPKernelApp; k = IPKernelApp.instance(); "
    "print(k.transport, k.ip, k.log_level)"
)


def place_of_kernel(_: object = None) -> tuple[str, str]:
    """The transport and the address of a kernel, as the kernel itself sees them."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WHERE)])
    NotebookClient(book, kernel_name="python3", kernel_manager_class=Kernel).execute()
    (output,) = book.cells[0].outputs  # no warning beside it
    transport, place, level = output.text.split()
    assert level == "50"  # nothing of its own in what a build prints
    return transport, place


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sockets without files")
def test_kernels_that_start_together_have_sockets_of_their_own_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(place_of_kernel, range(4)))
    assert {transport for transport, _ in found} == {"ipc"}
    assert len({place for _, place in found}) == 4
    assert all(place.startswith("@hialign-") for _, place in found)
    assert list(tmp_path.iterdir()) == []


def test_the_books_pages_run_in_them(tmp_path: Path) -> None:
    """jupyter-cache has no setting for the kernel's class: what we replace there has to be used."""
    script = f"""
import nbformat
from hialign.book.kernels import build_book
from jupyter_book.cli import main as cli
from jupyter_cache.executors.utils import single_nb_execution

def run():
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell({WHERE!r})])
    single_nb_execution(book, cwd=".", timeout=60, allow_errors=False)
    print(book.cells[0].outputs[0].text)

cli.main = run
build_book()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.startswith("ipc "), done.stderr
