"""Opening images that came from others: bounded, upright, RGB."""

import io
import struct
import threading
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from pipeline.problems import InputError, Problem

MIN_SIDE = 8
MAX_PIXELS = 64_000_000
# Formats that are pictures and nothing else (PIL would also run a PostScript interpreter).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# More than 8 bits a channel: PIL's conversion to RGB clips these.
_DEEP_MODES = ("F", "I")

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# warnings.catch_warnings is not for two threads at once.
_warnings_lock = threading.Lock()


def open_image(path: str | Path) -> Image.Image:
    """The image of a file as 8-bit RGB, EXIF orientation applied, transparency over white.

    Sides from 8 px, at most 64 megapixels: looked up in the header before anything is decoded.

    Raises:
        InputError (a ValueError): no such file, not a JPEG, PNG, WebP or BMP, broken, or of a
            size out of bounds.
    """
    path = Path(path)
    if not path.is_file():
        raise _refused(
            str(path), "", None, "no such image file", "add the file or correct the path"
        )
    return _read(path, str(path), MAX_PIXELS)


def read_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image that came as bytes, as :func:`open_image` gives a file's; ``name`` is for messages.

    Raises:
        InputError: as :func:`open_image`, or more than ``max_pixels``.
    """
    return _read(io.BytesIO(content), name, max_pixels)


def _read(source: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with _open_header(source, name, max_pixels) as image:
            _check_header(name, image, max_pixels)
            return _rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except _BROKEN as error:
        what = f"cannot be read as an image ({' '.join(str(error).split())[:120]})"
        raise _refused(
            name, "content", None, what, "save it again as a whole JPEG, PNG, WebP or BMP"
        ) from None


def _open_header(source: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    # PIL warns of large images on its own scale; ours is checked next, with a better message.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(source, formats=FORMATS)
        except Image.DecompressionBombError:
            what = f"more than {max_pixels} pixels"
            raise _refused(name, "size", None, what, "scale it down") from None


def _check_header(name: str, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    size = f"{width} x {height}"
    if min(width, height) < MIN_SIDE:
        what = f"smaller than {MIN_SIDE} px on a side"
        raise _refused(name, "size", size, what, "replace it or remove its row")
    if width * height > max_pixels:
        what = f"more than {max_pixels} pixels"
        raise _refused(name, "size", size, what, "scale it down")
    if image.mode.startswith(_DEEP_MODES):
        what = "more than 8 bits a channel"
        raise _refused(name, "mode", image.mode, what, "save it as 8-bit RGB")


def _rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    return white


def _refused(name: str, field: str, value: object, what: str, remedy: str) -> InputError:
    return InputError([Problem(name, field, value, what, remedy)])
