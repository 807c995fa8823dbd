"""The files of ``collectionlora edit``: which pictures are meant, and where their edits go."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.images import SUFFIXES, open_image
from pipeline.problems import InputError, Problem


@dataclass(frozen=True)
class Edit:
    """One picture to make and the file that it goes to."""

    source: Path
    effects: tuple[str, ...]
    seed: int
    out: Path


def find_images(places: Sequence[str], problems: list[Problem]) -> list[Path]:
    """The picture files of files, folders (not their subfolders) and globs, in order, once each."""
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            # Not hidden ones: macOS leaves a ._1.png beside 1.png that is no picture.
            inside = sorted(
                p
                for p in path.iterdir()
                if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
            )
            if not inside:
                problems.append(Problem(place, "", None, "no pictures in it", "give another"))
            found += inside
        elif path.exists() or not glob.has_magic(place):
            # One that is not there is opened, too, and named with all that cannot be read.
            found.append(path)
        else:
            matches = sorted(Path(p) for p in glob.glob(place, recursive=True))
            matches = [p for p in matches if p.suffix.lower() in SUFFIXES and p.is_file()]
            if not matches:
                problems.append(Problem(place, "", None, "no picture matches", "check the glob"))
            found += matches
    if not places:
        problems.append(Problem("IMAGE", "", None, "none given", "give files, folders or globs"))
    missing = [path for path in found if not path.is_file()]
    for path in missing:
        problems.append(
            Problem(str(path), "", None, "no such image file", "add the file or correct the path")
        )
    return list({path.resolve(): path for path in found}.values())


def plan_edits(
    sources: Sequence[Path],
    combinations: Sequence[tuple[str, ...]],
    seeds: Sequence[int],
    out: Path,
) -> list[Edit]:
    """Every source with every combination and seed, each to a file name of its own."""
    stems: list[str] = []
    for source in sources:
        stem, number = source.stem, 1
        while stem in stems:
            number += 1
            stem = f"{source.stem}-{number}"
        stems.append(stem)
    return [
        Edit(source, names, seed, out / f"{stem}.{'+'.join(names)}.{seed}.png")
        for source, stem in zip(sources, stems, strict=True)
        for names in combinations
        for seed in seeds
    ]


def open_all(edits: Sequence[Edit], unreadable: dict[Path, Problem]) -> dict[Path, Image.Image]:
    """The readable sources of some edits; one bad picture of a thousand does not stop the rest."""
    images: dict[Path, Image.Image] = {}
    for source in dict.fromkeys(edit.source for edit in edits):
        if source in unreadable:
            continue
        try:
            images[source] = open_image(source)
        except InputError as error:
            unreadable[source] = error.problems[0]
    return images
