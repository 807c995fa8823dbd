"""A whole run through Ray, every part on a share of one GPU: its student is the CPU's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.stages.student import student_weights
from tests.tiny_run import local_environment, pipeline, share_caches, write_inputs, write_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
ON_GPU: dict[str, Any] = {
    "encoder_pool": {"num_gpus": 0.2},
    "teacher_pool": {"num_gpus": 0.3},
    "student_group": {"workers": 1, "num_gpus": 0.3},
}
# Of what six rounds of Adam changed: it amplifies rounding where a gradient is next to nothing.
CLOSE = 0.02


def student_of(inputs: Path, output: str, command: str, cluster: dict[str, Any]) -> dict[str, Any]:
    recipe = write_recipe(
        inputs / f"{output}.yaml", inputs, str(inputs / output), {"cluster": cluster}
    )
    done = pipeline(local_environment(), command, recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (inputs / output / "training").glob("*/student.safetensors")
    return student_weights(file)


def norm(weights: dict[str, Tensor]) -> float:
    return sum(float(w.square().sum()) for key, w in weights.items() if "lora_B" in key) ** 0.5


def test_a_run_on_the_gpu_is_the_cpus(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    gpu = student_of(inputs, "first", "run", ON_GPU)
    assert (inputs / "first" / "report.md").exists()
    share_caches(inputs, "cpu")
    cpu = student_of(inputs, "cpu", "distill", {})
    assert norm(cpu) > 1e-2
    apart = norm({key: gpu[key] - value for key, value in cpu.items()})
    print(f"apart by {apart / norm(cpu):.2g} of what was learned")
    assert apart < CLOSE * norm(cpu)
