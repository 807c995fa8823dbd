"""The notebook on composing runs from end to end, and is kept with its outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.config import LoraSettings, ModelSettings, StudentSettings
from pipeline.prompting import EffectPrompts
from pipeline.stages.export import export_student
from tests.tiny_export import BASE, tiny_weights

NOTEBOOK = Path("notebooks/03_compose_effects.ipynb")
EFFECTS = ("cyanotype", "sunset", "circle_mask", "snow")


def test_it_is_kept_with_its_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    run = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in run)
    kinds = [output.output_type for cell in run for output in cell.outputs]
    assert kinds.count("display_data") >= 4 and "error" not in kinds


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A student that was taught nothing: the pictures mean nothing, the code is all run.
    prompts = [EffectPrompts(effect, f"<{effect}>", "make it", "make it") for effect in EFFECTS]
    lora = LoraSettings(rank=4, alpha=4.0)
    student = StudentSettings(steps=2, shift=3.0, lora=lora)
    model = ModelSettings(path=str(BASE))
    export_student(tiny_weights(), lora, student, prompts, model, "0" * 16, tmp_path / "student")
    monkeypatch.setenv("COLLECTIONLORA_STUDENT", str(tmp_path / "student"))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    said = notebook.cells[2].outputs[0].text
    assert said.startswith("4 effects, 2 steps a picture")
