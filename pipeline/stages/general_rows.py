"""General rows beside effects: where a LoRA that learns effects is held to the base."""

from pipeline.distill.lesson import Pair
from pipeline.problems import InputError, Problem
from pipeline.types import Manifest


def general_rows(manifest: Manifest, count: int, field: str) -> tuple[Pair, ...]:
    """At most so many, each picture in the place of its edit, which nobody has made.

    What the base says of it, noised, is to be kept. An edit of another size than its picture is
    left out. field: the recipe's, that asks for them.

    Raises:
        InputError: none is left.
    """
    rows = [s for s in manifest.general if s.shapes[-1] == s.shapes[0]]
    if not rows:
        what = "no general row whose edit has its picture's size, to hold a LoRA to the base"
        remedy = f"add general rows of such a size, or set {field} to 0"
        raise InputError([Problem("the bank", "general", None, what, remedy)])
    return tuple((sample, sample.sources[-1]) for sample in rows[:count])
