"""Many problems of one kind in a few lines, with nothing left out."""

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.problems import Problem

_SHOWN = 3
_PATTERNS = 20


def shortened(problems: Sequence[Problem]) -> list[Problem]:
    """A few of each kind, then one line that lists the rest, block numbers as ``*``.

    A LoRA for another model would otherwise give a thousand lines.
    """
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for p in problems:
        # Numbers differ from layer to layer within one kind.
        kinds.setdefault((re.sub(r"\d+", "0", p.what), p.remedy), []).append(p)
    rest: list[Problem] = []
    shown: list[Problem] = []
    for alike in kinds.values():
        shown += alike[:_SHOWN]
        more = alike[_SHOWN:]
        if more:
            what = f"and {len(more)} more: {more[0].what}: {_names(more)}"
            rest.append(Problem(more[0].file, "", None, what, more[0].remedy))
    return shown + rest


def _names(problems: Sequence[Problem]) -> str:
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)|(?<=_)\d+(?=_)", "*", p.field) for p in problems)
    names = [f"{name} ({n})" if n > 1 else name for name, n in counts.items()]
    left = f", and {len(names) - _PATTERNS} more names" if len(names) > _PATTERNS else ""
    return ", ".join(names[:_PATTERNS]) + left
