"""``collectionlora convert``: through the command, as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.models.lora_formats import LoraModule, read_lora, write_lora
from tests.unit.malformed.good_bank import TO_Q, TRANSFORMER, WIDTH

NAME = "lora_unet_transformer_blocks_0_attn_to_q"
TEXT = '[{"effect": "snow", "trigger": "<snow_ab12>"}]'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    (tmp_path / "model" / "transformer" / "config.json").write_text(json.dumps(TRANSFORMER))
    return tmp_path / "model"


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"{NAME}.lora_down.weight": torch.randn(2, WIDTH, generator=rng),
        f"{NAME}.lora_up.weight": torch.randn(WIDTH, 2, generator=rng),
        f"{NAME}.alpha": torch.tensor(0.5),
    }
    metadata = {"effects": TEXT, "ss_network_dim": "2", "sshs_model_hash": "of the old names"}
    save_file(tensors, tmp_path / "kohya.safetensors", metadata)
    return tmp_path / "kohya.safetensors"


def test_one_layout_after_another_keeps_bits_scale_and_metadata(
    tmp_path: Path, base: Path, kohya: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = kohya
    for out, layout in (
        ("a.safetensors", "diffusers"),
        ("b.safetensors", "comfyui"),
        ("c", "peft"),
    ):
        given = ["convert", str(source), str(tmp_path / out), "--to", layout]
        # Only the flattened names need the model.
        assert main([*given, "--base", str(base)] if source == kohya else given) == 0
        said = capsys.readouterr().out
        assert f"{out}: 1 modules, rank 2, scale 0.25, in {layout} layout" in said
        source = tmp_path / out
    original = read_lora(kohya, {TO_Q: (WIDTH, WIDTH)}).modules[TO_Q]
    lora = read_lora(source)
    assert torch.equal(lora.modules[TO_Q].down, original.down)
    assert torch.equal(lora.modules[TO_Q].up, original.up)
    assert lora.modules[TO_Q].scale == 0.25
    assert lora.metadata == {"effects": TEXT, "ss_network_dim": "2"}


def test_a_folder_of_diffusers_is_taken(
    tmp_path: Path, base: Path, kohya: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "student"
    out = student / "pytorch_lora_weights.safetensors"
    assert main(["convert", str(kohya), str(out), "--to", "diffusers", "--base", str(base)]) == 0
    assert main(["convert", str(student), str(tmp_path / "peft"), "--to", "peft"]) == 0
    assert read_lora(tmp_path / "peft").modules[TO_Q].scale == 0.25
    assert "neither of adapter_model" in refused(capsys, base, tmp_path / "x", "--to", "peft")


def refused(capsys: pytest.CaptureFixture[str], *given: object) -> str:
    assert main(["convert", *map(str, given)]) == 2
    return capsys.readouterr().err


def test_what_is_refused(
    tmp_path: Path, base: Path, kohya: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert "give the model's folder as well" in refused(capsys, kohya, out, "--to", "diffusers")
    other = {"_class_name": "SanaTransformer2DModel"}
    (base / "transformer" / "config.json").write_text(json.dumps(other))
    said = refused(capsys, kohya, out, "--to", "diffusers", "--base", base)
    assert "not one of QwenImageTransformer2DModel, FluxTransformer2DModel" in said
    small = TRANSFORMER | {"num_attention_heads": 2}
    (base / "transformer" / "config.json").write_text(json.dumps(small))
    said = refused(capsys, kohya, out, "--to", "diffusers", "--base", base)
    assert f"{TO_Q}: the model's layer is (64, 64) wide" in said
    assert "no such file" in refused(capsys, tmp_path / "no.safetensors", out, "--to", "comfyui")
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "layout", "remedy"),
    [
        ("out", "diffusers", "end it in .safetensors"),
        ("out.bin", "comfyui", "end it in .safetensors"),
        ("out.safetensors", "peft", "name a folder"),
        ("model", "peft", "remove what is there"),
        ("kohya.safetensors", "comfyui", "remove what is there"),
    ],
)
def test_nothing_is_overwritten_or_misnamed(
    name: str,
    layout: str,
    remedy: str,
    tmp_path: Path,
    base: Path,
    kohya: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = kohya.read_bytes()
    assert remedy in refused(capsys, kohya, tmp_path / name, "--to", layout, "--base", base)
    assert kohya.read_bytes() == before
    assert (base / "transformer" / "config.json").is_file()


def test_comfyui_finds_the_double_blocks_of_flux(tmp_path: Path, base: Path) -> None:
    """Their names are Qwen-Image's as well: the base tells them apart."""
    flux = {
        "_class_name": "FluxTransformer2DModel",
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "axes_dims_rope": [4, 6, 6],
    }
    (base / "transformer" / "config.json").write_text(json.dumps(flux))
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(source, {TO_Q: LoraModule(torch.ones(2, 32), torch.ones(32, 2))}, {})
    given = ["convert", str(source), str(out), "--to", "comfyui", "--base", str(base)]
    assert main(given) == 0
    assert f"transformer.{TO_Q}.lora_down.weight" in load_file(out)
