"""Transformers from folders: what is read, and how much memory it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from pipeline.models.adapters import Adapters
from pipeline.models.loading import (
    BaseRows,
    empty_transformer,
    load_transformer,
    outer_layers,
    weight_files,
)
from tests.unit.tiny import MODULES, tiny_editor


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_editor().transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, float]:
    """A folder of a few hundred megabytes in shards, its size, and the sum of its weights."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        num_layers=3, num_attention_heads=6, joint_attention_dim=64, in_channels=64
    )
    model.save_pretrained(folder / "transformer", max_shard_size="40MB")
    files = weight_files(folder / "transformer")
    assert len(files) > 4
    total = sum(p.double().sum().item() for p in model.parameters())
    return folder, sum(path.stat().st_size for path in files), total


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1.1), ("bfloat16", 0.8)])
def test_peak_of_loading_a_sharded_folder(
    large: tuple[Path, int, float], tiny: Path, dtype: str, share: float
) -> None:
    folder, size, total = large
    assert size > 200 * 2**20
    ran = subprocess.run(
        [sys.executable, "-m", "tests.unit.models.load_peak", str(tiny), str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["dtype"] == f"torch.{dtype}"
    # It is all there, and took room: else there would be no peak to speak of.
    assert found["sum"] == pytest.approx(total, abs=1e-2 * abs(total) + 1)
    assert 0.45 * size < found["peak"] <= share * size


def test_rows_are_the_files_own(tiny: Path) -> None:
    model = load_transformer(QwenImageTransformer2DModel, tiny, "cpu", torch.float32)
    Adapters(model).add("student", 2, 2.0, MODULES, seed=0)
    rows = BaseRows(tiny)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            half = len(parameter) // 2
            assert torch.equal(rows(name, 0, half), parameter[:half])
            assert torch.equal(rows(name, half, len(parameter)), parameter[half:])


def test_an_empty_transformer_has_no_weights_but_all_else(tiny: Path) -> None:
    empty = empty_transformer(QwenImageTransformer2DModel, tiny, torch.bfloat16)
    full = load_transformer(QwenImageTransformer2DModel, tiny, "cpu", torch.bfloat16)
    shapes = {name: (p.shape, p.dtype) for name, p in full.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in empty.named_parameters()} == shapes
    assert all(p.is_meta and not p.requires_grad for p in empty.parameters())
    # Not in the files: made when the class is.
    assert torch.equal(empty.pos_embed.pos_freqs, full.pos_embed.pos_freqs)
    assert "proj_out" in outer_layers(empty)
    assert not any("transformer_blocks" in name for name in outer_layers(empty))


def test_weight_files_stay_in_their_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 safetensors files"):
        weight_files(tmp_path)
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside of its folder"):
        weight_files(tmp_path)
