"""`init` on a new user's folder: what it finds, what it asks, what it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path, PurePath

import pytest
import yaml

from pipeline.cli import main
from pipeline.config import load_recipe
from pipeline.miniature.effects import KNOWN
from pipeline.models.lora_formats import LoraFile, write_lora
from pipeline.onboarding.bank_text import bank_text
from pipeline.onboarding.init import init
from pipeline.onboarding.names import effect_name, same_effect, training_step
from pipeline.onboarding.prompts import prompt_of
from pipeline.onboarding.recipe_text import RecipeAnswers, recipe_text
from pipeline.onboarding.survey import survey
from pipeline.problems import InputError
from pipeline.validation import validate
from pipeline.yaml_file import parse_yaml
from tests.newcomer import BASE, BLANK, EFFECTS, PAIRS, modules_of, write_newcomer
from tests.unit.malformed.good_bank import lora, write_image


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_newcomer(tmp_path_factory.mktemp("newcomer") / "My Effects", pairs=3)


@pytest.fixture
def mine(kept: Path, tmp_path: Path) -> Path:
    """A folder of one's own to write into."""
    return Path(shutil.copytree(kept, tmp_path / "My Effects"))


def test_five_loras_in_four_layouts_are_found_with_their_pairs_and_prompts(mine: Path) -> None:
    said = init(mine, BASE)
    bank = yaml.safe_load((mine / "bank.yaml").read_text())
    effects = {entry["name"]: entry for entry in bank["effects"]}
    assert tuple(effects) == EFFECTS
    for name, entry in effects.items():
        assert entry["prompt"] == (None if name == BLANK else KNOWN[name].prompt)
        assert (mine / entry["adapter"]).is_file()
        first = mine / PAIRS[name][0].format("000")
        assert first.is_relative_to(mine / entry["pairs"])
        assert set(entry) == {"name", "prompt", "adapter", "pairs", "category", "weight"}
    assert effects["snow"]["adapter"] == "snow.safetensors", "the last checkpoint of two"
    text = (mine / "bank.yaml").read_text()
    for layout in ("diffusers", "ComfyUI", "Kohya", "peft"):
        assert f"{layout} layout" in text
    assert len(text.splitlines()) < 70
    assert bank["photographs"] == "photos" and len(bank["test"]) == 2
    assert "fill in 1 blank prompts" in said and "PROMPT IS BLANK" in said
    assert "snow-000100.safetensors: another of snow.safetensors, not taken" in said


