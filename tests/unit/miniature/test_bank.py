"""The miniature's bank as files: what is held out stays out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.bank import load_bank
from pipeline.miniature import photographs
from pipeline.miniature.bank import write_bank
from pipeline.problems import InputError


def test_validation_photographs_are_of_the_training_split_and_seen_by_nobody(
    tmp_path: Path,
) -> None:
    assert set(photographs.VALIDATION) < set(photographs.names("train"))
    fit, held_out = set(photographs.names("fit")), set(photographs.names("validation"))
    assert fit | held_out == set(photographs.names("train")) and not fit & held_out
    assert not set(photographs.names("test")) & (fit | held_out)

    write_bank(tmp_path / "b", ["snow"], pairs=2, general=2, sources=12, test=4, validation=True)
    bank = load_bank(tmp_path / "b")
    stems = {path.stem.rsplit("_", 1)[0] for path in bank.test}
    assert stems == held_out
    assert {path.stem.rsplit("_", 1)[0] for path in bank.photographs} == fit
    # A kept teacher has seen them.
    assert bank.effects[0].adapter is None


def test_textured_effects_weigh_more_and_kept_teachers_come_along(tmp_path: Path) -> None:
    write_bank(tmp_path / "b", ["snow", "cyanotype"], pairs=1, general=1, sources=1, test=1)
    snow, cyanotype = load_bank(tmp_path / "b").effects
    assert snow.weight > cyanotype.weight == 1.0
    assert snow.adapter is not None and snow.adapter.is_file()
    assert load_bank(tmp_path / "b").test[0].stem.startswith(photographs.names("test")[0])


def test_alike_prompts_differ_in_a_number_alone(tmp_path: Path) -> None:
    names = ["snow", "cyanotype"]
    write_bank(tmp_path / "b", names, pairs=1, general=1, sources=1, test=1, alike=True)
    effects = load_bank(tmp_path / "b").effects
    assert [e.prompt for e in effects] == [f"apply effect 0{i} to the photo" for i in (1, 2)]
    assert all(e.adapter is None and e.description for e in effects)


def test_variants_come_beside_the_effects_that_are_named(tmp_path: Path) -> None:
    write_bank(tmp_path / "b", ["snow"], pairs=1, general=1, sources=1, test=1, variants=2)
    first, second, third = load_bank(tmp_path / "b").effects
    assert [first.name, second.name, third.name] == ["snow", "sepia_left", "navy_gold_left"]
    assert second.prompt.endswith(" on the left half only")
    with pytest.raises(InputError, match=r"--variants(.|\n)*0 to 149(.|\n)*sepia_left(.|\n)*twice"):
        write_bank(tmp_path / "c", ["sepia_left", "sepia_left"], variants=200)
    assert not (tmp_path / "c").exists()


def test_varied_photographs_show_more_than_those_of_the_pairs_and_nothing_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    crop = photographs.crop

    def watched(split: photographs.Split, name: str, *rest: Any, **more: Any) -> Any:
        taken.append(name)
        return crop(split, name, *rest, **more)

    monkeypatch.setattr(photographs, "crop", watched)
    count = {"pairs": 2, "general": 2, "sources": 30, "test": 2}
    plain, varied = (tmp_path / name for name in ("plain", "varied"))
    write_bank(plain, ["snow"], **count, validation=True)
    taken.clear()
    write_bank(varied, ["snow"], **count, validation=True, varied=True)
    held_out = taken[-2:]
    assert set(held_out) == set(photographs.VALIDATION)
    assert not set(taken[:-2]) & set(photographs.VALIDATION)
    # The pairs are the same files: teachers need not be trained again.
    assert (plain / "pairs.jsonl").read_bytes() == (varied / "pairs.jsonl").read_bytes()
    spread = [_colours(load_bank(folder).photographs) for folder in (plain, varied)]
    assert len(load_bank(varied).photographs) == 30
    assert spread[1] > 1.5 * spread[0]


def _colours(paths: Sequence[Path]) -> float:
    """How far the pictures' mean colours are from grey, in [0, 1]."""
    means = np.array([np.asarray(Image.open(p), dtype=float).mean(axis=(0, 1)) for p in paths])
    return float(means.std(axis=1).mean() / 255)


@pytest.mark.parametrize("count", [0, -1])
def test_a_bank_of_nothing_is_refused_in_one_report_and_not_begun(
    tmp_path: Path, count: int
) -> None:
    with pytest.raises(InputError, match=rf"--pairs.*{count}(.|\n)*--sources.*{count}"):
        write_bank(tmp_path / "b", ["snow"], pairs=count, sources=count)
    assert not (tmp_path / "b").exists()
