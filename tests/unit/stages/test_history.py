"""The rounds' metrics on disk: the last word on each round, whatever cut the file short."""

import json
from pathlib import Path

import pytest

from pipeline.stages.distill import History


def test_a_resumed_runs_rounds_replace_those_it_repeats(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for round_index, loss in ((0, 1.0), (1, 2.0), (0, 3.0)):
        history.append({"round": float(round_index), "loss": loss})
    assert history.load() == [{"round": 0.0, "loss": 3.0}, {"round": 1.0, "loss": 2.0}]
    assert history.series() == {"loss": [3.0, 2.0], "round": [0.0, 1.0]}


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_line_cut_short_costs_that_round_alone(tmp_path: Path, cut: int) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append({"round": 0.0})
    history.append({"round": 1.0})
    content = history.path.read_bytes()
    history.path.write_bytes(content[:-cut])
    history.append({"round": 2.0})
    lost = [] if cut == 1 else [1.0]  # only its newline
    expected = [r for r in (0.0, 1.0, 2.0) if r not in lost]
    assert [row["round"] for row in history.load()] == expected


def row(round_index: int, loss: float) -> dict[str, float]:
    costs = {"seconds_update": loss, "seconds_wait": 0.0}
    forwards = {"forwards_student_group": loss, "forwards_teacher_pool": loss}
    return {"round": float(round_index), "loss": loss, **costs, **forwards}


def test_a_run_has_its_own_rounds_alone_of_all_that_the_output_has_had(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for key, rounds, loss in (("long", 50, 1.0), ("short", 10, 2.0)):
        for r in range(rounds):
            History(path, key).append(row(r, loss))
    short = History(path, "short")
    assert short.load() == [row(r, 2.0) for r in range(10)]
    # What names the run is no metric, in no reader's eyes.
    assert short.series().keys() == row(0, 0.0).keys()
    assert short.counters()["forwards_per_student_update"]["student_group"] == 2.0
    assert short.counters()["seconds_per_round"] == 2.0
    # The first one, looked at again, is what it was.
    assert History(path, "long").load() == [row(r, 1.0) for r in range(50)]
    assert History(path, "another").load() == []
    # Without a key: the last word on each round, whoever had it.
    assert [r["loss"] for r in History(path).load()] == [2.0] * 10 + [1.0] * 40


def test_a_run_that_another_version_began_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, "own")
    path.write_text("".join(json.dumps(row(r, 1.0)) + "\n" for r in range(8)))
    assert [r["round"] for r in history.load()] == [*range(8)]
    # Its checkpoint was that of round 5.
    for r in (5, 6):
        history.append(row(r, 2.0))
    assert [r["loss"] for r in history.load()] == [1.0] * 5 + [2.0] * 2
    # A run that begins anew has none of the old one's rounds.
    anew = History(path, "anew")
    anew.append(row(0, 3.0))
    assert anew.load() == [row(0, 3.0)]


def test_rounds_that_a_resumed_run_repeats_replace_its_own(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", "own")
    for r, loss in ((0, 1.0), (1, 1.0), (2, 1.0), (1, 2.0)):
        history.append(row(r, loss))
    assert [r["loss"] for r in history.load()] == [1.0, 2.0, 1.0]
    # The caller's metrics are as they were: they go to MLflow too.
    metrics = row(3, 1.0)
    history.append(metrics)
    assert metrics == row(3, 1.0)
