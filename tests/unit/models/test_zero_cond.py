"""Qwen-Image-Edit-2511's transformer: ``zero_cond_t`` modulates the sources as at t = 0."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from torch import Tensor

from pipeline.config import MODULES
from pipeline.models.adapters import BASE, Adapters
from pipeline.models.editor import Conditions
from pipeline.models.families import load_editor
from pipeline.models.geometry import image_sizes
from pipeline.models.lora_formats import read_lora
from pipeline.models.processor import load_processor
from tests.unit.models.parity import PROMPT, Ours, write_pictures, write_random_lora
from tests.unit.tiny import seeded

MINIATURE = Path("pipeline/miniature/base")
CLOSE, STEPS, SHIFT = 1e-4, 4, 3.0
SHAPES = [(1, 4, 4), (1, 4, 4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with the switch on: it adds no weights."""
    folder = tmp_path_factory.mktemp("zero_cond") / "base"
    shutil.copytree(MINIATURE, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"zero_cond_t": True}))
    return folder


@pytest.fixture(scope="module")
def lora(base: Path) -> Path:
    return write_random_lora(base.parent / "lora" / "effect.safetensors", base, MODULES, 0.08)


@pytest.fixture(scope="module")
def ours(base: Path, lora: Path) -> Ours:
    return Ours(base, lora, base.parent / "store")


@pytest.fixture(scope="module")
def pipeline(base: Path, lora: Path) -> Iterator[QwenImageEditPlusPipeline]:
    sizes, patch = image_sizes(base), pytest.MonkeyPatch()
    patch.setattr(stock, "VAE_IMAGE_SIZE", sizes.side**2)
    patch.setattr(stock, "CONDITION_IMAGE_SIZE", sizes.condition_side**2)
    made = QwenImageEditPlusPipeline.from_pretrained(
        base, processor=load_processor(base / "processor"), torch_dtype=torch.float32
    )
    made.load_lora_weights(lora.parent, weight_name=lora.name)
    made.set_progress_bar_config(disable=True)
    assert made.transformer.config.zero_cond_t
    yield made
    patch.undo()


@pytest.mark.parametrize("names", [["square"], ["tall", "wide"]], ids="+".join)
def test_teacher_and_student_are_the_stock_pipeline(
    pipeline: QwenImageEditPlusPipeline, ours: Ours, tmp_path: Path, names: list[str]
) -> None:
    sources = [write_pictures(tmp_path)[name] for name in names]
    pipeline.prompt_template_encode_start_idx = ours.encoder.editor.template_length
    sample, _ = ours.encode(sources)
    rows, columns = sample.grid
    given = {
        "image": [Image.open(path) for path in sources],
        "prompt": PROMPT,
        "height": rows * 16,
        "width": columns * 16,
        "latents": ours.noise(sample, 1),
        "output_type": "pt",
    }
    edited = pipeline(
        **given, negative_prompt="", true_cfg_scale=4.0, num_inference_steps=20
    ).images
    mine = ours.teacher(sources, 1, 20, guidance=4.0, keep_norm=True)
    assert (mine - edited).abs().max() < CLOSE

    plain = pipeline.scheduler
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT, stochastic_sampling=True)
    torch.manual_seed(7)
    fast = pipeline(**given, true_cfg_scale=1.0, num_inference_steps=STEPS).images
    pipeline.scheduler = plain
    torch.manual_seed(7)
    draws = [torch.randn(given["latents"].shape) for _ in range(STEPS)]
    assert (ours.student(sources, 1, draws, SHIFT) - fast).abs().max() < CLOSE


@torch.no_grad()
def test_the_switch_matters_and_a_batch_may_mix_adapters(base: Path, lora: Path) -> None:
    """Modulation then sees each sample twice, at t and at 0, under its own adapter."""
    file = read_lora(lora)

    def mixed_velocity(folder: Path) -> Tensor:
        made = load_editor(folder, ["transformer"])
        adapters = Adapters(made.transformer)
        adapters.add_file("effect", file)
        channels, words = made.transformer.config.in_channels, 9
        x, t = seeded((3, 16, channels), 1), torch.tensor([0.9, 0.5, 0.2])
        embeds = seeded((3, words, made.transformer.config.joint_attention_dim), 2)
        conditions = Conditions(embeds, None, seeded((3, 16, channels), 3), SHAPES)
        names = ("effect", BASE, "effect")
        with adapters.use(*names):
            mixed = made.velocity(x, t, conditions)
        for i, name in enumerate(names):
            with adapters.use(name):
                alone = made.velocity(x[i : i + 1], t[i : i + 1], conditions.rows([i]))
            assert (mixed[i] - alone[0]).abs().max() < CLOSE
        return mixed

    with_switch = mixed_velocity(base)
    without = mixed_velocity(MINIATURE)
    assert (with_switch - without).abs().max() > 100 * CLOSE
