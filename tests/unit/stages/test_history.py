"""The rounds' metrics on disk: the last word on each round, whatever cut the file short."""

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
