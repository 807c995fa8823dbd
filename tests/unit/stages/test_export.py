"""The export, run by the stock pipeline, against our own sampler: the same pictures."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import MODULES, LoraSettings, ModelSettings, StudentSettings
from pipeline.distill.sampler import Velocity, euler_sample, guided_velocity, student_trajectory
from pipeline.distill.schedule import student_sigmas, teacher_sigmas
from pipeline.models.adapters import BASE, Adapters
from pipeline.models.editor import Conditions, batch_conditions
from pipeline.models.families import QWEN_IMAGE_EDIT
from pipeline.models.lora_formats import check_lora, read_lora, transformer_shapes
from pipeline.models.processor import load_processor
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.prompting import EffectPrompts
from pipeline.stages.export import COMFYUI_FILE, WEIGHTS_FILE, export_student, model_card
from pipeline.storage import folder_is_whole

BASE_FOLDER = Path("pipeline/miniature/base")
LORA = LoraSettings(rank=4, alpha=10.0)
STUDENT = StudentSettings(steps=4, shift=3.0, lora=LORA)
PROMPTS = [
    EffectPrompts("snow", "<snow_Ab12Cd34>", "snow falls | softly", "make it snow"),
    EffectPrompts("fog", "", "fog drifts", "make it foggy"),
]
SIDE = 64
GRID = (4, 4)
PROMPT = PROMPTS[0].student


@pytest.fixture(scope="module")
def editor() -> QwenImageEditor:
    return QwenImageEditor.load(BASE_FOLDER, ["transformer", "vae", "text"])


@pytest.fixture(scope="module")
def weights(editor: QwenImageEditor) -> dict[str, Tensor]:
    """Random weights, B included, on our editor under the name ``student``."""
    adapters = Adapters(editor.transformer)
    adapters.add("student", LORA.rank, LORA.alpha, MODULES, seed=0)
    generator = torch.Generator().manual_seed(1)
    state = {
        key: torch.randn(v.shape, generator=generator) * 0.1
        for key, v in adapters.state("student").items()
    }
    adapters.replace("student", state)
    editor.adapters = adapters  # type: ignore[attr-defined]
    return state


@pytest.fixture(scope="module")
def exported(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "student"
    model = ModelSettings(path=str(BASE_FOLDER))
    table = "| method | fidelity |\n|---|---|\n| student | 20.1 |"
    return export_student(weights, LORA, STUDENT, PROMPTS, model, "0123456789ab", folder, table)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[QwenImageEditPlusPipeline]:
    """The stock pipeline, told the miniature's picture sizes."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stock, "VAE_IMAGE_SIZE", SIDE * SIDE)
    patch.setattr(stock, "CONDITION_IMAGE_SIZE", 56 * 56)
    made = QwenImageEditPlusPipeline.from_pretrained(
        BASE_FOLDER,
        processor=load_processor(BASE_FOLDER / "processor"),
        torch_dtype=torch.float32,
    )
    made.set_progress_bar_config(disable=True)
    yield made
    patch.undo()


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def run(
    pipeline: QwenImageEditPlusPipeline, photograph: Image.Image, noise: Tensor, **given: Any
) -> Tensor:
    """The stock pipeline's picture ``[1, 3, H, W]`` from given initial noise."""
    return pipeline(
        image=[photograph],
        prompt=PROMPT,
        height=SIDE,
        width=SIDE,
        latents=noise,
        output_type="pt",
        **given,
    ).images


def noise_of(editor: QwenImageEditor, seed: int) -> Tensor:
    channels = editor.transformer.config.in_channels
    return torch.randn(
        1, GRID[0] * GRID[1], channels, generator=torch.Generator().manual_seed(seed)
    )


def conditions_of(editor: QwenImageEditor, photograph: Image.Image, prompt: str) -> Conditions:
    shape = (1, *GRID)
    return batch_conditions(
        [editor.encode_prompt(prompt, [photograph])],
        editor.encode_images([photograph]),
        [shape, shape],
    )


@torch.no_grad()
def under(
    editor: QwenImageEditor,
    adapter: str,
    sample: Callable[[Velocity, Velocity], Tensor],
    photograph: Image.Image,
) -> Tensor:
    """Our picture: ``sample(cond, uncond)`` under an adapter, decoded."""
    cond, uncond = (conditions_of(editor, photograph, prompt) for prompt in (PROMPT, ""))
    with editor.adapters.use(adapter):  # type: ignore[attr-defined]
        x0 = sample(
            lambda x, t: editor.velocity(x, t, cond), lambda x, t: editor.velocity(x, t, uncond)
        )
    return editor.decode(x0, GRID)


