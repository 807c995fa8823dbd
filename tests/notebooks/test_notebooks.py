"""The notebooks are kept as they ran, say nothing of the machine, and run again in time."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from notebooks.execute import LIMIT_SECONDS, execute, main
from pipeline.miniature.bank import write_bank

FOLDER = Path("notebooks")
# With the fewest pictures that each keeps.
NOTEBOOKS = {
    "01_first_student": 12,
    "02_compare_runs": 8,
    "03_compose_effects": 5,
    "04_bring_your_own": 5,
}
LARGEST = 1_500_000
EFFECTS = ("cyanotype", "sunset", "circle_mask", "mirror_halves", "snow", "blind_shadows")
# Paths of a machine, colours for a terminal, progress bars, what libraries complain of.
TRACES = re.compile(
    r"(?<![\w.:/])/(?:tmp|root|home|usr|var|work|opt|Users|mnt)/|\x1b\[|\d+%\||it/s\]"
    r"|Traceback|Warning\b|WARNING|localhost|127\.0\.0\.1"
)
TINY = (
    "targets.sources=2",
    "targets.steps=2",
    "student.lora={rank: 2, alpha: 2}",
    "distill.rounds=3",
    "distill.batch=6",
    "distill.fake_updates=2",
    "distill.ta_fm_batch=2",
    "distill.checkpoint_every=3",
    "evaluate.photographs=3",
    "evaluate.bootstrap=100",
    "cluster.encoder_pool={min: 1, max: 1}",
    "cluster.teacher_pool={min: 1, max: 1}",
)


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def texts(notebook: NotebookNode) -> Iterator[str]:
    """Everything that a reader sees, less the pictures."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (v for k, v in output.get("data", {}).items() if k.startswith("text/"))


def pictures(notebook: NotebookNode) -> int:
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum(any(k.startswith("image/") for k in o.get("data", {})) for o in outputs)


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_kept_as_one_run_left_it(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert pictures(notebook) >= NOTEBOOKS[name]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_says_nothing_of_the_machine(name: str) -> None:
    found = [TRACES.search(text) for text in texts(read(name))]
    assert [match[0] for match in found if match] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_figures_have_no_addresses_and_its_text_no_gaps(name: str) -> None:
    whole = "\n".join(texts(read(name)))
    assert not re.search(r"<\w[\w.]* (?:object )?at 0x", whole)
    assert not re.search(r"\b(?:READING|TODO|FIXME)\b", whole)


def test_traces_are_found() -> None:
    for text in ("in /tmp/x", "\x1b[31m", " 44%|##", "FutureWarning: x", "http://127.0.0.1:1"):
        assert TRACES.search(text)
    for text in ("runs/tmp/x", "https://host/home/x", "99 % of warnings"):
        assert not TRACES.search(text)


def test_executing_keeps_outputs_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1")]), path)
    assert main([str(path)]) == 0
    assert nbformat.read(path, 4).cells[0].outputs[0].data["text/plain"] == "2"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        main([str(path)])
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's run where there is one, else one of the same recipe, as small as can be."""
    there = Path(os.environ.get("COLLECTIONLORA_DEMO", "runs/demo"))
    if (there / "report.json").is_file():
        return there.resolve()
    output = tmp_path_factory.mktemp("demo") / "run"
    write_bank(output / "bank", EFFECTS, pairs=8, general=6, sources=20, test=6)
    changes = (f"bank={output / 'bank'}", f"output={output}", *TINY)
    command = [sys.executable, "-m", "pipeline", "run", "pipeline/recipes/demo.yaml"]
    command += [word for change in changes for word in ("--set", change)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_in_time(name: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (environment() | {"COLLECTIONLORA_DEMO": str(demo)}).items():
        monkeypatch.setenv(variable, value)
    kept = FOLDER / f"{name}.ipynb"
    before = kept.read_bytes()
    notebook, seconds = execute(kept)
    assert kept.read_bytes() == before
    assert seconds <= LIMIT_SECONDS
    assert pictures(notebook) >= NOTEBOOKS[name]
    found = [TRACES.search(text) for text in texts(notebook)]
    assert [match[0] for match in found if match] == []
