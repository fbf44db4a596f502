"""Kernels do not share a port space: each has sockets of its own, gone when it is."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from hialign.run.kernels import Kernel

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
    assert level == "50"  # nothing of its own beside what the notebook prints
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
