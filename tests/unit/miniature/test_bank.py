"""The miniature's bank as files: what is held out stays out."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("pairs", [0, -1])
def test_a_bank_without_pairs_is_refused_and_not_begun(tmp_path: Path, pairs: int) -> None:
    with pytest.raises(InputError, match=f"--pairs.*{pairs}"):
        write_bank(tmp_path / "b", ["snow"], pairs=pairs)
    assert not (tmp_path / "b").exists()
