"""The second family against stock diffusers': three aspect ratios, teacher and student."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as stock
from PIL import Image
from torch import Tensor

from pipeline.distill.batches import conditions_of
from pipeline.models.adapters import BASE
from pipeline.models.editor import Conditions, concatenate
from pipeline.models.families import KONTEXT_GUIDANCE
from pipeline.models.geometry import kontext_sizes
from tests.tiny_flux import SIDE, write_tiny_flux
from tests.unit.models.parity import PROMPT, Ours, write_pictures, write_random_lora

STEPS, SHIFT = 4, 3.0
CLOSE = 1e-4
SIZES = {"square": (64, 64), "wide": (64, 32), "tall": (32, 64)}
# Layers of both kinds of blocks.
MODULES = ("attn.to_q", "attn.to_out.0", "ff.net.2", "attn.add_k_proj", "proj_mlp", "norm.linear")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_flux(tmp_path_factory.mktemp("flux") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def lora(model: Path) -> Path:
    return write_random_lora(model.parent / "lora" / "effect.safetensors", model, MODULES, 0.3)


@pytest.fixture(scope="module")
def ours(model: Path, lora: Path) -> Ours:
    return Ours(model, lora, model.parent / "store")


@pytest.fixture(scope="module")
def pipeline(model: Path, lora: Path) -> Iterator[FluxKontextPipeline]:
    """The stock pipeline under the same LoRA file, told the miniature's picture sizes."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stock, "PREFERRED_KONTEXT_RESOLUTIONS", kontext_sizes(SIDE))
    made = FluxKontextPipeline.from_pretrained(model, torch_dtype=torch.float32)
    made.load_lora_weights(lora.parent, weight_name=lora.name)
    made.set_progress_bar_config(disable=True)
    yield made
    patch.undo()


def theirs(pipeline: FluxKontextPipeline, ours: Ours, source: Path, **given: Any) -> Tensor:
    """The stock pipeline's picture ``[1, 3, H, W]`` from our initial noise."""
    width, height = SIZES[source.stem]
    sample, _ = ours.encode([source])
    return pipeline(
        image=Image.open(source),
        prompt=PROMPT,
        height=height,
        width=width,
        # It brings every edit to this area.
        max_area=width * height,
        latents=ours.noise(sample, 1),
        guidance_scale=KONTEXT_GUIDANCE,
        output_type="pt",
        **given,
    ).images


def test_the_preferred_sizes_are_the_stock_pipelines() -> None:
    assert kontext_sizes(1024) == stock.PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", SIZES)
def test_our_teacher_is_the_stock_pipeline(
    pipeline: FluxKontextPipeline,
    ours: Ours,
    pictures: dict[str, Path],
    name: str,
    guidance: float,
) -> None:
    given = {} if guidance == 1 else {"negative_prompt": "", "true_cfg_scale": guidance}
    edited = theirs(pipeline, ours, pictures[name], num_inference_steps=20, **given)
    assert edited.shape[2:] == SIZES[name][::-1]
    mine = ours.teacher([pictures[name]], 1, 20, guidance, keep_norm=False)
    assert (mine - edited).abs().max() < CLOSE


@pytest.mark.parametrize("name", SIZES)
def test_our_student_is_the_stock_pipeline(
    pipeline: FluxKontextPipeline, ours: Ours, pictures: dict[str, Path], name: str
) -> None:
    plain, pipeline.scheduler = (
        pipeline.scheduler,
        FlowMatchEulerDiscreteScheduler(shift=SHIFT, stochastic_sampling=True),
    )
    torch.manual_seed(7)
    try:
        edited = theirs(pipeline, ours, pictures[name], num_inference_steps=STEPS)
    finally:
        pipeline.scheduler = plain
    torch.manual_seed(7)
    shape = ours.noise(ours.encode([pictures[name]])[0], 1).shape
    draws = [torch.randn(shape) for _ in range(STEPS)]
    mine = ours.student([pictures[name]], 1, draws, SHIFT)
    assert (mine - edited).abs().max() < CLOSE


def test_all_that_the_network_is_told_matters(ours: Ours, pictures: dict[str, Path]) -> None:
    sample, store = ours.encode([pictures["wide"]])
    given = conditions_of([sample], "teacher", store)
    assert given.pooled is not None
    noise, t = ours.noise(sample, 1), torch.tensor([0.7])

    def velocity(conditions: Conditions, adapter: str = "effect") -> Tensor:
        with torch.no_grad(), ours.adapters.use(adapter):
            return ours.editor.velocity(noise, t, conditions)

    whole = velocity(given)
    assert torch.equal(velocity(given), whole)
    (target, source), wide = given.shapes, given.sources
    others = [
        velocity(replace(given, pooled=-given.pooled)),
        velocity(replace(given, embeds=-given.embeds)),
        velocity(replace(given, sources=wide.flip(1))),
        # The same tokens, said to be a picture of another shape.
        velocity(replace(given, shapes=[target, (1, source[2], source[1])])),
        velocity(given, BASE),
    ]
    assert all((other - whole).abs().max() > 1e-3 for other in others)


def test_a_mixed_batch_equals_one_by_one(ours: Ours, pictures: dict[str, Path]) -> None:
    """Prompts, pooled vectors and adapters by row, in both kinds of blocks."""
    encoded = [ours.encode([pictures["wide"]], prompt) for prompt in ("snow", "fog and rain")]
    one, other = (conditions_of([sample], "teacher", store) for sample, store in encoded)
    x, t = torch.cat([ours.noise(encoded[0][0], s) for s in (1, 2)]), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        with ours.adapters.use("effect", BASE):
            both = ours.editor.velocity(x, t, concatenate(one, other))
        with ours.adapters.use("effect"):
            first = ours.editor.velocity(x[:1], t[:1], one)
        with ours.adapters.use(BASE):
            second = ours.editor.velocity(x[1:], t[1:], other)
    assert (both - torch.cat([first, second])).abs().max() < 1e-5
