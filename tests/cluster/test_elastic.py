"""An elastic student group on two nodes: one dies, training goes on; one comes, the group grows."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest

from pipeline.stages.chaos import Driver, run_through
from pipeline.stages.killing import Ground, kill, killing_ground
from pipeline.stages.student import student_weights
from tests.tiny_run import recipe_file, share_caches, write_tiny_bank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROUNDS, CHECKPOINT = 120, 10
# Each node has room for one student.
GROUP = "{workers: {min: 1, max: 2, resize_seconds: 5}, resources: {student: 1}}"


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    # Ray Train may first wait for the node that it has not yet seen die: a minute, by default.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
        with killing_ground(4, {"student": 1}) as ground:
            yield ground


def driver_of(bank: Path, output: str, ground: Ground) -> Driver:
    share_caches(bank, output)
    recipe = recipe_file(bank, output, rounds=ROUNDS, checkpoint_every=CHECKPOINT)
    changes = [f"cluster.student_group={GROUP}"]
    return Driver(str(recipe), changes, bank / output, ground.address)


def sizes_of(driver: Driver) -> list[tuple[int, range]]:
    """Sizes of the group one after another, and the rounds of each."""
    path = driver.places.history
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    found = []
    for size, group in groupby(rows, key=lambda row: int(row["workers"])):
        rounds = [int(row["round"]) for row in group]
        found.append((size, range(rounds[0], rounds[-1] + 1)))
    return found


class Script:
    """What is done to a run, one thing after another, each when its time has come."""

    kills = ()

    def __init__(self, *steps: tuple[Callable[[], bool], Callable[[], None]]) -> None:
        self._steps = list(steps)

    def took_driver(self) -> bool:
        """Never: a driver that ends early has failed."""
        return False

    def step(self) -> None:
        """Do the next thing, if it is time."""
        if self._steps and self._steps[0][0]():
            self._steps.pop(0)[1]()


def test_a_node_dies_and_another_comes(bank: Path, ground: Ground) -> None:
    whole = driver_of(bank, "whole", ground)
    run_through(whole)
    assert sizes_of(whole) == [(2, range(ROUNDS))]

    driver = driver_of(bank, "shaken", ground)
    script = Script(
        (lambda: driver.round() > CHECKPOINT + 2, lambda: kill(ground.second_raylet)),
        (lambda: [size for size, _ in sizes_of(driver)] == [2, 1], ground.renew_second),
    )
    outcome = run_through(driver, script)  # type: ignore[arg-type]
    (two, before), (one, alone), (again, after) = sizes_of(driver)
    print(f"2: {before}, 1: {alone}, 2: {after}; {outcome.seconds:.0f} s")
    assert (two, one, again) == (2, 1, 2)
    assert outcome.restarts == 0
    # Each size begins at a checkpoint of the one before, which is at most a few rounds old.
    for earlier, later in ((before, alone), (alone, after)):
        assert later.start % CHECKPOINT == 0
        assert later.start <= earlier.stop <= later.start + CHECKPOINT + 1
    assert after.stop == ROUNDS

    expected, found = student_weights(whole.student()), student_weights(driver.student())
    assert expected.keys() == found.keys()
    far = {key: ((found[key] - v).norm() / v.norm()).item() for key, v in expected.items()}
    print(f"at most {max(far.values()):.1e} relative")
    assert max(far.values()) < 1e-4
