"""``python -m pipeline`` is ``collectionlora``."""

from pipeline.cli import run

run()