def test_a_blank_prompt_is_named_and_filled_in_all_is_good(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(mine), "--base", str(BASE)]) == 0
    recipe, bank = mine / "recipe.yaml", mine / "bank.yaml"
    assert main(["validate", str(recipe)]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1 and "bank.yaml" in errors and "prompt" in errors
    bank.write_text(bank.read_text().replace("prompt:   # BLANK", "prompt: mirror it   # BLANK"))
    assert main(["validate", str(recipe)]) == 0
    found, read = validate(recipe)
    # Held-out photographs are in no training.
    assert not set(read.test) & set(read.photographs)
    assert len(read.photographs) + len(read.test) == 10
    assert found.distill.p_switch == 1 and not read.general
    assert found.student.steps == 4, "a small base has the small base's settings"


def test_the_recipe_of_a_wide_base_has_the_published_settings(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"transformer_blocks.0.attn.to_q": (3072, 3072)}
    monkeypatch.setattr("pipeline.onboarding.init.transformer_shapes", lambda base: layers)
    monkeypatch.setattr("pipeline.onboarding.survey.lora_problems", lambda lora, layers: [])
    lora = LoraFile(mine / "snow.safetensors", modules_of("snow"))
    monkeypatch.setattr("pipeline.onboarding.survey.read_lora", lambda path, layers: lora)
    init(mine, BASE)
    recipe = load_recipe(mine / "recipe.yaml")
    assert (recipe.student.steps, recipe.student.lora.rank, recipe.distill.rounds) == (8, 128, 5000)
    assert recipe.model.dtype == "bfloat16" and recipe.cluster.teacher_pool.num_gpus == 1
    assert recipe.targets.guidance == 5.0 and recipe.distill.learning_rate == 1e-4


def test_an_address_is_fetched_and_kept_in_the_recipe(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "hf://owner/edit"

    def fetch(path: str | Path) -> Path:
        return BASE if str(path) == address else Path(path)

    for module in ("onboarding.init", "models.lora.check", "models.families"):
        monkeypatch.setattr(f"pipeline.{module}.local_model", fetch)
    assert main(["init", str(mine), "--base", address]) == 0
    assert load_recipe(mine / "recipe.yaml").model.path == address


def test_nothing_of_the_users_is_written_over(mine: Path) -> None:
    init(mine, BASE)
    before = (mine / "bank.yaml").read_bytes()
    with pytest.raises(InputError, match=r"bank\.yaml.*exists already"):
        init(mine, BASE)
    (mine / "bank.yaml").unlink()
    with pytest.raises(InputError, match=r"recipe\.yaml.*exists already"):
        init(mine, BASE)
    assert not (mine / "bank.yaml").exists()
    (mine / "recipe.yaml").unlink()
    init(mine, BASE)
    assert (mine / "bank.yaml").read_bytes() == before


def test_what_cannot_be_used_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "snow.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    for arguments, said in (
        (["nowhere", "--base", str(BASE)], "no such folder"),
        ([str(tmp_path / "empty"), "--base", str(BASE)], "neither a LoRA"),
        ([str(tmp_path / "pickled"), "--base", str(BASE)], "not safetensors, never opened"),
        ([str(tmp_path / "empty"), "--base", str(tmp_path)], "not a model's folder"),
        ([str(tmp_path / "empty")], "which model?"),
    ):
        assert main(["init", *arguments]) == 2
        errors = capsys.readouterr().err
        assert said in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.rglob("*.yaml"))


def test_a_broken_lora_is_passed_over_and_said(mine: Path) -> None:
    (mine / "broken.safetensors").write_bytes(b"no safetensors")
    said = init(mine, BASE)
    assert "broken.safetensors" in said and "not taken" in said
    assert "broken" not in (mine / "bank.yaml").read_text()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("qwen_edit_snow-lora_v2.safetensors", "snow"),
        ("Qwen-Image-Edit-2509-Neon Sign.safetensors", "neon_sign"),
        ("flux_kontext_dev_old_film-step_000600.safetensors", "old_film"),
        ("snow_pairs", "snow"),
        ("snow/pytorch_lora_weights.safetensors", "snow"),
        ("snow/peft/adapter_model.safetensors", "snow"),
        ("snow/train/pairs", "snow"),
        ("snow/lora_v2.safetensors", "snow"),
        ("lora.safetensors", "lora"),
        ("qwen.safetensors", "qwen"),
        ("雪.safetensors", "effect"),
        ("Blüte.safetensors", "blute"),
        ("Blu\u0308te.safetensors", "blute"),
    ],
)
def test_names_of_effects(path: str, name: str) -> None:
    assert effect_name(PurePath(path)) == name


def test_steps_and_likeness_of_names() -> None:
    assert training_step(PurePath("snow-000100.safetensors")) == 100
    assert training_step(PurePath("snow.safetensors")) == float("inf")
    assert same_effect("snow", "heavy_snow") and not same_effect("rain_snow", "heavy_snow")


