"""Every malformed input is found before any work, with file, field and remedy in one line."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config_judges import JudgeSettings
from pipeline.model_files import base_problems, judge_problems
from pipeline.models.families import family_of
from pipeline.models.lora_formats import write_lora
from pipeline.problems import InputError
from pipeline.validation import validate
from tests.tiny_flux import write_tiny_flux
from tests.tiny_judges import write_tiny_clip, write_tiny_dino
from tests.tiny_model import write_tiny_model
from tests.unit.malformed.bank_cases import BANK_CASES
from tests.unit.malformed.case import Case
from tests.unit.malformed.file_cases import FILE_CASES
from tests.unit.malformed.good_bank import TO_Q, WIDTH, Work, good_work, lora
from tests.unit.malformed.model_cases import MODEL_CASES
from tests.unit.malformed.recipe_cases import RECIPE_CASES

CASES = (*RECIPE_CASES, *BANK_CASES, *FILE_CASES, *MODEL_CASES)

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def tree(folder: Path) -> dict[str, str]:
    """Every path under a folder, with the hash and the time of what is in it."""
    return {
        str(path.relative_to(folder)): (
            f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
            if path.is_file()
            else "no file"
        )
        for path in folder.rglob("*")
    }


def spoiled(case: Case, folder: Path) -> Work:
    work = good_work(folder / "work")
    case.spoil(work)
    work.save()
    return work


def says(lines: list[str], case: Case, folder: Path) -> bool:
    """One line has file, field and remedy; the temporary folder's own name does not count."""
    short = [line.replace(str(folder), "") for line in lines]
    return any(case.file in x and case.field in x and case.remedy in x for x in short)


def test_a_bank_of_other_layouts_passes(tmp_path: Path) -> None:
    """Flattened names in one file, peft's own in another: the model tells what they mean."""
    work = good_work(tmp_path / "work")
    name = "lora_unet_transformer_blocks_1_txt_mlp_net_0_proj"
    down, up = torch.ones(3, WIDTH), torch.ones(4 * WIDTH, 3)
    save_file(
        {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(6.0),
        },
        work.file("adapters/snow.safetensors"),
    )
    stem = f"base_model.model.{TO_Q}"
    save_file(
        {
            f"{stem}.lora_A.default.weight": down,
            f"{stem}.lora_B.default.weight": up[:WIDTH].clone(),
        },
        work.file("adapters/negative.safetensors"),
    )
    assert len(validate(work.recipe_file)[1].effects) == 2


@pytest.mark.parametrize("place", ["student-of-may", "training/key/student.safetensors"])
def test_a_start_that_no_export_replaces_passes(tmp_path: Path, place: str) -> None:
    """A copy of the export beside it; the finished student that the export was made of."""
    work = good_work(tmp_path / "work")
    start = Path(work.recipe["output"]) / place
    file = start if start.suffix else start / "pytorch_lora_weights.safetensors"
    (layer,) = lora().values()
    write_lora(file, {TO_Q: layer, TO_Q.replace("0", "1"): layer}, {})
    work.recipe["student"] = {"lora": {"rank": 2, "alpha": 2.0, "modules": ["attn.to_q"]}}
    work.recipe["grow"] = {"start_from": str(start), "new_effects": ["snow"]}
    work.save()
    assert validate(work.recipe_file)[0].grow.start_from == str(start)


def test_corpus_is_as_large_as_asked() -> None:
    assert len(CASES) >= 64
    assert len({case.name for case in CASES}) == len(CASES)


def test_good_input_passes(tmp_path: Path) -> None:
    work = good_work(tmp_path / "work")
    before = tree(tmp_path)
    recipe, bank = validate(work.recipe_file, ("distill.rounds=7",))
    assert recipe.distill.rounds == 7
    assert [effect.name for effect in bank.effects] == ["snow", "negative"]
    assert tree(tmp_path) == before


@each_case
def test_validate_names_file_field_and_remedy(case: Case, tmp_path: Path) -> None:
    work = spoiled(case, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError) as error:
        validate(work.recipe_file)
    lines = str(error.value).splitlines()
    assert len(lines) == len(error.value.problems)
    assert says(lines, case, tmp_path), lines
    # A mistake is reported as itself, not as a dozen consequences.
    assert len(lines) <= 4, lines
    assert tree(tmp_path) == before


@each_case
def test_command_exits_with_2(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main

    work = spoiled(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    code: object
    try:
        code = main(["validate", str(work.recipe_file)])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    lines = capfd.readouterr().err.splitlines()
    assert not any("Traceback" in line or "BombWarning" in line for line in lines), lines
    assert says(lines, case, tmp_path), lines
    assert tree(tmp_path) == before


def test_one_report_has_recipe_model_bank_and_files(tmp_path: Path) -> None:
    work = good_work(tmp_path / "work")
    work.recipe["distill"] = {"rounds": 0, "tau_min": 0.9}
    work.recipe["cluster"] = {"teacher_pool": {"max": "two"}}
    work.bank["effects"][1]["trigger"] = "<snow_ab12>"
    work.file("adapters/snow.safetensors").write_bytes(b"PK\x03\x04 pickled")
    work.file("pairs/negative_1_target.png").write_bytes(b"")
    with work.file("general.jsonl").open("a") as rows:
        rows.write("{}\n")
    shutil.rmtree(work.file("test"))
    work.save()
    with pytest.raises(InputError) as error:
        validate(work.recipe_file, ("student.steps=0",))
    fields = {problem.field for problem in error.value.problems}
    assert fields >= {
        "distill.rounds",
        "distill",
        "student.steps",
        "cluster.teacher_pool.max",
        "effects.1.trigger",
        "line 2.image",
        "line 2.prompt",
        "test",
        "content",
    }
    assert sum(problem.field == "content" for problem in error.value.problems) == 2


def test_a_file_wrong_throughout_is_reported_briefly(tmp_path: Path) -> None:
    work = good_work(tmp_path / "work")
    work.file("general.jsonl").write_text("no\n" * 5000)
    with pytest.raises(InputError) as error:
        validate(work.recipe_file)
    assert len(error.value.problems) == 21
    assert "4980 more" in str(error.value)


def test_a_plan_needs_no_weights(tmp_path: Path) -> None:
    work = good_work(tmp_path / "work")
    for path in (work.folder / "model").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match="no weights"):
        validate(work.recipe_file)
    assert validate(work.recipe_file, plan_only=True)[1].effects


@pytest.mark.parametrize("write", [write_tiny_model, write_tiny_flux])
def test_whole_models_of_both_families_lack_nothing(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    model = write(tmp_path / "model")
    assert base_problems(model, family_of(model)) == []


def test_whole_judges_lack_nothing(tmp_path: Path) -> None:
    write_tiny_clip(tmp_path / "clip")
    write_tiny_dino(tmp_path / "dreamsim" / "dino")
    judges = JudgeSettings(
        clip=str(tmp_path / "clip"),
        dino=str(tmp_path / "dreamsim" / "dino"),
        dreamsim=str(tmp_path / "dreamsim"),
    )
    assert list(judge_problems("recipe.yaml", judges)) == []
