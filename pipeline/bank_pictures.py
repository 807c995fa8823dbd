"""A bank's folders of pictures: unlabelled photographs and held-out ones."""

from itertools import zip_longest
from pathlib import Path

from pipeline.bank_files import inside
from pipeline.bank_pairs import pictures_in
from pipeline.images import SUFFIXES
from pipeline.problems import Problem


def photographs_of(
    file: Path, place: str, given: str | None, problems: list[Problem]
) -> tuple[Path, ...]:
    """The pictures right in a folder of the bank, by name."""
    if given is None:
        return ()
    folder = inside(file, file, place, given, problems, kind="folder")
    if folder is None:
        return ()
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    )
    if not names:
        remedy = f"add files ending in {', '.join(SUFFIXES)}, or remove the field"
        problems.append(Problem(str(file), place, given, "a folder without images", remedy))
    found = (inside(file, file, place, f"{given}/{name}", problems) for name in names)
    return tuple(path for path in found if path is not None)


def held_out(
    file: Path, given: str | tuple[str, ...] | None, problems: list[Problem]
) -> tuple[Path, ...]:
    """Held-out pictures: a list of them, or a folder, right in it or in folders of it.

    EffectBench's layout is a folder a kind of picture, such as ``animal`` and ``portrait``: the
    kinds take turns, so that the first n pictures are of all of them.
    """
    if isinstance(given, tuple):
        named = (
            inside(file, file, f"test.{i}", picture, problems) for i, picture in enumerate(given)
        )
        return tuple(path for path in named if path is not None)
    folder = None if given is None else inside(file, file, "test", given, [], kind="folder")
    inner = [] if folder is None else sorted(p for p in folder.iterdir() if p.is_dir())
    # Hidden ones are programs' own, such as .ipynb_checkpoints.
    kinds = [p.name for p in inner if not p.name.startswith(".") and pictures_in(p)]
    if folder is None or not kinds:
        return photographs_of(file, "test", given, problems)
    if pictures_in(folder):
        what = f"pictures right in the folder and in folders of it ({', '.join(kinds[:3])})"
        remedy = "keep the held-out ones in one of both ways, and move the others elsewhere"
        problems.append(Problem(str(file), "test", given, what, remedy))
    found = [photographs_of(file, "test", f"{given}/{kind}", problems) for kind in kinds]
    return tuple(path for turn in zip_longest(*found) for path in turn if path is not None)
