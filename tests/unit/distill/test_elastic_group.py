"""The student does not depend on how many workers share out a round."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.distill.dealing import Dealing
from pipeline.distill.single_process import distill_in_one_process
from pipeline.distill.update import FAKE, STUDENT
from tests.unit.distill import halves
from tests.unit.distill.group import Group, Metrics
from tests.unit.distill.halves import PLAN, Collection

ROUNDS, CLOSE = 3, 1e-5
# A bound below the gradients' norms, so that clipping is by the whole round's.
SETTINGS = replace(halves.SETTINGS, grad_clip=5e-3)
# Two slots a block, and anchors of their own.
SMALL = replace(PLAN, batch=2, fake_updates=2, ta_fm_batch=2)
State = dict[str, Tensor]


def states(group: Group) -> dict[str, State]:
    (trainer, *others) = group.trainers
    assert trainer.average is not None
    found = {n: dict(trainer.adapters.state(n)) for n in (STUDENT, FAKE)}
    for other in others:
        for name, state in found.items():
            assert all(torch.equal(other.adapters.state(name)[k], v) for k, v in state.items())
    return found | {"average": trainer.average}


def furthest(a: dict[str, State], b: dict[str, State]) -> float:
    assert a.keys() == b.keys()
    return max((b[n][k] - v).abs().max().item() for n, state in a.items() for k, v in state.items())


def norms(metrics: list[Metrics]) -> list[float]:
    """Of all gradients before clipping, which Adam alone would not tell the scale of."""
    found = [[m[f"grad_norm_{name}"] for m in rows for name in (FAKE, STUDENT)] for rows in metrics]
    assert all(other == found[0] for other in found)
    return found[0]


@pytest.fixture(scope="module")
def four(collection: Collection) -> tuple[dict[str, State], list[float]]:
    """Of four logical ranks, a worker each."""
    group = Group(collection, Dealing(4, 4), SETTINGS, plan=SMALL)
    metrics = group.go_on(range(ROUNDS))
    return states(group), norms(metrics)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_four_logical_ranks_on_fewer_workers(
    collection: Collection, four: tuple[dict[str, State], list[float]], workers: int
) -> None:
    expected, lengths = four
    group = Group(collection, Dealing(4, workers), SETTINGS, plan=SMALL)
    metrics = group.go_on(range(ROUNDS))
    assert furthest(expected, states(group)) < CLOSE
    assert norms(metrics) == pytest.approx(lengths, rel=1e-3)
    assert max(lengths) > SETTINGS.grad_clip
    assert max(v.abs().max().item() for k, v in expected[STUDENT].items() if "lora_B" in k) > 1e-3
    # Per sample: a larger hand is no dearer.
    assert all(m["forwards_student_group"] < 26 for rows in metrics for m in rows)


def test_uneven_hands_and_a_change_of_size_on_the_way(
    collection: Collection, tmp_path: Path
) -> None:
    """Three logical ranks on three workers; on two for two rounds, then on one."""
    whole = Group(collection, Dealing(3, 3), SETTINGS, plan=SMALL)
    whole.go_on(range(ROUNDS))
    two = Group(collection, Dealing(3, 2), SETTINGS, plan=SMALL)
    two.go_on(range(2))
    two.save(tmp_path / "two", 2)
    one = Group(collection, Dealing(3, 1, 2), SETTINGS, tmp_path / "two", SMALL)
    one.go_on(range(2, ROUNDS))
    assert furthest(states(whole), states(one)) < CLOSE


def test_metrics_are_means_of_the_hand(collection: Collection) -> None:
    """One worker's of two logical ranks are the means of two workers'."""
    two = Group(collection, Dealing(2, 2), SETTINGS, plan=SMALL).go_on(range(1))
    (one,) = Group(collection, Dealing(2, 1), SETTINGS, plan=SMALL).go_on(range(1))
    assert one[0].keys() == two[0][0].keys() | two[1][0].keys()
    for name in ("loss_dmd_bs", "loss_ta_fm", "effect_share", "teacher_fake_gap", "loss_fake"):
        mean = (two[0][0][name] + two[1][0][name]) / 2
        assert one[0][name] == pytest.approx(mean, rel=1e-3), name
    assert one[0]["grad_norm_student"] == pytest.approx(two[0][0]["grad_norm_student"], rel=1e-3)


def test_the_reference_loop_takes_all_logical_ranks(collection: Collection) -> None:
    group = Group(collection, Dealing(2, 1), SETTINGS, plan=SMALL)
    group.go_on(range(2))
    alone = collection.trainer(SMALL, SETTINGS)
    alone.dealing = Dealing(2, 1)
    distill_in_one_process(alone, collection.worker(SMALL), range(2))
    own = group.trainers[0].policy()
    assert all(torch.equal(own[k], v) for k, v in alone.policy().items())
