"""Our edits against stock diffusers': one and two source pictures, three aspect ratios."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from torch import Tensor

from pipeline.config import MODULES
from pipeline.models.geometry import image_sizes
from pipeline.models.processor import load_processor
from tests.unit.models.parity import PROMPT, Ours, write_pictures, write_random_lora

BASE = Path("pipeline/miniature/base")
STEPS, SHIFT = 4, 3.0
CLOSE = 1e-4
# The last picture decides the edit's shape.
SOURCES = [
    ["square"],
    ["wide"],
    ["tall"],
    ["wide", "square"],
    ["tall", "wide"],
    ["wide", "tall"],
]
SIZES = {"square": (64, 64), "wide": (64, 32), "tall": (32, 64)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "effect.safetensors"
    return write_random_lora(path, BASE, MODULES, 0.08)


@pytest.fixture(scope="module")
def ours(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return Ours(BASE, lora, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pipeline(lora: Path) -> Iterator[QwenImageEditPlusPipeline]:
    """The stock pipeline under the same LoRA file, told the miniature's picture sizes."""
    sizes, patch = image_sizes(BASE), pytest.MonkeyPatch()
    patch.setattr(stock, "VAE_IMAGE_SIZE", sizes.side**2)
    patch.setattr(stock, "CONDITION_IMAGE_SIZE", sizes.condition_side**2)
    made = QwenImageEditPlusPipeline.from_pretrained(
        BASE, processor=load_processor(BASE / "processor"), torch_dtype=torch.float32
    )
    made.load_lora_weights(lora.parent, weight_name=lora.name)
    made.set_progress_bar_config(disable=True)
    yield made
    patch.undo()


def theirs(
    pipeline: QwenImageEditPlusPipeline, ours: Ours, sources: list[Path], **given: Any
) -> Tensor:
    """The stock pipeline's picture ``[1, 3, H, W]`` from our initial noise."""
    # Its constant 64 is the length of the real tokenizer's system part.
    pipeline.prompt_template_encode_start_idx = ours.encoder.editor.template_length
    width, height = SIZES[sources[-1].stem]
    sample, _ = ours.encode(sources)
    return pipeline(
        image=[Image.open(path) for path in sources],
        prompt=PROMPT,
        height=height,
        width=width,
        latents=ours.noise(sample, 1),
        output_type="pt",
        **given,
    ).images


@pytest.mark.parametrize("names", SOURCES, ids="+".join)
def test_our_teacher_is_the_stock_pipeline(
    pipeline: QwenImageEditPlusPipeline, ours: Ours, pictures: dict[str, Path], names: list[str]
) -> None:
    sources = [pictures[name] for name in names]
    edited = theirs(
        pipeline, ours, sources, negative_prompt="", true_cfg_scale=4.0, num_inference_steps=20
    )
    assert edited.shape[2:] == SIZES[names[-1]][::-1]
    mine = ours.teacher(sources, 1, 20, guidance=4.0, keep_norm=True)
    assert (mine - edited).abs().max() < CLOSE


@pytest.mark.parametrize("names", SOURCES, ids="+".join)
def test_our_student_is_the_stock_pipeline(
    pipeline: QwenImageEditPlusPipeline, ours: Ours, pictures: dict[str, Path], names: list[str]
) -> None:
    sources = [pictures[name] for name in names]
    plain, pipeline.scheduler = (
        pipeline.scheduler,
        FlowMatchEulerDiscreteScheduler(shift=SHIFT, stochastic_sampling=True),
    )
    torch.manual_seed(7)
    try:
        edited = theirs(pipeline, ours, sources, true_cfg_scale=1.0, num_inference_steps=STEPS)
    finally:
        pipeline.scheduler = plain
    # The scheduler draws from the global generator, after the last step, too.
    torch.manual_seed(7)
    shape = ours.noise(ours.encode(sources)[0], 1).shape
    draws = [torch.randn(shape) for _ in range(STEPS)]
    mine = ours.student(sources, 1, draws, SHIFT)
    assert (mine - edited).abs().max() < CLOSE


def test_the_comparison_can_tell(ours: Ours, pictures: dict[str, Path]) -> None:
    """The order of the sources, the norm and the adapter each change the picture."""
    wide, square = pictures["wide"], pictures["square"]
    both = ours.teacher([wide, square], 1, 4, 4.0, keep_norm=True)
    others = [
        ours.teacher([square, square], 1, 4, 4.0, keep_norm=True),
        ours.teacher([square], 1, 4, 4.0, keep_norm=True),
        ours.teacher([wide, square], 1, 4, 4.0, keep_norm=False),
    ]
    for other in others:
        assert (other - both).abs().max() > 100 * CLOSE
