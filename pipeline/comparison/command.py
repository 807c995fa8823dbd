"""``collectionlora compare``: the table to the terminal, the page to a file."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.compare import compare
from pipeline.comparison.gather import find, gather, stores_of
from pipeline.comparison.page import render
from pipeline.storage import write_atomic


def compare_runs(
    places: Sequence[str], experiment: str | None, against: str | None, out: Path
) -> list[Path]:
    """Write ``compare.html`` on all runs of the places into ``out``; returns what was written.

    Of a single place ``compare.md`` and ``compare.png``, too.

    Raises:
        InputError: no such store, experiment or student, or no scores.
    """
    stores = stores_of(places)
    columns = gather(stores, experiment)
    earlier = None if against is None else find(columns, against)
    names = ", ".join(store.label for store in stores)
    page = render(columns, earlier, f"Effects compared: {names}")
    written = [write_atomic(out / "compare.html", page.encode())]
    if len(stores) == 1:
        compare(stores[0].uri, experiment, out)
        written += [out / "compare.md", out / "compare.png"]
    return written
