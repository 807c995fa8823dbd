"""A start in S3 is fetched by whoever needs it: the driver, a student's worker, a teaching task."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors import teach_tasks
from actors.student_worker import student_trainer
from actors.teach_tasks import Guide, teach_effect
from pipeline import object_store
from pipeline.config import Recipe, vary
from pipeline.distill.lesson import Lesson
from pipeline.distill.teach import START, TEACHER, TeachPlan
from pipeline.distill.update import FAKE, STUDENT
from pipeline.mirror import local_path
from pipeline.models.adapters import Adapters
from pipeline.models.lora_formats import LoraModule, read_lora, write_lora
from pipeline.problems import InputError
from pipeline.stages.distill import arguments_of
from pipeline.stages.grow import start_of
from pipeline.storage import write_atomic
from tests.evaluation_case import Case, make_case
from tests.s3_server import BUCKET, settings
from tests.tiny_model import WIDTH

PLACE = f"s3://{BUCKET}/mine"
MODULES = {
    f"transformer_blocks.{i}.attn.to_q": LoraModule(
        torch.full((2, WIDTH), 0.1 + i), torch.full((WIDTH, 2), 0.2), alpha=6.0
    )
    for i in range(4)
}


@pytest.fixture
def nodes(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Moves to another node, whose mirror is empty."""

    def move(name: str) -> None:
        monkeypatch.setenv("COLLECTIONLORA_CACHE", str(tmp_path / name))

    for name, value in settings(server, tmp_path / "first").items():
        monkeypatch.setenv(name, value)
    object_store.client.cache_clear()
    yield move
    object_store.client.cache_clear()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    case = make_case(tmp_path)
    lora = {"rank": 2, "alpha": 2.0, "modules": ["attn.to_q"]}
    case.recipe = vary(case.recipe, {"student.lora": lora})
    return case


def grown(case: Case, place: str) -> Recipe:
    return vary(case.recipe, {"grow.start_from": place, "grow.new_effects": ["snow"]})


def files_of(cache: Path) -> set[str]:
    """The names of all that a node has fetched."""
    folder = cache / "collectionlora-s3"
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["export", "file", "peft", "file of peft"])
def test_a_start_is_fetched_with_what_it_is_read_with(
    nodes: Any, case: Case, tmp_path: Path, layout: str
) -> None:
    place = f"{PLACE}/{layout.replace(' ', '-')}"
    if layout == "export":
        write_lora(local_path(f"{place}/pytorch_lora_weights.safetensors"), MODULES, {})
        write_atomic(f"{place}/comfyui/collectionlora.safetensors", b"as large again")
    elif layout == "file":
        place += ".safetensors"
        write_lora(local_path(place), MODULES, {})
    else:
        write_lora(local_path(place), MODULES, {}, "peft")
        place += "/adapter_model.safetensors" if layout == "file of peft" else ""
    recipe = grown(case, place)
    own = start_of(recipe)
    nodes("driver")
    start = start_of(recipe)
    assert start is not None and own is not None and start.key == own.key
    assert str(start.lora).startswith(str(tmp_path / "driver"))
    assert "collectionlora.safetensors" not in files_of(tmp_path / "driver")

    student, _ = arguments_of(recipe, case.manifest, [case.store], "x")
    nodes("worker")
    state = student_trainer(student).adapters.state(STUDENT)
    for name, module in MODULES.items():
        # The start's alpha, three times its rank, is where its layout has it.
        torch.testing.assert_close(state[f"{name}.lora_B"], 3.0 * module.up)
        torch.testing.assert_close(state[f"{name}.lora_A"], module.down)


def test_the_fake_score_too(nodes: Any, case: Case, tmp_path: Path) -> None:
    run = f"{PLACE}/training/key"
    write_lora(local_path(f"{run}/student.safetensors"), MODULES, {})
    of_fake = {
        f"{name}.lora_{side}": torch.full_like(matrix, 0.7)
        for name, m in MODULES.items()
        for side, matrix in (("A", m.down), ("B", m.up))
    }
    fake = f"{run}/checkpoint_2/student/fake.safetensors"
    write_atomic(fake, lambda path: save_file(of_fake, path))
    latest = {"checkpoint_dir_name": "checkpoint_2", "metrics": {"round": 2}}
    text = json.dumps({"latest_checkpoint_result": latest})
    write_atomic(f"{run}/checkpoint_manager_snapshot.json", text.encode())
    nodes("driver")
    recipe = grown(case, f"{run}/student.safetensors")
    student, _ = arguments_of(recipe, case.manifest, [case.store], "x")
    assert student.start_fake is not None
    nodes("worker")
    state = student_trainer(student).adapters.state(FAKE)
    for name, value in load_file(local_path(fake)).items():
        assert torch.equal(state[name], value)


def test_a_lesson_begins_with_it_on_any_node(
    nodes: Any, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{PLACE}/lesson.safetensors"
    start = write_path(place)
    began: dict[str, dict[str, torch.Tensor]] = {}

    def teach(editor: object, adapters: Adapters, *_: object, on_step: Any, **_rest: object) -> Any:
        on_step(0, 0.0)
        began.update({name: adapters.state(name) for name in (TEACHER, START)})
        return adapters.state(TEACHER)

    monkeypatch.setattr(teach_tasks, "teach", teach)
    out = tmp_path / "out.safetensors"
    lesson = Lesson("warm start", (), out, 1, start=start)
    plan = TeachPlan(steps=1, batch=1, learning_rate=1e-3, cosine=False, ema=0.0, seed=1)
    nodes("worker")
    model, lora = case.recipe.model, case.recipe.student.lora
    stores, guide = (str(case.store),), Guide(1, 1.0, False)
    teach_effect._function(lesson, model.path, "cpu", "float32", 1, lora, plan, stores, guide)
    for state in began.values():
        for name, module in MODULES.items():
            torch.testing.assert_close(state[f"{name}.lora_B"], 3.0 * module.up)
    assert read_lora(out).modules.keys() == MODULES.keys()


def write_path(place: str) -> Path:
    path = local_path(place)
    write_lora(path, MODULES, {})
    return path


@pytest.mark.parametrize("place", [f"{PLACE}/nothing", f"s3://{BUCKET}"])
def test_what_is_not_there_is_one_clear_problem(nodes: Any, case: Case, place: str) -> None:
    with pytest.raises(InputError, match=r"no such file or folder|a folder with neither"):
        start_of(grown(case, place))