def test_the_stock_pipeline_makes_our_students_picture(
    editor: QwenImageEditor,
    exported: Path,
    pipeline: QwenImageEditPlusPipeline,
    photograph: Image.Image,
) -> None:
    noise = noise_of(editor, 3)
    plain, pipeline.scheduler = (
        pipeline.scheduler,
        FlowMatchEulerDiscreteScheduler.from_pretrained(exported / "scheduler"),
    )
    pipeline.load_lora_weights(exported, weight_name="pytorch_lora_weights.safetensors")
    try:
        # The scheduler draws its noise from the global generator.
        torch.manual_seed(11)
        theirs = run(
            pipeline, photograph, noise, num_inference_steps=STUDENT.steps, true_cfg_scale=1.0
        )
    finally:
        pipeline.unload_lora_weights()
        pipeline.scheduler = plain
    torch.manual_seed(11)
    draws = [torch.randn(noise.shape) for _ in range(STUDENT.steps)]
    sigmas = student_sigmas(STUDENT.steps, STUDENT.shift)

    def sample(cond: Velocity, uncond: Velocity) -> Tensor:
        return student_trajectory(cond, noise, lambda k: draws[k - 1], sigmas)[1][-1]

    ours = under(editor, "student", sample, photograph)
    assert (ours - theirs).abs().max() < 1e-4
    # It can tell: the bare base makes another picture.
    assert (under(editor, BASE, sample, photograph) - theirs).abs().max() > 0.02


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_stock_pipeline_makes_our_teachers_picture(
    editor: QwenImageEditor,
    weights: dict[str, Tensor],
    pipeline: QwenImageEditPlusPipeline,
    photograph: Image.Image,
    guidance: float,
) -> None:
    noise = noise_of(editor, 4)
    given = {} if guidance == 1 else {"negative_prompt": ""}
    theirs = run(
        pipeline, photograph, noise, num_inference_steps=20, true_cfg_scale=guidance, **given
    )

    def sample(cond: Velocity, uncond: Velocity, keep_norm: bool = True) -> Tensor:
        guided = guided_velocity(lambda x, t: (cond(x, t), uncond(x, t)), guidance)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            # Ours leaves out the stock pipeline's rescaling to the conditional norm.
            v = guided(x, t)
            if not keep_norm:
                return v
            return v * (cond(x, t).norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))

        shift = float(editor.scheduler.config["shift"])
        return euler_sample(velocity, noise, teacher_sigmas(20, shift))

    ours = under(editor, BASE, sample, photograph)
    assert (ours - theirs).abs().max() < 1e-4
    plain = under(editor, BASE, lambda c, u: sample(c, u, keep_norm=False), photograph)
    if guidance == 1:
        assert (plain - theirs).abs().max() < 1e-4
    else:
        assert (plain - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("file", [WEIGHTS_FILE, COMFYUI_FILE])
def test_our_own_reader_gives_the_same_lora(
    file: str, exported: Path, weights: dict[str, Tensor]
) -> None:
    lora = read_lora(exported / file)
    assert check_lora(lora, transformer_shapes(BASE_FOLDER)) == []
    assert len(lora.modules) * 2 == len(weights)
    for name, module in lora.modules.items():
        assert torch.equal(module.down, weights[f"{name}.lora_A"])
        assert torch.equal(module.up, weights[f"{name}.lora_B"])
        assert module.scale == 2.5
    assert lora.metadata["recipe_hash"] == "0123456789ab"
    assert json.loads(lora.metadata["schedule"]) == {
        "steps": 4,
        "shift": 3.0,
        "stochastic_sampling": True,
    }
    effects = json.loads((exported / "effects.json").read_text())["effects"]
    assert json.loads(lora.metadata["effects"]) == effects


def test_the_other_file_has_comfyuis_keys(exported: Path, weights: dict[str, Tensor]) -> None:
    tensors = load_file(exported / COMFYUI_FILE)
    # ComfyUI looks up diffusion_model.<path> and multiplies by alpha / rank.
    modules = {key.removesuffix(".lora_A") for key in weights if key.endswith(".lora_A")}
    assert tensors.keys() == {
        f"diffusion_model.{m}.{part}"
        for m in modules
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert {t.item() for key, t in tensors.items() if key.endswith("alpha")} == {10.0}


def test_a_flux_students_other_file_has_the_keys_that_comfyui_knows_of_flux(
    tmp_path: Path,
) -> None:
    """Of double blocks alone, too, whose layers are named as Qwen-Image's are."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    module = "transformer_blocks.0.attn.to_q"
    flux = {f"{module}.lora_A": torch.ones(4, 32), f"{module}.lora_B": torch.ones(32, 4)}
    settings = ModelSettings(path=str(model))
    folder = export_student(flux, LORA, STUDENT, PROMPTS, settings, "0", tmp_path / "student")
    assert load_file(folder / COMFYUI_FILE).keys() == {
        f"transformer.{module}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert read_lora(folder / COMFYUI_FILE).modules[module].scale == 2.5


def test_the_same_student_gives_the_same_bytes(
    exported: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    again = dict(reversed(weights.items()))
    model = ModelSettings(path=str(BASE_FOLDER))
    other = export_student(again, LORA, STUDENT, PROMPTS, model, "0123456789ab", tmp_path / "b")
    for name in (
        WEIGHTS_FILE,
        COMFYUI_FILE,
        "effects.json",
        "scheduler/scheduler_config.json",
    ):
        assert (other / name).read_bytes() == (exported / name).read_bytes()
    assert "## Scores" not in (other / "README.md").read_text()


def test_what_else_is_in_the_folder(exported: Path) -> None:
    assert folder_is_whole(exported, contents=True)
    assert json.loads((exported / "effects.json").read_text()) == {
        "steps": 4,
        "shift": 3.0,
        "effects": [
            {
                "effect": "snow",
                "trigger": "<snow_Ab12Cd34>",
                "prompt": "<snow_Ab12Cd34> snow falls | softly",
            },
            {"effect": "fog", "trigger": "", "prompt": "fog drifts"},
        ],
    }
    scheduler = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["shift"], scheduler["stochastic_sampling"]) == (3.0, True)
    card = (exported / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "README.md", "exec")
    assert "num_inference_steps=4" in code
    assert "true_cfg_scale=1.0" in code
    assert "| student | 20.1 |" in card
    assert "snow falls \\| softly" in card


def test_the_cards_code_runs(
    exported: Path,
    pipeline: QwenImageEditPlusPipeline,
    photograph: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As written, with a path as the card asks, but for the processor (no torchvision here) and
    the small size."""
    card = (exported / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "Run in this folder, with the base model's path on your machine as `BASE`:" in card
    given = f"BASE = {str(BASE_FOLDER)!r}\n"
    assert f"# Relative to where the run was started: put your own path.\n{given}" in code
    code = code.replace(given, f"BASE = {str(BASE_FOLDER.resolve())!r}\n")
    call = type(pipeline).__call__

    def small(self: QwenImageEditPlusPipeline, **given: Any) -> Any:
        return call(self, height=SIDE, width=SIDE, **given)

    def load(path: str, torch_dtype: torch.dtype) -> QwenImageEditPlusPipeline:
        assert (Path(path) / "model_index.json").is_file(), path
        return pipeline

    monkeypatch.setattr(QwenImageEditPlusPipeline, "from_pretrained", load)
    monkeypatch.setattr(QwenImageEditPlusPipeline, "__call__", small)
    monkeypatch.chdir(exported)
    photograph.save("photograph.jpg")
    plain = pipeline.scheduler
    try:
        exec(compile(code, "README.md", "exec"), {})
    finally:
        pipeline.unload_lora_weights()
        pipeline.scheduler = plain
        Path("photograph.jpg").unlink()
    with Image.open("edited.png") as edited:
        assert edited.size == (SIDE, SIDE)
    Path("edited.png").unlink()


@pytest.mark.parametrize(
    ("path", "named", "loads"),
    [
        ("hf://owner/edit", 'base_model: "owner/edit"\nlibrary', "    'owner/edit', torch_dtype"),
        (
            "hf://owner/edit@v1.0",
            'base_model: "owner/edit"\nbase_revision: "v1.0"\n',
            "    'owner/edit', revision='v1.0', torch_dtype",
        ),
        ("models/edit", 'base_model: "./models/edit"\n', "BASE = 'models/edit'\n"),
        ("/models/edit", 'base_model: "/models/edit"\n', "    '/models/edit', torch_dtype"),
        ("s3://models/edit", 'base_model: "s3://models/edit"\n', "no bucket: put the path"),
    ],
)
def test_the_card_names_the_base_and_loads_it(
    path: str, named: str, loads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.export.family_of", lambda path: QWEN_IMAGE_EDIT)
    card = model_card(LORA, STUDENT, PROMPTS, ModelSettings(path=path), "0", None)
    assert named in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "README.md", "exec")
    assert loads in code
