"""SIGKILL to each part of a run, once, at a random moment: the student is the same file.

On two real Ray nodes, to real processes. Each test prints what the kill cost.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stages.chaos import Driver, Kill, Killer, Outcome, run_through
from pipeline.stages.killing import Ground, Victim, killing_ground
from tests.tiny_run import recipe_file, share_caches, write_tiny_bank

pytestmark = pytest.mark.slow
ROUNDS, CHECKPOINT = 40, 5
# At most so long, beyond the work since the last checkpoint.
MOST_LOST = 60.0
SETTINGS = {"rounds": ROUNDS, "checkpoint_every": CHECKPOINT, "lag": 1}
POOL = "cluster.teacher_pool={min: 2, max: 2, num_cpus: 0.5}"
SEED = int(os.environ.get("FAULTS_SEED", time.time()))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def ground(bank: Path) -> Iterator[Ground]:
    with killing_ground(cpus=3, resources={}) as made:
        yield made


def driver(bank: Path, ground: Ground, output: str, *overrides: str) -> Driver:
    share_caches(bank, output)
    recipe = recipe_file(bank, output, **SETTINGS)
    return Driver(str(recipe), [POOL, *overrides], bank / output, ground.address)


@pytest.fixture(scope="module")
def undisturbed(bank: Path, ground: Ground) -> Outcome:
    return run_through(driver(bank, ground, "undisturbed"))


class Once(Killer):
    """Kills one of a kind, once, at a random round."""

    def __init__(self, ground: Ground, driver: Driver, kind: str) -> None:
        rng = random.Random(f"{SEED}{kind}")
        super().__init__(ground, driver, rng, every=1e9, until=0)
        self._kind, self._round = kind, rng.randrange(2, ROUNDS - 12)

    def step(self) -> None:
        super().step()
        if not self.kills and self._driver.round() >= self._round:
            victims = [*self._ground.workers(), self._driver.victim, self._ground.second_raylet]
            mine = [v for v in victims if v.kind == self._kind]
            if mine:
                self.strike(self._rng.choice(mine))


@pytest.mark.parametrize("kind", ["teacher", "board", "student", "driver", "raylet"])
def test_the_student_is_the_same_whatever_is_killed(
    bank: Path, ground: Ground, undisturbed: Outcome, kind: str
) -> None:
    run = driver(bank, ground, f"without-{kind}")
    outcome = run_through(run, Once(ground, run, kind))
    (killed,) = outcome.kills
    print(f"seed {SEED}: {killed}, {outcome.seconds:.0f} s against {undisturbed.seconds:.0f} s")
    assert outcome.sha256 == undisturbed.sha256
    assert outcome.restarts == (1 if kind == "driver" else 0), run.log.read_text()[-3000:]
    assert killed.lost is not None and killed.lost < MOST_LOST


def test_the_comparison_can_fail(bank: Path, ground: Ground, undisturbed: Outcome) -> None:
    other = run_through(driver(bank, ground, "other-seed", "distill.seed=1"))
    assert other.sha256 != undisturbed.sha256


class Stopped(Once):
    """SIGSTOP in place of SIGKILL; goes on once the log names it."""

    named: float | None = None

    def strike(self, victim: Victim) -> None:
        os.kill(victim.pid, signal.SIGSTOP)
        self.pid, self.since = victim.pid, time.monotonic()
        self.kills.append(Kill(0.0, victim.kind, self._driver.round(), 0))

    def step(self) -> None:
        super().step()
        if self.kills and self.named is None:
            waited = time.monotonic() - self.since
            if f"process {self.pid} on" in self._driver.log.read_text():
                self.named = waited
            if self.named is not None or waited > 120:
                os.kill(self.pid, signal.SIGCONT)


def test_a_stalled_teacher_is_named_within_a_minute(
    bank: Path, ground: Ground, undisturbed: Outcome
) -> None:
    run = driver(bank, ground, "stalled")
    stopped = Stopped(ground, run, "teacher")
    outcome = run_through(run, stopped)
    print(f"named after {stopped.named} s")
    assert stopped.named is not None and stopped.named < 60
    assert "Remedy: look at that node" in run.log.read_text()
    assert outcome.sha256 == undisturbed.sha256


def test_status_while_it_runs(bank: Path, ground: Ground) -> None:
    from pipeline.status import read_status

    run = driver(bank, ground, "watched")
    run.start()
    try:
        while run.round() < 3 and run.poll() is None:
            time.sleep(0.2)
        status = read_status(bank / "watched")
        assert (status.state, status.stage, status.total) == ("running", "distill", ROUNDS)
        assert 3 <= (status.round or 0) <= ROUNDS
        assert status.eta_seconds is not None
    finally:
        run.stop()
    assert json.loads((bank / "watched" / "progress.json").read_text())["state"] == "running"
