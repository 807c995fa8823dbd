"""An export of a random student on the miniature's base: for tests of what serves it."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import LoraSettings, ModelSettings, StudentSettings
from pipeline.editing.student_export import StudentExport, read_export
from pipeline.prompting import EffectPrompts
from pipeline.stages.export import export_student

BASE = Path("pipeline/miniature/base")
WIDTH = 128
EFFECTS = ("snow", "fog", "sepia", "mosaic", "vignette", "night_rain", "old_film", "neon")
STEPS = 3


def tiny_weights() -> dict[str, Tensor]:
    """Random weights on the queries of four blocks, as ``Adapters.state`` names them."""
    rng = torch.Generator().manual_seed(7)
    weights = {}
    for block in range(4):
        module = f"transformer_blocks.{block}.attn.to_q"
        weights[f"{module}.lora_A"] = torch.randn(4, WIDTH, generator=rng) * 0.3
        weights[f"{module}.lora_B"] = torch.randn(WIDTH, 4, generator=rng) * 0.3
    return weights


def write_tiny_export(folder: Path) -> StudentExport:
    """``folder``, read back."""
    prompts = [EffectPrompts(e, f"<{e}_T{i}>", f"make it {e}", e) for i, e in enumerate(EFFECTS)]
    lora = LoraSettings(rank=4, alpha=4.0)
    student = StudentSettings(steps=STEPS, shift=3.0, lora=lora)
    settings = ModelSettings(path=str(BASE))
    export_student(tiny_weights(), lora, student, prompts, settings, "0" * 16, folder)
    return read_export(folder)


@cache
def _written(root: Path) -> StudentExport:
    return write_tiny_export(root / "tiny_export")


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> StudentExport:
    """One export for all tests that only read it."""
    return _written(tmp_path_factory.getbasetemp())
