"""What an edit is asked for as: a picture, one or two effects, a seed."""

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from pipeline.models.geometry import Geometry

Order = Literal["together", "in_turn"]
ORDERS: tuple[Order, ...] = ("together", "in_turn")
MAX_EFFECTS = 2
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class EditJob:
    """One picture to make.

    image: RGB, as :func:`prepare` leaves it; effects: names, the first one first; seed: 0 to
    ``MAX_SEED``; order: two effects ``together`` are one instruction naming A, then B (the
    paper's composition, at the cost of one edit), ``in_turn`` B is an edit of A's outcome.
    """

    image: Image.Image
    effects: tuple[str, ...]
    seed: int
    order: Order = "together"


def prepare(image: Image.Image, geometry: Geometry) -> Image.Image:
    """What of a photograph is edited: all of it, or its middle where the base knows squares alone.

    Scaled down where its long side is more than twice that of an edit: a model never sees more,
    and a picture that travels between processes should be small.
    """
    if geometry.sizes.square and image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    longest = 2 * geometry.sizes.side
    if max(image.size) <= longest:
        return image
    scale = longest / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
