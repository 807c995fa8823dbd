"""The page: from a real store, alone, aligned, with an earlier student's regressions flagged."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison.command import compare_runs
from pipeline.comparison.gather import find, gather, stores_of
from pipeline.comparison.regressions import differences, judge
from pipeline.comparison.svg import line_chart, smoothed, thinned
from pipeline.evaluation.strips import read_strip, strip_folder, write_strip
from pipeline.problems import InputError
from pipeline.tracking import Tracker

EFFECTS = {"sepia": "fidelity", "snow": "texture_distance"}
LEVEL = {"source": 0.1, "base": 0.3, "teacher": 0.9, "student": 0.7}


def strip(folder: Path, method: str, effect: str, names: list[str]) -> Path:
    """Pictures whose brightness says the method, and in green the photograph's number."""
    pictures = []
    for name in names:
        picture = np.full((16, 16, 3), LEVEL[method])
        picture[..., 1] = int(name[-1]) / 10
        pictures.append(picture)
    path = folder / method / f"{effect}.png"
    write_strip(path, names, pictures)
    return path


def write_store(folder: Path, mark: str, fidelity: float, names: list[str]) -> Path:
    """A run's output: base, a teacher an effect, a student with curves and a bleed matrix."""
    tracker = Tracker.open(None, "demo", folder)
    parent = tracker.parent("demo", mark, {})
    bleed = folder / "bleed.json"
    matrices = {"student": [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]}
    bleed.write_text(
        json.dumps({"effects": list(EFFECTS), "columns": [*EFFECTS, "other"], "methods": matrices})
    )
    tracker.log_artifact(parent, bleed, "report")

    def spread(key: str, mean: float) -> dict[str, float]:
        return {key: mean, f"{key}_lo": mean - 0.5, f"{key}_hi": mean + 0.5}

    for effect, metric in EFFECTS.items():
        run = tracker.child(parent, f"teacher {effect}", "teacher", effect, mark)
        own = spread(metric, 30.0)
        tracker.log_metrics(run, own | {f"{effect}/{k}": v for k, v in own.items()} | {"nfe": 40})
        tracker.log_artifact(run, strip(folder, "teacher", effect, names), strip_folder(False))
    for role in ("base", "student"):
        run = tracker.child(parent, role, role, None, mark)  # type: ignore[arg-type]
        level = fidelity if role == "student" else 10.0
        metrics = spread("fidelity", level) | spread("sepia/fidelity", level) | {"nfe": 4.0}
        tracker.log_metrics(run, metrics | spread("snow/texture_distance", 0.2))
        for effect in EFFECTS:
            tracker.log_artifact(run, strip(folder, role, effect, names), strip_folder(False))
            tracker.log_artifact(run, strip(folder, "source", effect, names), strip_folder(True))
        if role == "student":
            for step in range(30):
                tracker.log_metrics(run, {"train/loss_fake": 1 / (step + 1)}, step)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    good = write_store(folder / "good", "wxyz", 25.0, ["photo1", "photo2", "photo3"])
    return [good, write_store(folder / "bad", "vuts", 20.0, ["photo3", "photo1"])]