def test_a_prompt_is_taken_from_the_likeliest_place(tmp_path: Path) -> None:
    lora = tmp_path / "snow.safetensors"
    metadata = {"trigger_word": "snw", "instance_prompt": "make it snow"}
    found = prompt_of(lora, metadata, [])
    assert found is not None and found.text == "make it snow"
    lora.with_suffix(".txt").write_text("  cover it\n with snow ")
    found = prompt_of(lora, metadata, [])
    assert found is not None and (found.text, found.origin) == ("cover it with snow", "snow.txt")
    targets = [tmp_path / f"{i}.png" for i in range(4)]
    for path, caption in zip(targets, ("a", "a", "b", "c"), strict=True):
        path.with_suffix(".txt").write_text(caption)
    captions = prompt_of(None, {}, targets)
    assert captions is not None and captions.text == "a"
    targets[1].with_suffix(".txt").write_text("d")
    assert prompt_of(None, {}, targets) is None
    assert prompt_of(None, {}, []) is None


def write_pair(folder: Path, source: str, target: str) -> None:
    write_image(folder / source, 1)
    write_image(folder / target, 2)


@pytest.mark.parametrize("name", ["360", "on", "no", "1e5", "null", "2024"])
def test_a_name_that_yaml_would_read_as_something_else_is_quoted(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_lora(folder / f"{name}x" / f"{name}.safetensors", lora(), {})
    folder.joinpath(f"{name}x", f"{name}.txt").write_text(name)
    found = survey(folder, None)
    effect = replace(found.effects[0], name=name)
    found.effects[:] = [effect]
    (entry,) = parse_yaml(bank_text(found, []))["effects"]
    assert (entry["name"], entry["prompt"]) == (name, name)
    answers = RecipeAnswers(name, name, name, name, width=128, general=False)
    recipe = parse_yaml(recipe_text(answers))
    assert [recipe[key] for key in ("name", "bank", "output")] == [name] * 3
    assert recipe["model"]["path"] == name


def test_the_sources_of_pairs_are_no_photographs(tmp_path: Path) -> None:
    for number in "123":
        write_pair(tmp_path, f"snow/sources/{number}.png", f"snow/targets/{number}.png")
    write_image(tmp_path / "unlabelled" / "1.png", 3)
    found = survey(tmp_path, None)
    assert found.photographs == tmp_path / "unlabelled"
    (effect,) = found.effects
    assert effect.name == "snow" and len(effect.pairs.pairs) == 3


def test_the_shallowest_folder_of_a_kind_is_taken_and_the_others_said(tmp_path: Path) -> None:
    write_pair(tmp_path, "a_snow/1_source.png", "a_snow/1_target.png")
    for number, place in enumerate(
        ("a_snow/deep/photos", "a_snow/test", "sources", "photos", "test")
    ):
        write_image(tmp_path / place / "1.png", number)
    found = survey(tmp_path, None)
    assert found.photographs == tmp_path / "photos" and found.test == tmp_path / "test"
    assert sorted(found.notes) == [
        "a_snow/deep/photos: another of photos, not taken",
        "a_snow/test: another of test, not taken",
        "sources: another of photos, not taken",
    ]


def test_names_that_a_to_z_cannot_tell_are_effects_of_their_own(tmp_path: Path) -> None:
    for name in ("雪", "雪-000100", "雨", "Снег_v1", "Дождь_v1"):
        write_lora(tmp_path / f"{name}.safetensors", lora(), {})
    write_pair(tmp_path, "雨/1_source.png", "雨/1_target.png")
    found = survey(tmp_path, None)
    adapters = {effect.adapter.stem: effect for effect in found.effects if effect.adapter}
    assert adapters.keys() == {"雪", "雨", "Снег_v1", "Дождь_v1"}
    assert len({effect.name for effect in found.effects}) == len(found.effects) == 4
    assert found.notes == ["雪-000100.safetensors: another of 雪.safetensors, not taken"]
    assert adapters["雨"].pairs_folder == tmp_path / "雨" and not adapters["雪"].pairs.pairs


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "snow.txt").write_text("make it snow", encoding="utf-8-sig")
    found = prompt_of(tmp_path / "snow.safetensors", {}, [])
    assert found is not None and found.text == "make it snow"
