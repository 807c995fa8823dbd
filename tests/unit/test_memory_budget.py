"""The budget against closed forms at the true size, and against real bytes in the miniature."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel

from pipeline.config import MODULES, inspect_recipe, load_recipe, vary
from pipeline.dry_run import memory_lines, memory_load
from pipeline.memory_budget import (
    CARDS,
    GB,
    KEPT,
    OVERHEAD,
    Load,
    activation_bytes,
    base_bytes,
    describe,
    student_budget,
    teacher_budget,
)
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Conditions
from pipeline.models.families import load_editor
from pipeline.models.quantization import KINDS
from pipeline.models.sizes import BaseSize, base_size, size_of
from tests.unit.models.test_lora_full_size import CONFIG
from tests.unit.tiny import seeded

MINIATURE = "pipeline/miniature/base"
LORA = 1_179_648_000
TOKENS = 2 * 64 * 64 + 324
LOW_MEMORY = "qwen_image_edit_2509_low_memory"
# A recipe's cards as it is, and with the flags of its header.
CARDS_OF = {
    "qwen_image_edit_2509": [("8", "80"), ("4", "80"), ("1", "141")],
    "qwen_image_edit_2511": [("8", "80"), ("4", "80"), ("1", "141")],
    LOW_MEMORY: [("2", "80"), ("8", "48")],
}
RECIPES = list(CARDS_OF)
FULL_SHAPES = ((1, 64, 64), (1, 64, 64))
PUBLISHED = Load(
    bytes_a_weight=2,
    quantized=False,
    lora=LORA,
    workers=1,
    checkpointing=True,
    average=False,
    samples=3,
    scored=4,
    tokens=TOKENS,
    teachers=4,
)


@pytest.fixture(scope="module")
def full() -> BaseSize:
    with torch.device("meta"):
        return size_of(QwenImageTransformer2DModel.from_config(CONFIG))


def test_the_true_size_in_closed_form(full: BaseSize) -> None:
    width = 3072
    # A block: attention 8, the two MLPs 8 each, the two modulations 6 each, in squares of width.
    assert full.quantisable == 60 * (8 + 16 + 12) * width**2 == 20_384_317_440
    assert full.rows == 60 * (8 + 10 + 12) * width
    assert (full.blocks, full.width) == (60, width)
    assert base_bytes(full, PUBLISHED) == pytest.approx(41e9, rel=0.01)
    assert base_bytes(full, replace(PUBLISHED, quantized=True)) == pytest.approx(20.5e9, rel=0.01)

    parts = student_budget(full, PUBLISHED).parts
    fp32 = 4 * LORA
    assert fp32 == 4_718_592_000
    assert parts["student and fake masters, fp32"] == 2 * fp32
    assert parts["Adam's moments, fp32"] == 4 * fp32
    assert parts["gradients, fp32, of one at a time"] == fp32
    assert parts["the student's average, fp32"] == parts["two gathered blocks"] == 0
    # Inputs of 60 blocks, and one block's insides, of three samples.
    assert parts["activations (estimate)"] == (60 + KEPT) * 3 * TOKENS * width * 2
    total = 41e9 + 7 * fp32 + (60 + KEPT) * 3 * TOKENS * width * 2 + OVERHEAD
    assert student_budget(full, PUBLISHED).total == pytest.approx(total, rel=0.01)
    assert student_budget(full, replace(PUBLISHED, average=True)).total == pytest.approx(
        total + fp32, rel=0.01
    )
    teachers = teacher_budget(full, PUBLISHED).parts
    assert teachers["policy"] == 2 * LORA
    assert teachers["teachers, 4 slots"] == 8 * LORA


def test_sharding_divides_what_it_can(full: BaseSize) -> None:
    alone = student_budget(full, PUBLISHED).parts
    four = student_budget(full, replace(PUBLISHED, workers=4)).parts
    for part in ("base", "student and fake masters, fp32", "Adam's moments, fp32"):
        assert four[part] == pytest.approx(alone[part] / 4, abs=4)
    assert four["activations (estimate)"] == alone["activations (estimate)"]
    assert four["two gathered blocks"] == pytest.approx((41e9 + 4 * LORA) / 30, rel=0.01)
    quantized = student_budget(full, replace(PUBLISHED, workers=4, quantized=True)).parts
    assert quantized["base"] == base_bytes(full, replace(PUBLISHED, quantized=True))
    assert quantized["two gathered blocks"] == 4 * LORA // 30


def test_cards(full: BaseSize) -> None:
    budget = student_budget(full, PUBLISHED)
    assert budget.cards() == [card for card in CARDS if card * GB >= budget.total] == [96, 141]
    assert "fits on cards of 96, 141 GB" in describe("student", budget)[-1]
    none = student_budget(full, replace(PUBLISHED, samples=60))
    assert none.cards() == []
    assert "none of 24, 40" in describe("student", none)[-1]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_which_cards_they_are_for(full: BaseSize, name: str) -> None:
    """Each ``--set`` line of a recipe's header, and the recipe as it is, fit where they say."""
    path = f"pipeline/recipes/{name}.yaml"
    variants = re.findall(r"^# (\d) x (\d+) GB: (--set .+)$", Path(path).read_text(), re.M)
    (first, *others) = CARDS_OF[name]
    assert [(n, gb) for n, gb, _ in variants] == others
    for count, gb, flags in [(*first, ""), *variants]:
        overrides = flags.removeprefix("--set ").split(" --set ") if flags else []
        recipe, problems = inspect_recipe(path, overrides)
        assert recipe is not None and not problems
        group, pool = recipe.cluster.student_group, recipe.cluster.teacher_pool
        assert group.logical_ranks * group.num_gpus + pool.max * pool.num_gpus == int(count)
        assert group.logical_ranks * recipe.distill.batch == 8  # the published samples a round
        load = replace(memory_load_of(recipe, full), tokens=TOKENS)
        student, teacher = student_budget(full, load), teacher_budget(full, load)
        if count == "1":
            assert student.total + teacher.total <= int(gb) * GB
        else:
            assert int(gb) in student.cards() and int(gb) in teacher.cards(), (count, gb)


