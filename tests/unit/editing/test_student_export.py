"""Reading an export that may come from anyone: everything wrong in one report, no path out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.editing.student_export import EFFECTS_FILE, StudentExport, read_export
from pipeline.problems import InputError, Problem
from tests.tiny_export import EFFECTS, STEPS


@pytest.fixture
def folder(tiny_export: StudentExport, tmp_path: Path) -> Path:
    copy = tmp_path / "student"
    shutil.copytree(tiny_export.folder, copy)
    return copy


def problems(folder: Path, base: Path | None = None) -> str:
    with pytest.raises(InputError) as raised:
        read_export(folder, base)
    return str(raised.value)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / EFFECTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_the_export_stage_wrote_is_read(tiny_export: StudentExport) -> None:
    assert tuple(tiny_export.prompts) == EFFECTS
    assert tiny_export.prompts["snow"] == "<snow_T0> make it snow"
    assert (tiny_export.steps, tiny_export.shift) == (STEPS, 3.0)
    # The base is the one that the card names.
    assert (tiny_export.base / "model_index.json").is_file()


def test_an_unknown_effect_is_answered_with_the_nearest(tiny_export: StudentExport) -> None:
    found = tiny_export.check_effects(["snow", "vinette", "qqqqqq", "qqqqqq"], "--effect")
    assert [p.value for p in found] == ["vinette", "qqqqqq"]
    assert found[0].remedy == "nearest: vignette"
    assert found[1].remedy == "it makes snow, fog, sepia, mosaic, vignette, night_rain and 2 more"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "Snow", "x" * 65])
def test_an_effect_name_that_could_be_a_path_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, effects=[{"effect": name, "trigger": "", "prompt": "p"}])
    assert "effects.0.effect" in problems(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"shift": -1}, "shift"),
        ({"effects": []}, "effects"),
        ({"effects": [{"effect": "snow", "prompt": " "}]}, "prompt"),
        ({"effects": [{"effect": "snow", "prompt": "p"}] * 2}, "named twice"),
    ],
)
def test_fields_out_of_range(folder: Path, changes: dict[str, Any], field: str) -> None:
    rewrite(folder, **changes)
    assert field in problems(folder)


def test_all_that_is_missing_comes_in_one_report(folder: Path) -> None:
    (folder / "pytorch_lora_weights.safetensors").unlink()
    (folder / EFFECTS_FILE).write_text("{")
    (folder / "README.md").write_text("no front matter")
    report = problems(folder)
    assert "pytorch_lora_weights" in report and "not JSON" in report and "base_model" in report


def test_another_base_is_said_by_flag(folder: Path, tmp_path: Path) -> None:
    assert "--base" in problems(folder, tmp_path / "nothing")
    (folder / "README.md").write_text("---\nbase_model: [1]\n---\n")
    assert "base_model" in problems(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in problems(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("front", "asked"),
    [
        ('base_model: "owner/edit"', "hf://owner/edit"),
        ('base_model: "owner/edit"\nbase_revision: "v1.0"', "hf://owner/edit@v1.0"),
        ('base_model: "s3://models/edit"', "s3://models/edit"),
    ],
)
def test_a_base_that_is_no_folder_is_fetched(
    front: str, asked: str, folder: Path, tiny_export: StudentExport, fetched: list[str]
) -> None:
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    assert read_export(folder).base == tiny_export.base
    assert read_export(folder, "hf://other/edit").base == tiny_export.base
    assert fetched == [asked, "hf://other/edit"]


def test_what_the_hub_does_not_give_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str | Path) -> Path:
        raise InputError([Problem(str(path), "", None, "the Hub did not give it", "log in")])

    monkeypatch.setattr("pipeline.editing.student_export.local_model", refuse)
    (folder / "README.md").write_text('---\nbase_model: "owner/edit"\n---\n')
    report = problems(folder)
    assert "the Hub did not give it" in report and "--base" in report


@pytest.mark.parametrize("named", ["./owner/edit", "a/b/c", "nowhere", "../edit"])
def test_a_path_is_not_asked_of_the_hub(named: str, folder: Path, fetched: list[str]) -> None:
    (folder / "README.md").write_text(f'---\nbase_model: "{named}"\n---\n')
    assert "no base model there" in problems(folder)
    assert fetched == []


def test_the_commands_take_an_address(
    folder: Path, fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", "--adapter", str(folder), "--base", "hf://owner/edit", "--list"]
    assert main(command) == 0
    assert fetched == ["hf://owner/edit"]
    assert "snow" in capsys.readouterr().out


@pytest.fixture
def fetched(tiny_export: StudentExport, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses asked for; each is answered with the miniature's base, from no network."""
    asked: list[str] = []

    def fetch(path: str | Path) -> Path:
        if "://" not in str(path):
            return Path(path)
        asked.append(str(path))
        return tiny_export.base

    monkeypatch.setattr("pipeline.editing.student_export.local_model", fetch)
    return asked
