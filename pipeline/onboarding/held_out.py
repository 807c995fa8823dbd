"""Pictures to evaluate on where the user set none apart: listed in the bank, never moved."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.bank_pairs import pictures_in
from pipeline.onboarding.survey import FoundEffect
from pipeline.storage import sha256_file

MOST = 8
SHARE = 5  # one in five


def choose_held_out(effects: Sequence[FoundEffect], photographs: Path | None) -> list[Path]:
    """Up to eight pictures, one in five of those there are, evenly spread over the names.

    From the unlabelled photographs if there are enough, else from the sources of pairs. The bank
    leaves out of training whatever has the same bytes, so no effect may lose all its pairs.
    """
    if photographs is not None and len(found := pictures_in(photographs)) >= SHARE:
        return _spread(found)
    distinct: dict[str, Path] = {}
    uses: dict[str, set[str]] = {}
    for effect in effects:
        for sources, _ in effect.pairs.pairs:
            for path in sources:
                key = sha256_file(path)
                distinct.setdefault(key, path)
                uses.setdefault(effect.name, set()).add(key)
    if len(distinct) < 2:
        return []
    chosen: list[Path] = []
    out: set[str] = set()
    for path in _spread(list(distinct.values())):
        key = sha256_file(path)
        if all(keys - out - {key} or key not in keys for keys in uses.values()):
            chosen.append(path)
            out.add(key)
    return chosen


def _spread(paths: list[Path]) -> list[Path]:
    count = max(1, min(MOST, len(paths) // SHARE))
    return [paths[(2 * i + 1) * len(paths) // (2 * count)] for i in range(count)]
