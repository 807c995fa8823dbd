"""The safetensors container: a checked header, and a writer whose bytes repeat."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.problems import InputError, Problem

MAX_HEADER = 16 * 2**20
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
WHOLE_NUMBERS = {"I64", "I32"}
AGAIN = "download or export it again"
_SHOWN = 3


def read_header(path: Path, whole_numbers: str | None = None) -> dict[str, Any]:
    """The JSON header of a safetensors file of float tensors.

    Tensors whose key ends in ``whole_numbers`` may be integers.

    Raises:
        InputError (a ValueError): as :func:`whole_header`, or a tensor that is not of floats.
    """
    header = whole_header(path)
    known = set(DTYPES.values())
    for key, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if whole_numbers and key.endswith(whole_numbers) and dtype in WHOLE_NUMBERS:
            continue
        if key != "__metadata__" and dtype not in known:
            problem = Problem(
                str(path), key, dtype, "not a float tensor", "save it as F32, BF16 or F16"
            )
            raise InputError([problem])
    return header


def whole_header(path: Path) -> dict[str, Any]:
    """The JSON header of a whole safetensors file: at most 16 MiB, no key twice.

    These checks come before safetensors' own, for their clearer messages.

    Raises:
        InputError (a ValueError): no such file, a pickle or anything else in disguise, truncated.
    """

    def refused(what: str, remedy: str = AGAIN) -> InputError:
        return InputError([Problem(str(path), "content", None, what, remedy)])

    if not path.is_file():
        raise refused("no such file", "add the file or correct the path")
    size = path.stat().st_size
    if size == 0:
        raise refused("the file is empty")
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] != b"{":
            raise refused(_disguise(start), "give a safetensors file")
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER:
            raise refused(f"a header of {length} bytes, more than {MAX_HEADER}")
        if length + 8 > size:
            raise refused(f"truncated: {size} bytes, the header alone has {length}")
        text = b"{" + file.read(length - 1)
    doubled: list[str] = []

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(items)
        if len(seen) < len(items):
            doubled.extend(k for k in seen if sum(k == other for other, _ in items) > 1)
        return seen

    try:
        header = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise refused(f"the header is not JSON ({error})") from None
    if doubled:
        raise refused(f"keys given twice in the header: {', '.join(doubled[:_SHOWN])}")
    ends = [_end(entry) for key, entry in header.items() if key != "__metadata__"]
    if size < 8 + length + max(ends, default=0):
        raise refused(f"truncated: {size} bytes of {8 + length + max(ends)}")
    loaded: dict[str, Any] = header
    return loaded


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write float tensors; the same tensors and metadata give the same bytes.

    safetensors' own writer puts the metadata in another order at each run.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    # Wide types first, as safetensors does: every tensor lies aligned in the file.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        t = tensors[name]
        if t.dtype not in DTYPES:
            raise ValueError(f"{path}: {name}: {t.dtype} is not a float type; convert it first")
        start, end = end, end + t.numel() * t.element_size()
        header[name] = {
            "dtype": DTYPES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(data.numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _end(entry: Any) -> int:
    try:
        return int(entry["data_offsets"][1])
    except (TypeError, LookupError, ValueError):
        return 0  # safetensors itself reports a broken entry


def _disguise(start: bytes) -> str:
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive (a PyTorch pickle), not safetensors"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle, not safetensors"
    if start.startswith(b"version "):
        return "a Git LFS pointer, not the file itself"
    return "not a safetensors file"