def test_the_flux_recipe_is_for_cards_of_80_gb() -> None:
    recipe = load_recipe("pipeline/recipes/flux_kontext.yaml")
    with torch.device("meta"):
        full = size_of(FluxTransformer2DModel.from_config({"guidance_embeds": True}))
    load = memory_load_of(recipe, full, lora=687_341_568)
    student, teacher = student_budget(full, load), teacher_budget(full, load)
    assert student.parts["base"] == pytest.approx(23.8e9, rel=0.01)
    assert 80 in student.cards() and 80 in teacher.cards()
    group, pool = recipe.cluster.student_group, recipe.cluster.teacher_pool
    assert group.logical_ranks + pool.max == 8


def memory_load_of(recipe: object, full: BaseSize, lora: int = LORA) -> Load:
    """As ``--dry-run``, for a model that is not on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dry_run.lora_parameters", lambda recipe: lora)
        return memory_load(recipe, [FULL_SHAPES], 50)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_published_settings(name: str) -> None:
    recipe = load_recipe(f"pipeline/recipes/{name}.yaml")
    assert recipe.model.path == f"hf://Qwen/Qwen-Image-Edit-{name.split('_')[3]}"
    d, lora = recipe.distill, recipe.student.lora
    assert (lora.rank, lora.alpha, lora.modules) == (128, 128, MODULES)
    assert recipe.teach.lora == lora and recipe.teach.steps == 2000
    assert (recipe.student.steps, recipe.student.shift) == (8, 3.0)
    assert (d.rounds, d.fake_updates, d.p_switch, d.grad_clip) == (5000, 5, 0.5, 10.0)
    assert d.learning_rate == d.fake_learning_rate == recipe.teach.learning_rate == 1e-4
    assert (d.tau_max, d.tau_min, d.guidance) == (0.75, 0.5, 5.0)
    assert (d.ema, d.schedule) == (0.0, "constant")
    assert d.betas == (0.9, 0.999)
    assert d.batch * recipe.cluster.student_group.logical_ranks == 8


@pytest.mark.parametrize("quantize", [None, *KINDS])
def test_base_bytes_are_those_of_the_miniature(quantize: str | None) -> None:
    if quantize:
        pytest.importorskip("torchao")
    transformer = load_editor(
        MINIATURE,
        ["transformer"],
        dtype=torch.bfloat16,
        quantize=quantize,  # type: ignore[arg-type]
    ).transformer
    stored = 0
    for parameter in transformer.parameters():
        parts = getattr(parameter, "tensor_data_names", None)
        for tensor in [parameter] if parts is None else [getattr(parameter, p) for p in parts]:
            stored += tensor.numel() * tensor.element_size()
    load = replace(PUBLISHED, quantized=quantize is not None)
    assert base_bytes(base_size(MINIATURE), load) == pytest.approx(stored, rel=0.02)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_activations_are_about_what_autograd_keeps(checkpointing: bool) -> None:
    editor = load_editor(MINIATURE, ["transformer"])
    adapters = Adapters(editor.transformer)
    adapters.add("student", 4, 4.0, MODULES, seed=0)
    adapters.train_only("student")
    config, batch, words = editor.transformer.config, 4, 8
    channels, grid = config.in_channels, (1, 8, 8)
    conditions = Conditions(
        seeded((batch, words, config.joint_attention_dim), 1),
        None,
        seeded((batch, 64, channels), 2),
        [grid, grid],
    )
    if checkpointing:
        editor.transformer.enable_gradient_checkpointing()
    base = {p.untyped_storage().data_ptr() for p in editor.transformer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in base:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with adapters.use("student"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        v = editor.velocity(seeded((batch, 64, channels), 3), torch.full((batch,), 0.5), conditions)
    assert v.requires_grad
    load = replace(
        PUBLISHED,
        bytes_a_weight=4,
        samples=batch,
        tokens=128 + words,
        checkpointing=checkpointing,
    )
    size = base_size(MINIATURE)
    estimate = activation_bytes(size, load)
    one = batch * (128 + words) * size.width * 4
    if checkpointing:
        # The block that is computed again is not there yet.
        estimate -= KEPT * one
    print(checkpointing, sum(kept.values()) / one / size.blocks, "of", estimate / one / size.blocks)
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.25)


def test_the_dry_run_prints_both_processes() -> None:
    recipe = load_recipe("pipeline/recipes/demo.yaml")
    text = "\n".join(memory_lines(recipe, [((1, 4, 4), (1, 4, 4))], 6))
    for part in ("a student process: ", "a teacher process: ", "Adam's moments, fp32"):
        assert part in text
    # Of the average, which the demo has; six effects fill six slots.
    assert "the student's average" in text and "teachers, 6 slots" in text
    assert "one of each on one card" not in text
    shared = vary(
        recipe,
        {"cluster.student_group.num_gpus": 0.5, "cluster.teacher_pool.num_gpus": 0.5},
    )
    assert "one of each on one card" in "\n".join(memory_lines(shared, [FULL_SHAPES], 6))
