"""Pairs by the names people give; held-out pictures leave the training."""

from pathlib import Path

import pytest
import yaml

from pipeline.bank import load_bank
from pipeline.bank_pairs import pair_up
from tests.unit.malformed.good_bank import good_work, write_image


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["1_source.png", "1_target.png"], [(["1_source.png"], "1_target.png")]),
        (["before/x.png", "after/x.jpg"], [(["before/x.png"], "after/x.jpg")]),
        (["x.png", "x_edited.png"], [(["x.png"], "x_edited.png")]),
        (["x.png", "control/x.png"], [(["control/x.png"], "x.png")]),
        (["in_x.png", "out_x.png"], [(["in_x.png"], "out_x.png")]),
        (
            ["1_source1.png", "1_source2.png", "1_target.png"],
            [(["1_source1.png", "1_source2.png"], "1_target.png")],
        ),
        (["x.png", "y.png"], []),
        (["1_source.png", "1_source.jpg", "1_target.png"], []),
    ],
)
def test_naming_conventions(tmp_path: Path, names: list[str], pairs: list[object]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = pair_up(tmp_path)
    rows = [
        (
            [p.relative_to(tmp_path).as_posix() for p in sources],
            target.relative_to(tmp_path).as_posix(),
        )
        for sources, target in found.pairs
    ]
    assert rows == pairs
    assert len(found.alone) == len(names) - sum(len(s) + 1 for s, _ in found.pairs)


def test_a_listed_held_out_picture_is_trained_on_by_no_effect(tmp_path: Path) -> None:
    for effect in ("snow", "rain"):
        for i in range(3):
            write_image(tmp_path / effect / f"{i}_source.png", i)
            write_image(tmp_path / effect / f"{i}_target.png", 100 + i)
    effects = [{"name": e, "prompt": f"add {e}", "pairs": e} for e in ("snow", "rain")]
    bank = {"effects": effects, "test": ["snow/1_source.png"]}
    (tmp_path / "bank.yaml").write_text(yaml.safe_dump(bank))
    loaded = load_bank(tmp_path)
    assert [p.sources[0].name for p in loaded.pairs] == ["0_source.png", "2_source.png"] * 2
    assert [p.name for p in loaded.test] == ["1_source.png"]


def test_a_hidden_folder_is_no_kind_of_held_out_pictures(tmp_path: Path) -> None:
    work = good_work(tmp_path)
    write_image(work.file("test/.ipynb_checkpoints/1-checkpoint.png"), 300)
    assert load_bank(work.bank_file).test == (work.file("test/1.png"),)


def test_effectbench_folders_take_turns(tmp_path: Path) -> None:
    for kind in ("animal", "portrait"):
        for i in range(2):
            write_image(tmp_path / "test" / kind / f"{i}.png", i)
    write_image(tmp_path / "p" / "1_source.png", 7)
    write_image(tmp_path / "p" / "1_target.png", 8)
    bank = {"effects": [{"name": "s", "prompt": "x", "pairs": "p"}], "test": "test"}
    (tmp_path / "bank.yaml").write_text(yaml.safe_dump(bank))
    kinds = [p.parent.name for p in load_bank(tmp_path).test]
    assert kinds == ["animal", "portrait", "animal", "portrait"]
