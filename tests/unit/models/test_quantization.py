"""A base of 8 bits a weight: it loads, adapters go on it, gradients still point the same way."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import MODULES
from pipeline.models.adapters import BASE, Adapters
from pipeline.models.editor import Conditions
from pipeline.models.families import load_editor
from pipeline.models.quantization import KINDS, Quantize
from tests.unit.tiny import seeded

BASE_FOLDER = Path("pipeline/miniature/base")
SHAPES = [(1, 4, 4), (1, 4, 4)]
RATE = 3e-3

pytest.importorskip("torchao")


class Student:
    """The miniature with one adapter on it, at bf16, and a flow-matching loss on fixed samples."""

    def __init__(self, quantize: Quantize | None, dtype: torch.dtype = torch.bfloat16) -> None:
        self.editor = load_editor(BASE_FOLDER, ["transformer"], dtype=dtype, quantize=quantize)
        self.adapters = Adapters(self.editor.transformer)
        self.adapters.add("student", 8, 8.0, MODULES, seed=1)
        self.adapters.train_only("student")
        # B at zero would leave A without a gradient.
        with torch.no_grad():
            for i, (key, value) in enumerate(self.adapters.state("student").items()):
                if key.endswith("lora_B"):
                    value.copy_(seeded(value.shape, i) / 50)
        config = self.editor.transformer.config
        self.noise, self.x0 = (seeded((4, 16, config.in_channels), seed) for seed in (3, 4))
        self.t = torch.tensor([0.9, 0.7, 0.5, 0.2])
        words = seeded((4, 9, config.joint_attention_dim), 5)
        sources = seeded((4, 16, config.in_channels), 6)
        self.conditions = Conditions(words, None, sources, SHAPES)

    def velocity(self, *names: str) -> Tensor:
        t = self.t[:, None, None]
        x_t = (1 - t) * self.x0 + t * self.noise
        with self.adapters.use(*names):
            return self.editor.velocity(x_t, self.t, self.conditions)

    def loss(self) -> Tensor:
        with self.adapters.use("student"):
            loss = (self.velocity("student") - (self.noise - self.x0)).pow(2).mean()
            loss.backward()
        return loss.detach()

    def gradient(self) -> Tensor:
        """Of all the adapter's tensors that have one, in one row."""
        for parameter in self.adapters.parameters("student"):
            parameter.grad = None
        self.loss()
        return torch.cat(
            [p.grad.flatten() for p in self.adapters.parameters("student") if p.grad is not None]
        )


@pytest.fixture(scope="module")
def exact() -> Student:
    return Student(None)


def bytes_of(module: nn.Module, kind: str) -> int:
    """Of the blocks' linear layers as they are stored."""
    total = 0
    for name, parameter in module.named_parameters():
        if name.startswith("transformer_blocks") and name.endswith(kind):
            parts = getattr(parameter, "tensor_data_names", None)
            tensors = [parameter] if parts is None else [getattr(parameter, p) for p in parts]
            total += sum(t.numel() * t.element_size() for t in tensors)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_point_as_bf16s_do_and_the_student_learns(exact: Student, kind: Quantize) -> None:
    student = Student(kind)
    stored = bytes_of(student.editor.transformer, "base_layer.weight")
    assert stored < 0.6 * bytes_of(exact.editor.transformer, "base_layer.weight")
    # Layers outside of the blocks are as they were.
    assert type(student.editor.transformer.proj_out.weight) is nn.Parameter

    expected, found = exact.gradient(), student.gradient()
    assert found.shape == expected.shape and expected.norm() > 0
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) >= 0.99
    assert not torch.equal(found, expected)

    optimizer = torch.optim.AdamW(student.adapters.parameters("student"), lr=RATE)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(student.loss().item())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.dtype == torch.float32 for p in student.adapters.parameters("student"))


@torch.no_grad()
def test_a_batch_may_mix_adapters_on_it() -> None:
    student = Student("int8", torch.float32)
    mixed = student.velocity("student", BASE, BASE, "student")
    for i, name in enumerate(("student", BASE, BASE, "student")):
        assert (mixed[i] - student.velocity(name)[i]).abs().max() < 1e-3
    assert (mixed[1] - student.velocity("student")[1]).abs().max() > 0.05
