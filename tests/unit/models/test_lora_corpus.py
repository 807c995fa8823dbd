"""Every layout of one adapter moves the velocity as the reference, merged by hand, does."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.editor import batch_conditions, concatenate
from pipeline.models.lora_formats import (
    LAYOUTS,
    Layout,
    LoraModule,
    content_hash,
    linear_shapes,
    lora_problems,
    read_lora,
    write_lora,
)
from pipeline.models.qwen_image_edit import QwenImageEditor
from tests.unit.models.lora_corpus import CORPUS, Sample, reference
from tests.unit.tiny import CHANNELS, COLUMNS, PROMPT, ROWS, seeded, tiny_editor

each_sample = pytest.mark.parametrize("sample", CORPUS, ids=[s.name for s in CORPUS])
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    # Two blocks: what the last one does to the text is never seen in the picture.
    return tiny_editor(blocks=2)


@pytest.fixture(scope="module")
def shapes(editor: QwenImageEditor) -> dict[str, tuple[int, int]]:
    return linear_shapes(editor.transformer)


@pytest.fixture(scope="module")
def lora(shapes: dict[str, tuple[int, int]]) -> dict[str, LoraModule]:
    return reference(shapes)


@torch.no_grad()
def velocity(
    editor: QwenImageEditor, transformer: torch.nn.Module | None = None, copies: int = 1
) -> Tensor:
    """At a fixed point; ``transformer`` in the place of the editor's own."""
    tokens = ROWS * COLUMNS
    shape = (1, ROWS, COLUMNS)
    one = batch_conditions([seeded((5, PROMPT), 2)], [seeded((tokens, CHANNELS), 3)], [shape] * 2)
    other = copy.copy(editor)
    if transformer is not None:
        other.transformer = transformer  # type: ignore[assignment]
    x = seeded((1, tokens, CHANNELS), 1).expand(copies, -1, -1)
    return other.velocity(x, torch.full((copies,), 0.7), concatenate(*[one] * copies))


def merged(editor: QwenImageEditor, lora: dict[str, LoraModule], scaled: bool = True) -> Tensor:
    """The velocity with ``alpha / rank * up @ down`` added to each weight, in double precision."""
    transformer = copy.deepcopy(editor.transformer)
    for name, m in lora.items():
        weight = transformer.get_submodule(name).weight
        alpha = m.rank if m.alpha is None or not scaled else m.alpha
        delta = alpha / m.rank * (m.up.double() @ m.down.double())
        weight.data = (weight.double() + delta).float()
    return velocity(editor, transformer)


@pytest.fixture(scope="module")
def expected(editor: QwenImageEditor, lora: dict[str, LoraModule]) -> Tensor:
    return merged(editor, lora)


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def test_the_reference_can_tell(
    editor: QwenImageEditor, lora: dict[str, LoraModule], expected: Tensor
) -> None:
    assert len(CORPUS) >= 12
    assert distance(velocity(editor), expected) > 0.1
    # A reader that drops alphas is seen, and so is one that leaves any single module out.
    assert distance(merged(editor, lora, scaled=False), expected) > 1e-2
    for name in lora:
        rest = {n: m for n, m in lora.items() if n != name}
        assert distance(merged(editor, rest), expected) > 20 * TOLERANCE, name


@each_sample
def test_every_layout_gives_the_references_velocity(
    sample: Sample,
    tmp_path: Path,
    editor: QwenImageEditor,
    shapes: dict[str, tuple[int, int]],
    lora: dict[str, LoraModule],
    expected: Tensor,
) -> None:
    file = read_lora(sample.make(lora, tmp_path), shapes)
    assert file.modules.keys() == lora.keys()
    assert lora_problems(file, shapes) == []
    fresh = copy.deepcopy(editor.transformer)
    adapters = Adapters(fresh)
    adapters.add_file("read", file)
    with adapters.use("read"):
        assert distance(velocity(editor, fresh), expected) < TOLERANCE


@pytest.mark.parametrize("sample", [s for s in CORPUS if s.stock], ids=lambda s: s.name)
def test_stock_diffusers_agrees(
    sample: Sample,
    tmp_path: Path,
    editor: QwenImageEditor,
    lora: dict[str, LoraModule],
    expected: Tensor,
) -> None:
    transformer = stock_loaded(editor, sample.make(lora, tmp_path))
    assert distance(velocity(editor, transformer), expected) < TOLERANCE


def stock_loaded(editor: QwenImageEditor, path: Path) -> QwenImageTransformer2DModel:
    transformer = copy.deepcopy(editor.transformer)
    state, metadata = QwenImageLoraLoaderMixin.lora_state_dict(path, return_lora_metadata=True)
    QwenImageLoraLoaderMixin.load_lora_into_transformer(state, transformer, "a", metadata=metadata)
    return transformer


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_stock_diffusers_loads_what_is_written(
    layout: Layout,
    tmp_path: Path,
    editor: QwenImageEditor,
    lora: dict[str, LoraModule],
    expected: Tensor,
) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, {}, layout)
    assert distance(velocity(editor, stock_loaded(editor, path)), expected) < TOLERANCE


