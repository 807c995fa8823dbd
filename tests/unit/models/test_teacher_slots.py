"""Teachers change places by a copy into a slot of the same shape, and by injection otherwise."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.adapters import BASE, Adapters, TeacherCache
from pipeline.models.lora_formats import content_hash, write_lora
from pipeline.models.qwen_image_edit import QwenImageEditor
from tests.unit.models.test_adapters import CONDITIONS, T, X
from tests.unit.tiny import tiny_editor, tiny_lora

RANKS = {"attn.to_q": 2, "img_mlp.net.2": 5}
# Of one shape, but with scales of their own; the last is of other ranks.
KINDS = [
    (RANKS, {"attn.to_q": 1.0}),
    (RANKS, {"img_mlp.net.2": 7.5}),
    (RANKS, {}),
    ({"attn.to_q": 3, "txt_mod.1": 1}, {}),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """(content hash, file) of four teachers."""
    folder, written = tmp_path_factory.mktemp("teachers"), []
    for i, (ranks, alphas) in enumerate(KINDS):
        path = folder / f"{i}.safetensors"
        write_lora(path, tiny_lora(tiny_editor(), ranks, dict(alphas), i), {})
        written.append((content_hash(path), path))
    return written


@torch.no_grad()
def velocity(editor: QwenImageEditor, adapters: Adapters, *names: str) -> Tensor:
    with adapters.use(*names):
        return editor.velocity(X, T, CONDITIONS)


def fresh(file: tuple[str, Path]) -> Tensor:
    """Under a teacher that was injected for the purpose."""
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    TeacherCache(adapters, 1).ensure(dict([file]))
    return velocity(editor, adapters, file[0])


def test_a_slot_is_written_over_and_gives_the_same_bits(files: list[tuple[str, Path]]) -> None:
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    cache = TeacherCache(adapters, resident=1)
    expected = [fresh(file) for file in files]
    assert (expected[0] - expected[1]).abs().max() > 0.1
    for turn in (0, 1, 2, 0, 1):
        cache.ensure(dict([files[turn]]))
        assert torch.equal(velocity(editor, adapters, files[turn][0]), expected[turn])
    assert (cache.loads, cache.injections) == (5, 1)
    # The tensors are those of the first: nothing was made anew.
    assert len([m for m in editor.transformer.modules() if type(m).__name__ == "MasterLinear"]) == 4


def test_another_shape_is_injected_and_comes_back_right(files: list[tuple[str, Path]]) -> None:
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    cache = TeacherCache(adapters, resident=2)
    expected = [fresh(file) for file in files]
    for turn in (0, 3, 1, 3, 2, 0, 3):
        cache.ensure(dict([files[turn]]))
        assert torch.equal(velocity(editor, adapters, files[turn][0]), expected[turn]), turn
    # 0 and 3 were injected; then the teachers of one shape took turns in one slot.
    assert (cache.loads, cache.injections) == (5, 2)


def test_slots_of_one_batch_are_not_written_over(files: list[tuple[str, Path]]) -> None:
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    cache = TeacherCache(adapters, resident=2)
    cache.ensure(dict(files[:2]))
    cache.ensure(dict(files[1:3]))
    names = [files[1][0], files[2][0], BASE, files[1][0], files[2][0]]
    mixed = velocity(editor, adapters, *names)
    for i, name in enumerate(names):
        assert (mixed[i] - velocity(editor, adapters, name)[i]).abs().max() < 1e-5
    assert torch.equal(velocity(editor, adapters, files[1][0]), fresh(files[1]))
    assert torch.equal(velocity(editor, adapters, files[2][0]), fresh(files[2]))


def test_a_written_over_teacher_is_forgotten_wholly(files: list[tuple[str, Path]]) -> None:
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    cache = TeacherCache(adapters, resident=1)
    bare = velocity(editor, adapters, BASE)
    cache.ensure(dict([files[0]]))
    cache.ensure(dict([files[1]]))
    assert adapters.state(files[0][0]) == {}
    assert len(adapters.state(files[1][0])) == 4
    adapters.remove(files[1][0])
    assert adapters.state(files[1][0]) == {}
    assert torch.equal(velocity(editor, adapters, BASE), bare)


def test_masters_stay_fp32_and_multiply_at_the_bases_precision() -> None:
    editor = tiny_editor()
    editor.transformer.to(torch.bfloat16)
    adapters = Adapters(editor.transformer)
    adapters.add("student", 4, 4.0, ["attn.to_q"], seed=0)
    adapters.add("policy", 4, 4.0, ["attn.to_q"], seed=1, masters=False)
    adapters.train_only("student")
    weights = {k: torch.randn_like(v) / 8 for k, v in adapters.state("student").items()}
    adapters.replace("student", weights)
    adapters.replace("policy", weights)
    assert {v.dtype for v in adapters.state("student").values()} == {torch.float32}
    assert {v.dtype for v in adapters.state("policy").values()} == {torch.bfloat16}
    # So a policy rolled out in half the memory is the student in training, bit by bit.
    student = velocity(editor, adapters, "student")
    assert torch.equal(student, velocity(editor, adapters, "policy"))
    assert not torch.equal(student, velocity(editor, adapters, BASE))
    seen: list[torch.dtype] = []
    layer = editor.transformer.transformer_blocks[0].attn.to_q
    assert isinstance(layer, nn.Module)
    layer.lora_A["student"].register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    with adapters.use("student"):
        editor.velocity(X, T, CONDITIONS).square().mean().backward()
    assert seen == [torch.bfloat16]
    gradients = [p.grad for p in adapters.parameters("student")]
    assert all(g is not None and g.dtype == torch.float32 and g.any() for g in gradients)
