"""An export of a random student on a random model: for tests of what serves it, not of pictures."""

from pathlib import Path

import torch

from pipeline.config import LoraSettings, ModelSettings, StudentSettings
from pipeline.editing.student_export import StudentExport, read_export
from pipeline.prompting import EffectPrompts
from pipeline.stages.export import export_student
from tests.tiny_model import WIDTH, write_tiny_model

EFFECTS = ("snow", "fog", "sepia", "mosaic", "vignette", "night_rain", "old_film", "neon")
STEPS = 3


def write_tiny_export(folder: Path, effects: tuple[str, ...] = EFFECTS) -> StudentExport:
    """``folder/model`` and ``folder/student``, read back."""
    model = write_tiny_model(folder / "model")
    rng = torch.Generator().manual_seed(7)
    weights = {}
    for block in range(4):
        module = f"transformer_blocks.{block}.attn.to_q"
        weights[f"{module}.lora_A"] = torch.randn(4, WIDTH, generator=rng) * 0.5
        weights[f"{module}.lora_B"] = torch.randn(WIDTH, 4, generator=rng) * 0.5
    prompts = [EffectPrompts(e, f"<{e}_T{i}>", f"make it {e}", e) for i, e in enumerate(effects)]
    lora = LoraSettings(rank=4, alpha=4.0)
    student = StudentSettings(steps=STEPS, shift=3.0, lora=lora)
    settings = ModelSettings(path=str(model))
    export_student(weights, lora, student, prompts, settings, "0" * 16, folder / "student")
    return read_export(folder / "student")