class Links(HTMLParser):
    """Everything that a page would fetch, and its tags' balance."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "data")]
        self.fetched += [tag] * (tag in ("script", "link", "iframe"))
        if tag not in ("meta", "img", "line", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_page_stands_alone_and_flags_regressions(outputs: list[Path], tmp_path: Path) -> None:
    places = [str(o) for o in outputs]
    assert compare_runs(places, None, "good", tmp_path) == [tmp_path / "compare.html"]
    page = (tmp_path / "compare.html").read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert all(one.startswith(("data:image/webp", "#")) for one in links.fetched)
    assert "url(" not in page and "http" not in page.replace("http-equiv", "")
    assert "student · bad against student · good:" in page
    assert re.search(r"all effects, fidelity, dB ↑: 25.00 → 20.00", page)
    assert "24.50 to 25.50" in page and "<polyline" in page and "0.75" in page
    # The teachers and the base of both stores are the same: shown once.
    assert page.count("</span>teacher</th>") == page.count("</span>base</th>") > 0


def test_the_same_photograph_is_in_the_same_column(outputs: list[Path], tmp_path: Path) -> None:
    columns = gather(stores_of([str(o) for o in outputs]))
    assert [c.name for c in columns] == ["base", "teacher", "student · good", "student · bad"]
    from pipeline.comparison.page import _sheet

    rows = dict(_sheet(columns, "sepia"))
    assert list(rows) == ["source", "base", "teacher", "student · good", "student · bad"]
    good, bad = rows["student · good"], rows["student · bad"]
    # The second store has no photo2, and the other two in another order.
    assert bad == [good[0], None, good[2]]
    assert len(set(good)) == 3


def test_the_student_meant(outputs: list[Path]) -> None:
    columns = gather(stores_of([str(o) for o in outputs]))
    bad = columns[-1]
    for name in ("student · bad", "bad", str(outputs[1]), "vuts", "vu", bad.run_ids[0][:12]):
        assert find(columns, name) is bad
    for name in ("student", "nobody", "teacher"):
        with pytest.raises(InputError, match="not one student of those compared"):
            find(columns, name)
    found = {(d.effect, d.metric): d.verdict for d in differences(bad, columns[-2])}
    assert found == {
        ("", "fidelity"): "regression",
        ("sepia", "fidelity"): "regression",
        ("snow", "texture_distance"): "same or better",
    }


@pytest.mark.parametrize(
    ("metric", "now", "then", "verdict"),
    [
        ("fidelity", (20, 19, 21), (23, 22, 24), "regression"),
        ("fidelity", (20, 19, 22.5), (23, 22, 24), "worse"),
        ("fidelity", (23, 22, 24), (20, 19, 21), "same or better"),
        ("bad_case_rate", (0.3, 0.25, 0.35), (0.1, 0.0, 0.2), "regression"),
        ("bad_case_rate", (0.3, 0.15, 0.35), (0.1, 0.0, 0.2), "worse"),
        ("bad_case_rate", (0.1, 0.0, 0.2), (0.3, 0.25, 0.35), "same or better"),
        ("subject", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "same or better"),
    ],
)
def test_verdicts(
    metric: str,
    now: tuple[float, float, float],
    then: tuple[float, float, float],
    verdict: str,
) -> None:
    assert judge(metric, now, then) == verdict


def test_folders_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no mlflow.db in it"):
        stores_of([str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_strips_keep_pictures_and_names(tmp_path: Path) -> None:
    path = strip(tmp_path, "student", "sepia", ["photo1", "photo4"])
    found = read_strip(path)
    assert found.photographs == ("photo1", "photo4")
    assert [p.getpixel((3, 3)) for p in found.pictures] == [(179, 26, 179), (179, 102, 179)]
    write_strip(tmp_path / "big.png", ["a"], [np.zeros((600, 300, 3))])
    assert read_strip(tmp_path / "big.png").pictures[0].size == (128, 256)
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="not a strip"):
        read_strip(tmp_path / "plain.png")


def test_charts() -> None:
    chart = line_chart({"a<b": [(0, 1.0), (10, 3.0), (5, float("nan"))]}, {"a<b": "#123"}, "x")
    assert "a&lt;b" in chart and "nan" not in chart and chart.count("<polyline") == 2
    # The values, and over them their running mean: of two points it is the points.
    points, mean = re.findall(r'points="([^"]*)"', chart)
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in points.split())
    assert x0 < x1 and y0 > y1 and mean == points
    steps = smoothed([(i, float(i >= 20)) for i in range(40)])
    assert [y for _, y in steps[18:26]] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert line_chart({"a": []}, {}, "x") == ""
    many = thinned([(i, 2.0 * i) for i in range(5000)])
    assert len(many) <= 240 and all(y == pytest.approx(2 * x) for x, y in many)
