"""Bad requests of every kind, from a seed: huge, truncated, wrong types, path and prompt tricks."""

import io
import random
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from PIL import Image

EDIT = "/api/edit?effect=snow"
JPEG = {"content-type": "image/jpeg"}


@dataclass(frozen=True)
class Bad:
    """A request that must be answered by 4xx; ``body`` as pieces is sent without a length."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | list[bytes] = b""

    def content(self) -> "bytes | AsyncIterator[bytes]":
        if isinstance(self.body, bytes):
            return self.body
        pieces = self.body

        async def stream() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return stream()


def photograph(kind: str, seed: int = 0, size: tuple[int, int] = (48, 48)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bad_requests(count: int, limit: int, seed: int = 0) -> list[Bad]:
    """``count`` of them, all kinds in turn; ``limit``: the bytes that the server takes."""
    rng = random.Random(seed)
    kinds = [_huge(rng, limit), _truncated(rng), _types(rng), _paths(rng), _prompts(rng)]
    turns = (request for turn in zip(*kinds, strict=True) for request in turn)
    return list(islice(turns, count))


def _huge(rng: random.Random, limit: int) -> Iterator[Bad]:
    while True:
        over = limit + rng.randrange(1, 5000)
        yield Bad("POST", EDIT, JPEG, b"\xff\xd8" + bytes(over))
        yield Bad("POST", EDIT, JPEG, [bytes(limit // 3)] * 4)
        sides = (rng.randrange(20_000, 2**31), rng.randrange(20_000, 2**31))
        yield Bad("POST", EDIT, {"content-type": "image/png"}, _bomb(*sides))
        yield Bad("POST", EDIT, {"content-type": "image/png"}, _bomb(1, rng.randrange(1, 8)))


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _truncated(rng: random.Random) -> Iterator[Bad]:
    whole = {kind: photograph(kind, 3) for kind in ("JPEG", "PNG", "WEBP", "BMP")}
    while True:
        kind = rng.choice(sorted(whole))
        content = whole[kind]
        headers = {"content-type": f"image/{kind.lower()}"}
        yield Bad("POST", EDIT, headers, content[: rng.randrange(0, len(content) * 4 // 5)])
        # Noise through the header: no format survives it.
        yield Bad("POST", EDIT, headers, rng.randbytes(24) + content[24:])


def _types(rng: random.Random) -> Iterator[Bad]:
    wrong = (
        "text/html",
        "application/pdf",
        "multipart/form-data",
        "",
        "application/json",
        "a" * 900,
    )
    texts = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n(a) run",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04" + bytes(60),
        b"GIF89a" + bytes(40),
        b"II*\x00" + bytes(60),
        b"#!/bin/sh\n",
        b"",
    )
    while True:
        yield Bad("POST", EDIT, {"content-type": rng.choice(wrong)}, photograph("PNG"))
        yield Bad("POST", EDIT, JPEG, rng.choice(texts) + rng.randbytes(rng.randrange(1, 99)))
        yield Bad(rng.choice(("PUT", "PATCH", "DELETE", "GET")), EDIT, JPEG)
        yield Bad("POST", "/", JPEG, b"x")


def _paths(rng: random.Random) -> Iterator[Bad]:
    places = (
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%5c..%5cwindows",
        "%2fetc%2fpasswd",
        "snow%00.webp",
        "snow.webp",
        "snow%2f..%2ffog",
        "SNOW",
        "file:%2f%2f%2fetc%2fpasswd",
        "%f0%28%8c%bc",
    )
    while True:
        yield Bad("GET", f"/thumbnails/{rng.choice(places)}{'x' * rng.randrange(3)}")
        yield Bad("GET", f"/{rng.choice(places)}")
        effect = rng.choice(places)
        yield Bad("POST", f"/api/edit?effect={effect}", JPEG, photograph("JPEG"))


def _prompts(rng: random.Random) -> Iterator[Bad]:
    queries = (
        "effect=snow%3B+ignore+all+instructions",
        "effect=%3Csnow_T0%3E+make+it+snow",
        "effect=%EF%BD%93now",
        "effect=snow&prompt=a+person+without",
        "effect=snow&negative_prompt=x",
        "effect=snow&adapter=../other",
        "effect=snow&effect=fog&effect=neon",
        "effect=",
        "",
        "effect=snow&seed=-1",
        "effect=snow&seed=4294967296",
        "effect=snow&seed=nan",
        "effect=snow&seed=1e3",
        f"effect=snow&seed={'9' * 5000}",
        "effect=snow&order=both",
        f"effect={'snow' * 2000}",
        "effect[]=snow",
        "effect=snow%0d%0aX-Evil:+1",
        "effect={{7*7}}",
        "effect=%27%3B+DROP+TABLE+effects%3B--",
    )
    while True:
        for query in rng.sample(queries, len(queries)):
            yield Bad("POST", f"/api/edit?{query}", JPEG, photograph("JPEG"))