def test_comfyuis_rule_gives_the_velocity_from_what_is_written(
    tmp_path: Path, editor: QwenImageEditor, lora: dict[str, LoraModule], expected: Tensor
) -> None:
    """Its loader in short: look up ``diffusion_model.<layer>``, multiply by alpha / rank."""
    write_lora(tmp_path / "lora.safetensors", lora, {}, "comfyui")
    tensors = load_file(tmp_path / "lora.safetensors")
    transformer = copy.deepcopy(editor.transformer)
    for name, layer in transformer.named_modules():
        stem = f"diffusion_model.{name}"
        if f"{stem}.lora_up.weight" in tensors:
            up, down = (tensors.pop(f"{stem}.lora_{part}.weight") for part in ("up", "down"))
            layer.weight.data += tensors.pop(f"{stem}.alpha").item() / down.shape[0] * (up @ down)
    assert tensors == {}
    assert distance(velocity(editor, transformer), expected) < TOLERANCE


def test_peft_loads_what_is_written(
    tmp_path: Path, editor: QwenImageEditor, lora: dict[str, LoraModule], expected: Tensor
) -> None:
    write_lora(tmp_path / "adapter", lora, {}, "peft")
    model = PeftModel.from_pretrained(copy.deepcopy(editor.transformer), tmp_path / "adapter")
    assert distance(velocity(editor, model.base_model.model), expected) < TOLERANCE


@each_sample
def test_a_bank_may_mix_them(
    sample: Sample,
    tmp_path: Path,
    editor: QwenImageEditor,
    lora: dict[str, LoraModule],
    expected: Tensor,
) -> None:
    """One batch under this file, a file of ours and the bare base, as teachers are scored."""
    path = sample.make(lora, tmp_path)
    path = path / "adapter_model.safetensors" if path.is_dir() else path
    first = {"transformer_blocks.0.attn.to_q": lora["transformer_blocks.0.attn.to_q"]}
    write_lora(tmp_path / "ours.safetensors", first, {})
    fresh = copy.deepcopy(editor.transformer)
    cache = TeacherCache(Adapters(fresh), resident=2)
    # Ours first: flattened names are looked up on a transformer that has adapters on it already.
    ours, theirs = content_hash(tmp_path / "ours.safetensors"), content_hash(path)
    cache.ensure({ours: tmp_path / "ours.safetensors"})
    cache.ensure({theirs: path})
    with cache.adapters.use(ours, theirs, "__base__"):
        v = velocity(editor, fresh, copies=3)
    assert distance(v[1:2], expected) < TOLERANCE
    assert distance(v[:1], merged(editor, first)) < TOLERANCE
    assert distance(v[2:], velocity(editor)) < TOLERANCE


@each_sample
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips_are_exact(
    sample: Sample,
    layout: Layout,
    tmp_path: Path,
    shapes: dict[str, tuple[int, int]],
    lora: dict[str, LoraModule],
) -> None:
    read = read_lora(sample.make(lora, tmp_path), shapes).modules
    out = tmp_path / ("peft" if layout == "peft" else "out.safetensors")
    write_lora(out, read, {"recipe_hash": "0123", "effects": '["snow", "é"]'}, layout)
    again = read_lora(out)
    assert again.metadata == {"recipe_hash": "0123", "effects": '["snow", "é"]'}
    assert again.modules.keys() == read.keys()
    for name, m in again.modules.items():
        assert m.down.dtype == read[name].down.dtype
        assert torch.equal(m.down, read[name].down)
        assert torch.equal(m.up, read[name].up)
        assert m.scale == read[name].scale


def test_the_three_layouts_in_a_ring_give_the_first_files_bytes(
    tmp_path: Path, lora: dict[str, LoraModule]
) -> None:
    metadata = {"recipe_hash": "0123"}
    last = tmp_path / "0.safetensors"
    write_lora(last, lora, metadata)
    first = last.read_bytes()
    for i, layout in enumerate(("comfyui", "peft", "diffusers")):
        read = read_lora(last)
        last = tmp_path / f"{i + 1}{'' if layout == 'peft' else '.safetensors'}"
        write_lora(last, read.modules, read.metadata, layout)  # type: ignore[arg-type]
    assert last.read_bytes() == first


def test_the_hash_of_pefts_file_covers_its_config(
    tmp_path: Path, lora: dict[str, LoraModule]
) -> None:
    write_lora(tmp_path / "a", lora, {}, "peft")
    file = tmp_path / "a" / "adapter_model.safetensors"
    before = content_hash(file)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    assert content_hash(file) != before
