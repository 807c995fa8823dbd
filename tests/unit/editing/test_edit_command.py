"""``collectionlora edit``: files in, files out, exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.editing.command import GRID_FILE, RECORD_FILE
from pipeline.editing.files import find_images, plan_edits
from pipeline.editing.student_export import StudentExport
from pipeline.problems import Problem


def write_photograph(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_files_folders_and_globs_are_found_once_each(tmp_path: Path) -> None:
    a, b = write_photograph(tmp_path / "in" / "a.png"), write_photograph(tmp_path / "in" / "b.JPG")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    deep = write_photograph(tmp_path / "more" / "deep" / "a.png")
    problems: list[Problem] = []
    places = [str(tmp_path / "in"), str(a), str(tmp_path / "more" / "**" / "*.png")]
    assert find_images(places, problems) == [a, b, deep]
    assert problems == []
    places = [str(tmp_path / "no*.png"), str(tmp_path / "gone.png"), str(tmp_path / "more")]
    assert find_images(places, problems) == [tmp_path / "gone.png"]
    assert [p.what for p in problems] == [
        "no picture matches",
        "no pictures in it",
        "no such image file",
    ]


def test_no_two_edits_share_a_file(tmp_path: Path) -> None:
    sources = [Path("x/a.png"), Path("y/a.png"), Path("y/a-2.png"), Path("z/a.jpg")]
    edits = plan_edits(sources, [("snow",), ("snow", "fog")], [0, 1], tmp_path)
    assert len({e.out for e in edits}) == len(edits) == 16
    assert {e.out.parent for e in edits} == {tmp_path}
    assert edits[2].out.name == "a.snow+fog.0.png"


def test_pictures_grid_and_record_are_made(
    tiny_export: StudentExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photograph(tmp_path / "in" / "a.png", 1)
    write_photograph(tmp_path / "in" / "b.png", 2, (100, 50))
    out = tmp_path / "out"
    command = ["edit", "--adapter", str(tiny_export.folder), "--effect", "snow", "--effect", "fog"]
    code = main(
        [*command, "--then", "neon", str(tmp_path / "in"), "--seeds", "0,7", "--out", str(out)]
    )
    assert code == 0
    said = capsys.readouterr()
    # The miniature's base knows squares alone, and 100 x 50 px is none.
    assert "cut to its middle" in said.err
    printed = [Path(line) for line in said.out.splitlines()]
    assert printed[-1] == out / GRID_FILE
    assert len(printed) == 2 * 2 * 2 + 1 and all(path.is_file() for path in printed)
    assert Image.open(out / "b.fog+neon.7.png").size == (64, 64)
    assert Image.open(out / GRID_FILE).width > 5 * 256
    record = json.loads((out / RECORD_FILE).read_text())
    assert [e["seed"] for e in record["edits"]] == [0, 7] * 4
    assert record["edits"][0]["effects"] == ["snow", "neon"]


def test_one_bad_picture_does_not_cost_the_others(
    tiny_export: StudentExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photograph(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    command = ["edit", "--adapter", str(tiny_export.folder), "--effect", "snow"]
    assert main([*command, str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert (tmp_path / "out" / "good.snow.0.png").is_file()
    said = capsys.readouterr()
    assert "bad.png: content: cannot be read as an image" in said.err


def test_every_mistake_in_one_report(
    tiny_export: StudentExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", "--adapter", str(tiny_export.folder), "--effect", "snoww", "--then", "fogg"]
    assert main([*command, str(tmp_path / "gone.png"), "--seeds", "1,x", "--batch", "0"]) == 2
    said = capsys.readouterr().err
    for text in ("nearest: snow", "nearest: fog", "gone.png", "--seeds", "--batch", "--out"):
        assert text in said
    assert "Traceback" not in said
    assert main(["edit", "--adapter", str(tmp_path)]) == 2


@pytest.mark.parametrize("seeds", ["-1", "", "1,,2", "4294967296", "9" * 5000, "1.5", "²"])
def test_seeds_that_are_none(
    tiny_export: StudentExport, seeds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", "--adapter", str(tiny_export.folder), f"--seeds={seeds}"]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_list_needs_no_pictures(
    tiny_export: StudentExport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", "--adapter", str(tiny_export.folder), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].split() == ["snow", "<snow_T0>", "make", "it", "snow"]


def test_hidden_files_of_a_folder_are_no_pictures(tmp_path: Path) -> None:
    a = write_photograph(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"macOS")
    problems: list[Problem] = []
    assert find_images([str(tmp_path)], problems) == [a] and problems == []


@pytest.mark.parametrize("out", ["taken", "taken/deeper"])
def test_a_file_in_the_place_of_the_folder_is_said_before_anything_loads(
    out: str,
    tiny_export: StudentExport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.editing.command._make", lambda *given: pytest.fail("loaded"))
    photograph = write_photograph(tmp_path / "a.png")
    (tmp_path / "taken").write_text("")
    command = ["edit", "--adapter", str(tiny_export.folder), "--effect", "snow", str(photograph)]
    assert main([*command, "--out", str(tmp_path / out)]) == 2
    said = capsys.readouterr().err
    assert "--out" in said and f"{tmp_path / 'taken'} is not a folder" in said
