"""The student on its base: what shares a forward, and that it does not matter what does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.distill.noise import gaussian
from pipeline.distill.schedule import student_sigmas
from pipeline.editing.jobs import EditJob, prepare
from pipeline.editing.student_editor import STUDENT, StudentEditor
from pipeline.editing.student_export import StudentExport
from pipeline.models.editor import batch_conditions
from pipeline.models.geometry import Geometry, ImageSizes, fit_area
from pipeline.problems import InputError
from tests.tiny_export import EFFECTS, STEPS


@pytest.fixture(scope="module")
def editor(tiny_export: StudentExport) -> StudentEditor:
    return StudentEditor(tiny_export, "cpu", "float32")


@pytest.fixture
def forwards(editor: StudentEditor) -> Iterator[list[int]]:
    """The batch size of each forward of the transformer."""
    seen: list[int] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["hidden_states"]))

    handle = editor.editor.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    yield seen
    handle.remove()


def photograph(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(np.int64)


def test_eight_effects_share_every_forward(editor: StudentEditor, forwards: list[int]) -> None:
    jobs = [EditJob(photograph(i), (effect,), i) for i, effect in enumerate(EFFECTS)]
    together = editor.edit(jobs)
    assert forwards == [8] * STEPS
    for job, picture in zip(jobs[::3], together[::3], strict=True):
        assert np.abs(pixels(editor.edit([job])[0]) - pixels(picture)).max() <= 1


def test_pictures_of_unlike_shapes_are_batched_by_shape(
    editor: StudentEditor, forwards: list[int]
) -> None:
    sizes = [(64, 64), (120, 60), (64, 64), (60, 120)]
    jobs = [EditJob(photograph(i, size), ("snow",), 0) for i, size in enumerate(sizes)]
    assert [p.size for p in editor.edit(jobs)] == [(64, 64), (64, 32), (64, 64), (32, 64)]
    assert sorted(forwards) == [1] * (2 * STEPS) + [2] * STEPS


def test_an_edit_is_the_sampler_of_the_notes_on_the_student(editor: StudentEditor) -> None:
    """Written out: predict, re-noise with fresh noise, repeat; the last prediction is decoded."""
    image, prompt = photograph(5), editor.export.prompts["fog"]
    model = editor.editor
    shapes = [(1, 4, 4), (1, 4, 4)]
    conditions = batch_conditions(
        [model.encode_prompt(prompt, [image])], model.encode_images([image]), shapes
    )
    shape = (16, conditions.sources.shape[-1])
    x0 = torch.zeros(1, *shape)
    with torch.no_grad(), editor.adapters.use(STUDENT):
        for step, sigma in enumerate(student_sigmas(STEPS, 3.0)):
            x = (1 - sigma) * x0 + sigma * gaussian(shape, 9, "edit", 0, step)[None]
            x0 = x - sigma * model.velocity(x, torch.tensor([sigma]), conditions)
    expected = (model.decode(x0, (4, 4))[0].permute(1, 2, 0).numpy() * 255).round()
    got = pixels(editor.edit([EditJob(image, ("fog",), 9)])[0])
    assert np.abs(got - expected).max() <= 1
    # The effect, the seed and the adapter each matter.
    for other in (EditJob(image, ("neon",), 9), EditJob(image, ("fog",), 10)):
        assert np.abs(pixels(editor.edit([other])[0]) - got).max() > 1


def test_two_effects_are_one_instruction_or_one_edit_on_another(
    editor: StudentEditor, forwards: list[int]
) -> None:
    image = photograph(2)
    pair = ("snow", "neon")
    together = EditJob(image, pair, 4)
    assert editor.instructions(together) == ["<snow_T0> make it snow, then <neon_T7> make it neon"]
    editor.edit([together])
    assert len(forwards) == STEPS
    in_turn, first = editor.edit([EditJob(image, pair, 4, "in_turn"), EditJob(image, ("snow",), 4)])
    # Both first edits share their forwards; the second edit runs alone.
    assert forwards[STEPS:] == [2] * STEPS + [1] * STEPS
    again = editor._edit_once([first], [editor.export.prompts["neon"]], [(4, "edit", 1)])[0]
    assert np.abs(pixels(in_turn) - pixels(again)).max() <= 1


def test_weights_of_another_model_are_an_input_error(
    tiny_export: StudentExport, tmp_path: Path
) -> None:
    from dataclasses import replace

    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="pytorch_lora_weights"):
        StudentEditor(replace(tiny_export, folder=tmp_path), "cpu", "float32")


def test_a_photograph_is_brought_to_what_a_model_sees() -> None:
    def geometry(square: bool) -> Geometry:
        return Geometry(ImageSizes(64, 56, square), fit_area, 16)

    wide = Image.new("RGB", (900, 300), "red")
    wide.paste("blue", (300, 0, 600, 300))
    cut = prepare(wide, geometry(square=True))
    assert cut.size == (128, 128)
    assert np.unique(np.asarray(cut).reshape(-1, 3), axis=0).tolist() == [[0, 0, 255]]
    assert prepare(wide, geometry(square=False)).size == (128, 43)
    small = Image.new("RGB", (100, 50))
    assert prepare(small, geometry(square=False)) is small
