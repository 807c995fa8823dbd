"""Image pairs in a folder, by how people name them; and held-out pictures kept out of them.

Two layouts, mixed if need be, one to three sources a target:

- one folder: ``0001_source.png`` beside ``0001_target.png`` (or the word first), or the plain
  ``0001.png`` beside ``0001_edited.png``;
- two folders in it, ``before/0001.png`` and ``after/0001.png``, or the plain files beside a
  ``control/`` folder.

Several sources are numbered: ``0001_source1.png`` and ``0001_source2.png``.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.images import SUFFIXES
from pipeline.storage import sha256_file

# What the two of a pair are called: (source, target).
COUPLES = (
    ("source", "target"),
    ("control", "target"),
    ("src", "tgt"),
    ("src", "dst"),
    ("before", "after"),
    ("input", "output"),
    ("original", "edited"),
    ("orig", "edit"),
    ("in", "out"),
    ("start", "end"),
    ("a", "b"),
)
_WORDS = {word for couple in COUPLES for word in couple}
_ROLE = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})s?_?(\d?)", re.IGNORECASE)
_SEPARATOR = re.compile(r"[_\-. ]")

Part = Literal["source", "target", "plain"]


@dataclass(frozen=True)
class Pairing:
    """A folder's pairs (sources, target) in the order of their names, and what has no partner."""

    pairs: tuple[tuple[tuple[Path, ...], Path], ...]
    alone: tuple[Path, ...]


@dataclass(frozen=True)
class _Picture:
    """A picture and what its name says: a key, a word (empty: none) and a number."""

    path: Path
    key: str
    word: str
    number: int


def pair_up(folder: Path) -> Pairing:
    """The pairs of a folder, by the naming conventions above; nothing is opened."""
    pictures = _pictures(folder)
    left = {picture.path for picture in pictures}
    found: dict[str, tuple[tuple[Path, ...], Path]] = {}
    for couple in COUPLES:
        free = [picture for picture in pictures if picture.path in left]
        for key, sources, target in _coupled(free, couple):
            if key not in found:
                found[key] = (sources, target)
                left -= {*sources, target}
    pairs = tuple(found[key] for key in sorted(found))
    return Pairing(pairs, tuple(p.path for p in pictures if p.path in left))


def is_role(name: str) -> bool:
    """Whether a folder's name says that it holds one half of pairs (``before``, ``targets``)."""
    return _ROLE.fullmatch(name) is not None


def has_target(folder: Path) -> bool:
    """Whether a folder is the sources' half of pairs: one of the targets' lies beside it."""
    role = _ROLE.fullmatch(folder.name)
    if role is None:
        return False
    wanted = {target for source, target in COUPLES if source == role[1].lower()}
    others = (_ROLE.fullmatch(p.name) for p in folder.parent.iterdir() if p.is_dir())
    return any(other is not None and other[1].lower() in wanted for other in others)


def pictures_in(folder: Path) -> list[Path]:
    """The picture files right in a folder, by name."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    paths = (folder / name for name in names if not name.startswith("."))
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def twins(pictures: Iterable[Path], among: Iterable[Path]) -> set[Path]:
    """Those ``among`` that have the same bytes as one of ``pictures``, whatever their names."""
    by_size: dict[int, set[str]] = {}
    for path in pictures:
        by_size.setdefault(path.stat().st_size, set()).add(sha256_file(path))
    return {
        path
        for path in among
        if (known := by_size.get(path.stat().st_size)) and sha256_file(path) in known
    }


def _pictures(folder: Path) -> list[_Picture]:
    found = [_named(path) for path in pictures_in(folder)]
    for sub in sorted(p for p in folder.iterdir() if p.is_dir()):
        role = _ROLE.fullmatch(sub.name)
        if role is not None:
            word, number = role[1].lower(), int(role[2] or 0)
            found += [_Picture(path, path.stem, word, number) for path in pictures_in(sub)]
    return found


def _named(path: Path) -> _Picture:
    """A picture whose own name has the word, at its end or its beginning."""
    tokens = _SEPARATOR.split(path.stem)
    # The word may itself have a number behind a separator: "0001_source_2".
    for ending in (1, 2):
        if len(tokens) > ending and (role := _ROLE.fullmatch("_".join(tokens[-ending:]))):
            key = path.stem[: -len("_".join(tokens[-ending:])) - 1]
            return _Picture(path, key, role[1].lower(), int(role[2] or 0))
    if len(tokens) > 1 and (role := _ROLE.fullmatch(tokens[0])):
        key = path.stem[len(tokens[0]) + 1 :]
        return _Picture(path, key, role[1].lower(), int(role[2] or 0))
    return _Picture(path, path.stem, "", 0)


def _coupled(
    pictures: Sequence[_Picture], couple: tuple[str, str]
) -> list[tuple[str, tuple[Path, ...], Path]]:
    """(key, sources, target) of the pictures that these two words bring together.

    A half without a word is taken where the other half has one. Two files for one half (a PNG
    and a JPEG of one name) are no pair: which is meant is for people to say.
    """
    groups: dict[str, dict[Part, list[_Picture]]] = {}
    for picture in pictures:
        part: Part | None = "plain" if not picture.word else None
        if picture.word in couple:
            part = "source" if picture.word == couple[0] else "target"
        if part is not None:
            groups.setdefault(picture.key, {}).setdefault(part, []).append(picture)
    made = []
    for key, parts in groups.items():
        sources, targets = parts.get("source", []), parts.get("target", [])
        if not sources or not targets:
            plain = parts.get("plain", [])
            sources, targets = (sources or plain, targets) if targets else (sources, plain)
        numbers = [source.number for source in sources]
        if len(targets) == 1 and sources and len(set(numbers)) == len(numbers):
            ordered = sorted(sources, key=lambda picture: picture.number)
            made.append((key, tuple(source.path for source in ordered), targets[0].path))
    return made
