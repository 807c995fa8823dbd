"""LoRA files: the usual key styles read alike; what is written comes back, in the same bytes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.lora_formats import (
    LoraModule,
    check_lora,
    content_hash,
    read_lora,
    transformer_shapes,
    write_lora,
)
from pipeline.models.safetensors_files import read_header
from tests.unit.malformed.good_bank import TO_Q, TRANSFORMER

DOWN = torch.arange(6.0).reshape(2, 3)
UP = torch.arange(8.0).reshape(4, 2)


def write_model(folder: Path, **changes: object) -> Path:
    (folder / "transformer").mkdir(parents=True)
    config = TRANSFORMER | changes
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "transformer.",
        "diffusion_model.",
        "base_model.model.",
        "base_model.model.transformer.",
        "transformer.base_model.model.",
    ],
)
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_A.snow_1.weight", "lora_B.snow_1.weight"),
        ("lora_down.weight", "lora_up.weight"),
    ],
)
def test_key_styles_read_alike(tmp_path: Path, prefix: str, down: str, up: str) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"{prefix}{TO_Q}.{down}": DOWN, f"{prefix}{TO_Q}.{up}": UP}
    save_file(tensors | {f"{prefix}{TO_Q}.alpha": torch.tensor(8.0)}, path)
    lora = read_lora(path)
    assert list(lora.modules) == [TO_Q]
    module = lora.modules[TO_Q]
    assert torch.equal(module.down, DOWN)
    assert torch.equal(module.up, UP)
    assert (module.alpha, module.rank, module.scale) == (8.0, 2, 4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_written_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "new" / "a.safetensors"
    modules = {
        TO_Q: LoraModule(DOWN.to(dtype), UP.to(dtype), 1.5),
        "transformer_blocks.1.attn.to_out.0": LoraModule(
            DOWN[:1].to(dtype), UP[:, :1].to(dtype), 1.0
        ),
    }
    write_lora(path, modules, {"role": "student", "name": "é"})
    lora = read_lora(path)
    assert lora.metadata == {"role": "student", "name": "é"}
    assert lora.modules.keys() == modules.keys()
    for name, module in modules.items():
        assert torch.equal(lora.modules[name].down, module.down)
        assert torch.equal(lora.modules[name].up, module.up)
        assert lora.modules[name].scale == module.scale
    # Stock diffusers takes a file with .alpha tensors for another style.
    keys = set(load_file(path))
    assert f"transformer.{TO_Q}.lora_A.weight" in keys
    assert all(key.endswith(".weight") for key in keys)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_the_same_lora_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    modules = {name: LoraModule(DOWN, UP) for name in ("b", "a", "c")}
    metadata = {f"key{i}": str(i) for i in range(9)}
    write_lora(first, modules, metadata)
    write_lora(second, dict(reversed(modules.items())), dict(reversed(metadata.items())))
    assert content_hash(first) == content_hash(second)
    assert content_hash(first) == hashlib.sha256(first.read_bytes()).hexdigest()


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, {"m": LoraModule(UP.T[:, :3], DOWN.T)}, {})
    assert torch.equal(read_lora(path).modules["m"].down, UP.T[:, :3])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, {"m": LoraModule(DOWN, UP)}, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not a float type"):
        write_lora(path, {"m": LoraModule(DOWN.int(), UP)}, {})
    with pytest.raises(ValueError, match=r"\[rank, in\]"):
        write_lora(path, {"m": LoraModule(DOWN, DOWN)}, {})
    with pytest.raises(ValueError, match="without modules"):
        write_lora(path, {}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_every_wrong_key_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    keys = ("a.lora_A.weight", "b.lora_B.weight", "c.alpha", "d.bias", "d.lokr_w1")
    save_file({key: torch.ones(1, 1) for key in keys}, path)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_lora(path)
    text = str(error.value)
    for part in (
        "a: lora_B or lora_up is missing",
        "b: lora_A or lora_down is missing",
        "c: lora_A",
        "d.bias: unknown key",
        "LoKr",
    ):
        assert part in text


def test_two_adapters_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        f"m.lora_{part}.{name}.weight": tensor.clone()
        for name in ("one", "two")
        for part, tensor in (("A", DOWN), ("B", UP))
    }
    save_file(tensors, path)
    with pytest.raises(ValueError, match="the same tensor as"):
        read_lora(path)


def test_alpha_from_diffusers_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"transformer.{m}.lora_A.weight": DOWN.clone() for m in (TO_Q, "x.to_k")}
    tensors |= {f"transformer.{m}.lora_B.weight": UP.clone() for m in (TO_Q, "x.to_k")}
    recorded = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"to_k": 6}}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(recorded)})
    modules = read_lora(path).modules
    assert (modules[TO_Q].alpha, modules["x.to_k"].alpha) == (4.0, 6.0)


def test_alpha_from_pefts_config_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.m.lora_A.weight": DOWN, "m.lora_B.weight": UP}, path)
    assert read_lora(path).modules["m"].alpha is None
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 16}')
    assert read_lora(path).modules["m"].scale == 8.0
    (tmp_path / "adapter_config.json").write_text('{"use_rslora": true}')
    with pytest.raises(ValueError, match="use_rslora"):
        read_lora(path)


def test_check_names_module_width_rank_and_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    broken = DOWN.clone()
    broken[1, 2] = float("nan")
    write_lora(
        path,
        {"fits": LoraModule(DOWN, UP), "wide": LoraModule(DOWN, UP), "no": LoraModule(broken, UP)},
        {},
    )
    messages = check_lora(read_lora(path), {"fits": (4, 3), "wide": (4, 5)})
    assert len(messages) == 3
    text = "\n".join(messages)
    assert "no: the model has no such linear layer" in text
    assert "no.lora_A.weight: NaN" in text
    assert "wide: the model's layer is (4, 5) wide" in text
    assert not any(message.startswith("fits") for message in messages)


def test_a_lora_for_another_model_is_reported_briefly(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, {f"block.{i}.to_q": LoraModule(DOWN, UP) for i in range(200)}, {})
    messages = check_lora(read_lora(path), {"other": (4, 3)})
    assert len(messages) == 4
    assert "197 more" in messages[-1] and "block.*.to_q (197)" in messages[-1]


def test_shapes_are_those_of_the_linear_layers(tmp_path: Path) -> None:
    shapes = transformer_shapes(write_model(tmp_path))
    assert shapes[TO_Q] == (128, 128)
    assert shapes["transformer_blocks.1.attn.add_k_proj"] == (128, 128)
    assert shapes["transformer_blocks.0.img_mlp.net.0.proj"] == (512, 128)
    assert shapes["transformer_blocks.0.img_mod.1"] == (768, 128)
    assert shapes["img_in"] == (128, 64)
    assert len([name for name in shapes if name.startswith("transformer_blocks.0.")]) == 14


@pytest.mark.parametrize(
    "changes",
    [{"num_layers": "two"}, {"num_layers": -1}, {"_class_name": None}, {"patch_size": {}}],
)
def test_a_wrong_config_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"config\.json.*; give a diffusers folder"):
        transformer_shapes(write_model(tmp_path, **changes))


def test_any_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, {"m": LoraModule(DOWN, UP, 3.0)}, {"role": "teacher"})
    data = path.read_bytes()
    assert "__metadata__" in read_header(path)
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"a\.safetensors: content"):
            read_lora(path)


@pytest.mark.parametrize(
    ("layer", "flux", "prefix"),
    [
        ("single_transformer_blocks.0.proj_mlp", False, "transformer."),
        ("transformer_blocks.0.ff.net.2", True, "transformer."),
        ("transformer_blocks.0.img_mlp.net.2", False, "diffusion_model."),
    ],
)
def test_comfyui_is_given_the_prefix_that_it_knows_of_the_family(
    layer: str, flux: bool, prefix: str, tmp_path: Path
) -> None:
    """Its loader knows a Flux layer by diffusers' path as ``transformer.<path>`` alone."""
    path = tmp_path / "a.safetensors"
    modules = {layer: LoraModule(DOWN, UP, 3.0), TO_Q: LoraModule(DOWN, UP, 1.0)}
    write_lora(path, modules, {}, "comfyui", flux)
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert load_file(path).keys() == {f"{prefix}{m}.{part}" for m in modules for part in parts}
    read = read_lora(path).modules
    assert read.keys() == modules.keys()
    for name, module in read.items():
        assert torch.equal(module.down, DOWN)
        assert torch.equal(module.up, UP)
        assert module.scale == modules[name].scale
