"""Compare: what it lines up, what it draws, and its words when there is nothing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.compare import compare, line_up
from pipeline.problems import InputError
from pipeline.tracking import RunRow, Tracker


def spread(key: str, mean: float, gap: float) -> dict[str, float]:
    return {key: mean, f"{key}_lo": mean - gap, f"{key}_hi": mean + gap}


def row(role: str, metrics: dict[str, float], effect: str = "", mark: str = "a") -> RunRow:
    return RunRow(f"{role}{effect}{mark}", role, role, effect, mark, 0, metrics)


def test_the_latest_of_each_kind_counts_and_hashes_show_where_there_are_several() -> None:
    columns = line_up(
        [
            row("student", {"fidelity": 2.0}),
            row("student", {"fidelity": 1.0}),
            row("student", {"fidelity": 3.0}, mark="b"),
            row("teacher", {"fidelity": 30.0, "sepia/fidelity": 30.0, "nfe": 80.0}, "sepia"),
            row("teacher", {"subject": 0.5}, "snow"),
            row("base", {"fidelity": 0.5}),
        ]
    )
    assert list(columns) == ["base", "teacher", "student a", "student b"]
    assert columns["student a"] == {"fidelity": 2.0}
    assert columns["teacher"] == {"sepia/fidelity": 30.0, "nfe": 80.0, "snow/subject": 0.5}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tracker = Tracker.open(None, "demo", folder)
    parent = tracker.parent("demo", "abc", {})
    tracker.parent("an empty one", "def", {})
    values = {"sepia": ("fidelity", 30.0), "snow": ("texture_distance", 0.2)}
    for effect, (metric, value) in values.items():
        run = tracker.child(parent, f"teacher {effect}", "teacher", effect, "abc")
        own = spread(metric, value, 0.05) | spread("bad_case_rate", 0.1, 0.05)
        tracker.log_metrics(run, own | {f"{effect}/{k}": v for k, v in own.items()} | {"nfe": 80})
    for role, gain in (("base", 0.3), ("student", 0.9)):
        run = tracker.child(parent, role, role, None, "abc")  # type: ignore[arg-type]
        metrics = spread("fidelity", 30 * gain, 1.0) | {"nfe": 4.0, "ms_per_image": 81.5}
        for effect, (metric, value) in values.items():
            metrics |= spread(f"{effect}/{metric}", value * gain, 0.05)
        tracker.log_metrics(run, metrics | {"loss": 1.0})
    return folder


def test_table_and_figure(output: Path, tmp_path: Path) -> None:
    text = compare(tracking.default_uri(output), None, tmp_path / "out")
    assert (tmp_path / "out" / "compare.md").read_text() == text
    methods, effects = text.split("## Effects")
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in methods.splitlines() if "|" in x]
    assert [x[:4] for x in lines[2:]] == [
        ["base", "4", "82", "9.00 [8.00, 10.00]"],
        ["teacher", "80", "-", "30.00"],
        ["student", "4", "82", "27.00 [26.00, 28.00]"],
    ]
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in effects.splitlines() if "|" in x]
    assert lines[0] == ["effect", "metric", "base", "teacher", "student"]
    assert lines[2][0] == "sepia" and lines[2][3:] == [
        "30.00 [29.95, 30.05]",
        "27.00 [26.95, 27.05]",
    ]
    assert [x[0] for x in lines[2:]] == ["sepia", "sepia", "snow", "snow"]
    picture = np.asarray(Image.open(tmp_path / "out" / "compare.png").convert("RGB")).astype(int)
    for colour in ("#1f4e8c", "#d1622b", "#9a9a9a"):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(picture - wanted).max(axis=-1) < 8).sum() > 30, colour


def test_one_experiment(output: Path) -> None:
    uri = tracking.default_uri(output)
    assert compare(uri, "demo", None) == compare(uri, None, None)
    with pytest.raises(InputError, match=r"no such experiment \(it has Default, demo\)"):
        compare(uri, "dem", None)
    with pytest.raises(InputError, match="no scores of base, teachers or students"):
        compare(uri, "Default", None)


def test_stores_that_are_none(tmp_path: Path) -> None:
    absent = tracking.default_uri(tmp_path)
    with pytest.raises(InputError, match="no such store; run `collectionlora run RECIPE` first"):
        compare(absent, None, None)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(InputError, match="cannot be read"):
        compare(absent, None, None)
    with pytest.raises(InputError, match="cannot be read"):
        compare("http://127.0.0.1:9", None, None)
