"""Run notebooks and keep their outputs: ``python notebooks/execute.py [FILE...]``."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
# Of all cells of a notebook together.
LIMIT_SECONDS = 180


def execute(path: Path) -> tuple[NotebookNode, float]:
    """A notebook with the outputs of a run just now, and the seconds that it took.

    Raises:
        CellExecutionError: a cell failed.
        CellTimeoutError: a cell took longer than the whole notebook may.
    """
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook,
        timeout=LIMIT_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    start = time.monotonic()
    # Progress bars and libraries' warnings are for a terminal.
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"})
    seconds = time.monotonic() - start
    # What is left says nothing of the machine: the kernel's version would change with each.
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    return notebook, seconds


def main(arguments: Sequence[str]) -> int:
    """Execute the notebooks named, or all, in place; 1 if one takes too long."""
    late = False
    for path in [Path(a) for a in arguments] or sorted(FOLDER.glob("*.ipynb")):
        notebook, seconds = execute(path)
        nbformat.write(notebook, path)
        size = path.stat().st_size / 2**20
        print(f"{path.name}: {seconds:.0f} s, {size:.2f} MiB", flush=True)
        late |= seconds > LIMIT_SECONDS
    return int(late)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
