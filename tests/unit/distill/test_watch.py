"""Looks change no bit, the score is least at the teacher, a planted collapse is seen."""

import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.distill.alarms import Alarm, Alarms
from pipeline.distill.names import SCORE
from pipeline.distill.rates import RateSettings
from pipeline.distill.signals import TeacherRange, by_sigma, by_stream
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.distill.watch import Watch, best_of, energy_score, held_back_pairs
from tests.unit.distill.halves import PLAN, SETTINGS, Collection, go_on
from tests.unit.tiny import seeded

QUICK = replace(PLAN, fake_updates=2, student_steps=4, ta_fm_batch=6, p_switch=0.8)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The tiny collection; the last two samples of each effect are held back."""
    collection = Collection(tmp_path_factory.mktemp("watched"))
    effects = tuple(replace(e, held_back=e.samples[-2:]) for e in collection.manifest.effects)
    collection.manifest = replace(collection.manifest, effects=effects)
    return collection


def sha256(trainer: StudentTrainer) -> str:
    """Of all that a checkpoint holds: adapters, average, moments."""
    digest = hashlib.sha256()
    assert trainer.average is not None
    states: list[Mapping[str, Tensor]] = [trainer.adapters.state(n) for n in (STUDENT, FAKE)]
    for state in [*states, trainer.average]:
        for key, value in state.items():
            digest.update(key.encode() + value.detach().numpy().tobytes())
    for optimizer in (trainer.student_optimizer, trainer.fake_optimizer):
        for moments in optimizer.state.values():
            digest.update(moments["exp_avg"].numpy().tobytes())
            digest.update(moments["exp_avg_sq"].numpy().tobytes())
    return digest.hexdigest()


def test_looks_change_no_bit_of_the_training(watched: Collection) -> None:
    hashes = {}
    for looking in (False, True):
        trainer = watched.trainer(QUICK)
        policies = deque([trainer.policy()], maxlen=1)
        watch = Watch(trainer, held_back_pairs(trainer.manifest))
        worker = watched.worker(QUICK)
        for r in range(4):
            go_on(worker, trainer, range(r, r + 1), policies)
            if looking:
                watch.look()
                watch.round(torch.zeros(1, 2, 80))
        hashes[looking] = sha256(trainer)
    assert hashes[True] == hashes[False]


def test_a_look_is_of_the_average_and_repeats_itself(watched: Collection) -> None:
    trainer = watched.trainer(QUICK)
    watch = Watch(trainer, held_back_pairs(trainer.manifest), batch=2)
    assert [p.effect for p in watch.pairs[:3]] == ["effect0", "effect1", "effect2"]
    first = watch.look()
    assert watch.look().metrics == first.metrics
    go_on(watched.worker(QUICK), trainer, range(3), deque([trainer.policy()], maxlen=1))
    moved = watch.look()
    assert trainer.average is not None
    trainer.adapters.replace(STUDENT, trainer.average)
    trainer.average = None
    assert watch.look().metrics == moved.metrics != first.metrics
    # Whatever the batch: a pair never sees its neighbours.
    together = Watch(trainer, watch.pairs).look()
    assert together.metrics[SCORE] == pytest.approx(moved.metrics[SCORE], rel=1e-5)
    assert len(together.outputs) == 6
    each = [together.metrics[f"{SCORE}/effect{i}"] for i in range(3)]
    assert together.metrics[SCORE] == pytest.approx(sum(each) / 3)


def test_the_score_is_least_at_the_teachers_own_distribution() -> None:
    """An effect by chance: of standard normal outcomes, blur, half and twice the spread lose."""
    y = seeded((400, 4, 8), 1)
    x, other = seeded((400, 4, 8), 2), seeded((400, 4, 8), 3)
    by_spread = {s: energy_score(s * x, s * other, y).mean().item() for s in (0, 0.5, 1, 2)}
    assert min(by_spread, key=by_spread.__getitem__) == 1
    # |y| of 32 standard normals is about 1, of their differences about the root of 2.
    assert by_spread[0] == pytest.approx(1, abs=0.02)
    assert by_spread[1] == pytest.approx(2**0.5 / 2, abs=0.02)
    # And without chance it is the plain distance.
    assert energy_score(x, x, x).abs().max() == 0
    assert energy_score(x + 3, x + 3, x).mean().item() == pytest.approx(3, rel=1e-4)


def test_the_range_is_of_each_channel() -> None:
    targets = [torch.stack([torch.linspace(0, 1, 500), torch.linspace(10, 20, 500)], 1)]
    teachers = TeacherRange.of(targets)
    assert teachers.outside(targets[0]) == 0
    assert teachers.outside(torch.tensor([[0.5, 15.0], [1.2, 22.0], [-0.2, 8.0]])) == 0
    assert teachers.outside(torch.tensor([[0.5, 15.0], [15.0, 0.5]])) == 0.5
    assert teachers.outside(torch.tensor([[torch.nan, 15.0], [torch.inf, 15.0]])) == 0.5


def test_signals_by_sigma_and_stream() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert by_sigma("e", [0.1, 0.2, 0.75, 1.0], values) == {
        "e/sigma_0.00-0.25": 2.0,
        "e/sigma_0.75-1.00": 6.0,
    }
    assert by_stream("g", ["snow", None, "rain", "snow"], values) == {
        "g/effects": 13 / 3,
        "g/general": 3.0,
        "g/effect/snow": 4.0,
        "g/effect/rain": 5.0,
    }


def test_rounds_report_by_sigma_and_stream(watched: Collection) -> None:
    plan = replace(QUICK, batch=12)
    trainer = watched.trainer(plan)
    (metrics,) = go_on(watched.worker(plan), trainer, range(1), deque([trainer.policy()], 1))
    bins = [v for k, v in metrics.items() if k.startswith("loss_fake/sigma_")]
    assert 3 <= len(bins) <= 4
    assert min(bins) <= metrics["loss_fake"] <= max(bins)
    streams = metrics["teacher_fake_gap/general"], metrics["teacher_fake_gap/effects"]
    assert min(streams) <= metrics["teacher_fake_gap"] <= max(streams)
    assert any(k.startswith("teacher_fake_gap/effect/effect") for k in metrics)


def train(collection: Collection, rounds: int, planted: bool) -> tuple[list[Alarm], int]:
    """The reference loop with a look every 5 rounds; its alarms and the best look's round.

    Planted: from the middle on the student's learning rate is 30 times what it was.
    """
    rate = RateSettings(0.01, 2, "constant")
    settings = replace(SETTINGS, rounds=rounds, student_rate=rate, fake_rate=rate, grad_clip=10.0)
    trainer, worker = collection.trainer(QUICK, settings), collection.worker(QUICK)
    worker.guidance = 1.0
    watch = Watch(trainer, held_back_pairs(trainer.manifest))
    alarms, heard = Alarms(patience=2, tolerance=0.05), []
    policies = deque([trainer.policy()], maxlen=1)
    for r in range(rounds):
        if planted and r == rounds // 2:
            faster = replace(rate, peak=30 * rate.peak)
            trainer.settings = replace(settings, student_rate=faster)
        (metrics,) = go_on(worker, trainer, range(r, r + 1), policies)
        metrics["round"] = r
        if (r + 1) % 5 == 0:
            metrics |= watch.look().metrics
        heard += alarms.hear(metrics)
    return heard, best_of(alarms.scores)


def test_a_planted_collapse_is_warned_of_and_the_best_is_from_before(watched: Collection) -> None:
    heard, best = train(watched, 60, planted=True)
    assert best < 30
    assert "collapse" in {alarm.kind for alarm in heard}
    assert min(alarm.round for alarm in heard) >= 30
    assert f"after round {best}" in next(a.text for a in heard if a.kind == "collapse")


def test_a_good_training_is_not_warned_of(watched: Collection) -> None:
    heard, best = train(watched, 60, planted=False)
    assert heard == []
    assert best > 20
