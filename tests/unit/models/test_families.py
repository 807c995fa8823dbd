"""Which family a folder is of, without loading it."""

import json
from pathlib import Path

import pytest

from pipeline.config import ModelSettings, load_recipe
from pipeline.dry_run import lora_parameters
from pipeline.models.families import FLUX_KONTEXT, QWEN_IMAGE_EDIT, family_of, geometry_of
from pipeline.models.lora_formats import transformer_shapes

BASE = Path("pipeline/miniature/base")


def write_index(folder: Path, content: object) -> Path:
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


def test_the_folders_own_index_says_it(tmp_path: Path) -> None:
    assert family_of(BASE) is QWEN_IMAGE_EDIT
    assert family_of(write_index(tmp_path, {"_class_name": "FluxKontextPipeline"})) is FLUX_KONTEXT


@pytest.mark.parametrize("content", [{"_class_name": "StableDiffusionPipeline"}, {}, [1]])
def test_other_folders_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match="not one of QwenImageEditPlusPipeline, Flux"):
        family_of(write_index(tmp_path, content))
    with pytest.raises(ValueError, match="no such file"):
        family_of(tmp_path / "nowhere")


def test_both_families_have_tokens_of_16_pixels_at_full_size(tmp_path: Path) -> None:
    configs = {
        QWEN_IMAGE_EDIT: {"temperal_downsample": [False, True, True]},
        FLUX_KONTEXT: {"block_out_channels": [128, 256, 512, 512]},
    }
    for family, config in configs.items():
        (tmp_path / "vae").mkdir(exist_ok=True)
        (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
        geometry = geometry_of(tmp_path, family)
        assert geometry.target((3000, 2000)) == (1024, 672)
        assert geometry.tokens((1024, 672)) == (1, 42, 64)


def test_the_recipe_is_on_all_linear_layers_of_the_full_size_blocks(tmp_path: Path) -> None:
    recipe = load_recipe("pipeline/recipes/flux_kontext.yaml")
    assert recipe.teach.lora == recipe.student.lora
    write_index(tmp_path, {"_class_name": "FluxKontextPipeline"})
    (tmp_path / "transformer").mkdir()
    # The class's own defaults are FLUX.1's sizes.
    config = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    shapes = transformer_shapes(tmp_path)
    endings = tuple(f".{module}" for module in recipe.student.lora.modules)
    chosen = {name for name in shapes if name.endswith(endings)}
    assert chosen == {name for name in shapes if "transformer_blocks." in name}
    # 19 double-stream blocks of 14 layers, 38 single-stream ones of 6.
    assert len(chosen) == 19 * 14 + 38 * 6
    double = 8 * 2 * 3072 + 4 * (3072 + 12288) + 2 * (3072 + 6 * 3072)
    single = 3 * 2 * 3072 + (3072 + 12288) + (15360 + 3072) + (3072 + 3 * 3072)
    settings = recipe.model_copy(update={"model": ModelSettings(path=str(tmp_path))})
    assert lora_parameters(settings) == 128 * (19 * double + 38 * single) == 687_341_568
    # The published samples a round, and no forward of more than one.
    group = recipe.cluster.student_group
    assert recipe.distill.batch * group.logical_ranks == 8 and group.micro_batch == 1
