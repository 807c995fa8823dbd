"""A thumbnail of each effect: the student's own edit of one photograph, made once and kept."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

from PIL import Image

from pipeline.editing.jobs import EditJob
from pipeline.storage import write_atomic

SIDE = 256
SEED = 0

Make = Callable[[EditJob], Awaitable[Image.Image]]


class Thumbnails:
    """WebP files ``<effect>.webp`` in a folder whose name says which student made them."""

    def __init__(self, folder: Path, sample: Image.Image, make: Make) -> None:
        self.folder = folder
        self.sample = sample
        self.make = make
        self._under_way: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, effect: str) -> bytes:
        """A thumbnail's WebP; many who ask at once wait for one edit. ``effect`` must be known."""
        path = self.folder / f"{effect}.webp"
        if path.is_file():
            return path.read_bytes()
        task = self._under_way.get(effect)
        if task is None:
            task = asyncio.create_task(self._new(effect, path))
            self._under_way[effect] = task
            task.add_done_callback(lambda _: self._under_way.pop(effect, None))
        # A visitor who leaves must not take the picture from the others.
        return await asyncio.shield(task)

    async def _new(self, effect: str, path: Path) -> bytes:
        picture = await self.make(EditJob(self.sample, (effect,), SEED))
        content = encode_thumbnail(picture, self.sample.size)
        write_atomic(path, content)
        return content


def encode_thumbnail(picture: Image.Image, shape: tuple[int, int]) -> bytes:
    """A picture as WebP, its long side ``SIDE``, at the aspect ratio of ``shape``."""
    scale = SIDE / max(shape)
    size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
