"""What the application allows and where it keeps its thumbnails."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of the machine.

    upload_bytes, pixels: of one photograph; read_seconds: to receive it; edit_seconds: to wait
    for and make a picture; waiting: edits under way or queued at once, more are told to come back.
    """

    upload_bytes: int = 12 * 2**20
    pixels: int = 24_000_000
    read_seconds: float = 20.0
    edit_seconds: float = 60.0
    waiting: int = 64
