"""The bank: what is read, what a subset keeps, and that nothing in it can leave its folder."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bank import inspect_bank, load_bank
from pipeline.problems import InputError
from tests.unit.malformed.good_bank import good_work, write_rows

in_one_folder = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_a_bank_by_its_folder_or_its_file(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    bank = load_bank(work.bank_file.parent)
    assert bank == load_bank(str(work.bank_file))
    snow, negative = bank.effects
    assert (snow.name, snow.prompt, snow.trigger) == ("snow", "add snow", "<snow_ab12>")
    assert (snow.category, snow.weight, snow.caption) == ("general", 1.0, None)
    assert snow.adapter == work.file("adapters/snow.safetensors")
    assert negative.description == "a photograph with negative"
    assert [p.sources[0].name for p in bank.pairs_of("snow")] == [
        "snow_1_source.png",
        "snow_2_source.png",
    ]
    assert [(row.images[0].name, row.prompt) for row in bank.general] == [
        ("1.png", "make it brighter")
    ]
    assert [p.parent.name for p in bank.photographs + bank.test] == ["photographs", "test"]


def test_a_subset_drops_the_other_effects_and_their_files(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    work.file("pairs/snow_1_source.png").unlink()
    work.file("adapters/snow.safetensors").unlink()
    bank = load_bank(work.bank_file, ["negative"])
    assert [effect.name for effect in bank.effects] == ["negative"]
    assert {pair.effect for pair in bank.pairs} == {"negative"}
    assert bank.pairs_of("snow") == ()


def test_a_subset_keeps_the_banks_order(tmp_path: Path) -> None:
    bank = load_bank(good_work(tmp_path).bank_file, ["negative", "snow"])
    assert [effect.name for effect in bank.effects] == ["snow", "negative"]


def test_an_effect_with_pairs_needs_no_adapter_and_the_reverse(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    del work.bank["effects"][0]["adapter"]
    work.file("pairs.jsonl").write_text(work.file("pairs.jsonl").read_text().splitlines()[0])
    work.save()
    bank = load_bank(work.bank_file)
    assert bank.effects[0].adapter is None
    assert bank.pairs_of("negative") == ()


def test_one_broken_part_does_not_hide_the_others(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    work.bank["effects"][0]["prompt"] = ""
    work.bank["general"] = 3
    work.file("pairs.jsonl").write_text('{"effect": "snow"}\n\n{"effect": "rain"}\n')
    work.save()
    found = inspect_bank(work.bank_file)
    assert found.bank is not None
    assert [effect.name for effect in found.bank.effects] == ["negative"]
    assert found.broken == {"general", "pairs"}
    places = [(Path(p.file).name, p.field) for p in found.problems]
    assert places == [
        ("bank.yaml", "general"),
        ("bank.yaml", "effects.0.prompt"),
        ("pairs.jsonl", "line 1.source"),
        ("pairs.jsonl", "line 1.target"),
        ("pairs.jsonl", "line 3.source"),
        ("pairs.jsonl", "line 3.target"),
    ]


@in_one_folder
@given(name=st.text(max_size=70) | st.from_regex(r"[a-z0-9_./\\ -]{1,66}", fullmatch=True))
def test_an_accepted_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "names"
    folder.mkdir(exist_ok=True)
    (folder / "a.safetensors").touch()
    effect = {"name": name, "prompt": "do it", "adapter": "a.safetensors"}
    (folder / "bank.yaml").write_text(yaml.safe_dump({"effects": [effect]}))
    try:
        bank = load_bank(folder)
    except InputError:
        return
    accepted = bank.effects[0].name
    assert accepted == name
    assert not set(accepted) & set("/\\.\0 \n")
    assert (folder / accepted).parent == folder


@in_one_folder
@given(path=st.text(max_size=40) | st.from_regex(r"(\.\./|/|\./|a/|b){1,6}", fullmatch=True))
def test_an_accepted_path_stays_inside(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "paths"
    (folder / "a").mkdir(parents=True, exist_ok=True)
    for file in (tmp_path / "b", folder / "b", folder / "a" / "b"):
        file.touch()
    effect = {"name": "snow", "prompt": "do it", "adapter": path}
    (folder / "bank.yaml").write_text(yaml.safe_dump({"effects": [effect]}))
    try:
        adapter = load_bank(folder).effects[0].adapter
    except InputError:
        return
    assert adapter is not None
    assert adapter.resolve().is_relative_to(folder.resolve())


@in_one_folder
@given(rows=st.binary(max_size=80))
def test_any_rows_give_a_bank_or_a_report(tmp_path: Path, rows: bytes) -> None:
    folder = tmp_path / "work"
    work = good_work(folder) if not folder.exists() else None
    if work is not None:
        work.save()
    (folder / "bank" / "general.jsonl").write_bytes(rows)
    found = inspect_bank(folder / "bank")
    assert found.bank is not None
    assert not found.bank.general or not found.problems


def test_a_file_that_cannot_be_looked_up_is_reported(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    work.bank["test"] = "n" * 300
    work.save()
    with pytest.raises(InputError, match="test: cannot be looked up"):
        load_bank(work.bank_file)


def test_rows_of_several_pictures(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    pictures = ["general/1.png", "photographs/1.png", "pairs/snow_1_source.png"]
    pair = {"effect": "snow", "source": pictures[:2], "target": pictures[2]}
    write_rows(work.file("pairs.jsonl"), [pair])
    write_rows(work.file("general.jsonl"), [{"image": pictures, "prompt": "put them together"}])
    bank = load_bank(work.bank_file)
    assert bank.pairs[0].sources == tuple(work.file(name) for name in pictures[:2])
    assert bank.general[0].images == tuple(work.file(name) for name in pictures)


def test_all_that_is_wrong_with_rows_of_pictures_is_one_report(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    rows = [["general/1.png"] * 4, ["general/1.png", "no.png", "../out.png"], []]
    write_rows(work.file("general.jsonl"), [{"image": row, "prompt": "join"} for row in rows])
    fields = [problem.field for problem in inspect_bank(work.bank_file).problems]
    assert fields == ["line 1.image", "line 2.image.1", "line 2.image.2", "line 3.image"]
