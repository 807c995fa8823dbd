"""A collapse planted in a run on Ray: warned of, and the checkpoint kept is from before it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actors.arguments import WatchArguments
from actors.run_place import RunPlace
from actors.session import ray_session
from actors.student_group import run_student_group
from pipeline.bank import load_bank
from pipeline.config import load_recipe
from pipeline.controller import prepare
from pipeline.distill.alarms import Alarms
from pipeline.distill.checkpoint import STATE_FILE
from pipeline.distill.names import SCORE
from pipeline.distill.watch import best_of
from pipeline.places import Places
from pipeline.stages.distill import arguments_of
from tests.tiny_run import write_inputs, write_recipe

MIDDLE, ROUNDS, EVERY = 10, 20, 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_planted_collapse_is_warned_of_and_the_best_checkpoint_is_from_before(
    tmp_path: Path,
) -> None:
    """To the middle, then on from its checkpoint with 30 times the student's learning rate."""
    inputs = write_inputs(tmp_path)
    changes = {
        "distill": {
            "rounds": ROUNDS,
            "checkpoint_every": EVERY,
            "learning_rate": 0.01,
            "fake_learning_rate": 0.01,
        },
        "targets": {"sources": 1},
        "watch": {"every": EVERY, "held_back": 1},
    }
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", inputs, str(tmp_path / "o"), changes))
    places = Places.of(recipe.output)
    looks: list[int] = []
    with ray_session(recipe.cluster):
        prepared = prepare(recipe, load_bank(recipe.bank), places, lambda: None)
        assert prepared is not None
        student, teachers = arguments_of(recipe, prepared.manifest, places.stores, "planted")
        student = replace(student, watch=WatchArguments(EVERY, 2))
        place = RunPlace((tmp_path / "training").resolve(), "planted")
        alarms, heard = Alarms(patience=2, tolerance=0.05), []
        settings = replace(student.settings, rounds=MIDDLE)
        faster = replace(
            student.settings,
            student_rate=replace(
                student.settings.student_rate, peak=30 * student.settings.student_rate.peak
            ),
        )
        for some in (settings, faster):
            kept = run_student_group(
                replace(student, settings=some),
                teachers,
                recipe.cluster.teacher_pool,
                recipe.cluster.student_group,
                place,
                lambda metrics: heard.extend(alarms.hear(metrics)),
                lambda rounds, preview: looks.append(rounds),
                keep_best=True,
            )
    assert looks == list(range(EVERY, ROUNDS + 1, EVERY))
    state = json.loads((kept / STATE_FILE).read_text())
    # Scores are heard by the index of a round, checkpoints count the rounds that are done.
    best = best_of(alarms.scores)
    assert state["round"] == best + 1 <= MIDDLE
    assert state["score"] == alarms.scores[best]
    assert "collapse" in {alarm.kind for alarm in heard}
    assert min(alarm.round for alarm in heard) >= MIDDLE
    # What Ray Train would go on from is still the last one.
    latest = place.latest_checkpoint()
    assert latest is not None and latest != kept
    assert json.loads((latest / STATE_FILE).read_text())["round"] == ROUNDS
    # And a snapshot that is lost is made again with its scores.
    (place.folder / "checkpoint_manager_snapshot.json").unlink()
    place.heal()
    assert place.best_checkpoint() == kept
    assert SCORE in (place.folder / "checkpoint_manager_snapshot.json").read_text()
