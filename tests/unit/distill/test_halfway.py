"""A lesson that was stopped goes on to the same bits."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.distill import halfway
from pipeline.distill.halfway import Halfway
from pipeline.distill.teach import TEACHER, Optimizer, TeachPlan, teach
from pipeline.models.adapters import Adapters
from pipeline.storage import seal_of
from tests.unit.distill.test_teach import PLAN, pairs
from tests.unit.tiny import MODULES, tiny_editor

STEPS, STOP = 12, 7


def taught(plan: TeachPlan, kept: Halfway | None = None, stop: int = -1) -> dict[str, Tensor]:
    """``stop``: the step after which the process dies."""
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    adapters.add(TEACHER, 2, 2.0, MODULES, seed=0)

    def on_step(step: int, loss: float) -> None:
        steps.append(step)
        if step == stop:
            raise KeyboardInterrupt

    steps: list[int] = []
    teach(editor, adapters, [pairs(4, (1, 2, 2), 1)], plan, on_step, halfway=kept)
    return {"steps": torch.tensor(steps), **adapters.state(TEACHER)}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_goes_on_to_the_same_bits(
    optimizer: Optimizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halfway, "_SHARE", math.inf)
    plan = replace(PLAN, steps=STEPS, optimizer=optimizer, ema=0.9, cosine=True)
    file = tmp_path / "one.halfway"
    with pytest.raises(KeyboardInterrupt):
        taught(plan, Halfway(file, seconds=0), stop=STOP)
    found, expected = taught(plan, Halfway(file, seconds=0)), taught(plan)
    assert found.pop("steps").tolist() == list(range(STOP + 1, STEPS))
    del expected["steps"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_not_from_a_damaged_file_nor_from_one_of_another_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, file = replace(PLAN, steps=3), tmp_path / "one.halfway"
    taught(plan, Halfway(file, seconds=0))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert taught(plan, Halfway(file))["steps"].tolist() == [0, 1, 2]
    assert "damaged" in capsys.readouterr().out
    file.write_bytes(whole)
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    assert Halfway(file).read(optimizer, weights={"other": torch.zeros(1)}) == 0


def test_it_is_seldom_written_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "one.halfway"
    taught(PLAN, Halfway(file))
    assert not file.exists(), "a lesson of seconds"
    kept = Halfway(file, seconds=0)
    taught(PLAN, kept)
    assert file.exists() and seal_of(file).exists()
    kept.remove()
    assert list(tmp_path.iterdir()) == []
