"""Between arrays and PIL images."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_image(picture: NDArray[np.float32]) -> Image.Image:
    """``[H, W, 3]`` in [0, 1] to a PIL image."""
    return Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """A PIL image to ``[H, W, 3]`` in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
