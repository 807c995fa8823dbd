"""A student that begins with a finished one is that one."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.distill.start import begin_with, start_weights
from pipeline.distill.update import FAKE, STUDENT
from pipeline.models.adapters import Adapters
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import LoraModule, read_lora, write_lora
from tests.tiny_model import write_tiny_model


def adapters_of(model: Path, alpha: float) -> Adapters:
    adapters = Adapters(load_editor(str(model), ["transformer"], "cpu", torch.float32).transformer)
    for name in (STUDENT, FAKE):
        adapters.add(name, 2, alpha, ("attn.to_q",), seed=1)
    return adapters


def test_a_student_adds_what_its_start_adds_whatever_their_alphas(tmp_path: Path) -> None:
    adapters = adapters_of(write_tiny_model(tmp_path / "model"), alpha=8.0)
    rng = torch.Generator().manual_seed(0)
    shapes = {key: value.shape for key, value in adapters.state(STUDENT).items()}
    modules = {
        key.removesuffix(".lora_A"): LoraModule(
            torch.randn(shape, generator=rng),
            torch.randn(shapes[key.replace("lora_A", "lora_B")], generator=rng),
            alpha=3.0,
        )
        for key, shape in shapes.items()
        if key.endswith("lora_A")
    }
    write_lora(tmp_path / "start.safetensors", modules, {})
    fake = {k: torch.randn(v.shape, generator=rng) for k, v in adapters.state(FAKE).items()}
    save_file(fake, tmp_path / "fake.safetensors")

    begin_with(adapters, tmp_path / "start.safetensors", tmp_path / "fake.safetensors", 8.0 / 2)

    state = adapters.state(STUDENT)
    for name, module in read_lora(tmp_path / "start.safetensors").modules.items():
        mine = 8.0 / 2 * state[f"{name}.lora_B"] @ state[f"{name}.lora_A"]
        torch.testing.assert_close(mine, 3.0 / 2 * module.up @ module.down)
    for key, value in adapters.state(FAKE).items():
        torch.testing.assert_close(value, fake[key], rtol=0, atol=0)


def test_without_a_fake_score_of_its_own_it_begins_at_the_students_weights(tmp_path: Path) -> None:
    adapters = adapters_of(write_tiny_model(tmp_path / "model"), alpha=2.0)
    modules = {
        k.removesuffix(".lora_A"): LoraModule(v + 1, torch.ones(v.shape[1], 2))
        for k, v in adapters.state(STUDENT).items()
        if k.endswith("lora_A")
    }
    write_lora(tmp_path / "start.safetensors", modules, {})
    begin_with(adapters, tmp_path / "start.safetensors", None, 1.0)
    student = adapters.state(STUDENT)
    for key, value in adapters.state(FAKE).items():
        assert torch.equal(value, student[key]) and value is not student[key]
    assert start_weights(modules, 1.0).keys() == adapters.state(STUDENT).keys()
