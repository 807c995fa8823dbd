"""Adapters, images and model folders that are wrong."""

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.models.lora_formats import LoraModule, write_lora
from tests.unit.malformed.case import Case
from tests.unit.malformed.good_bank import TO_Q, WIDTH, Work, lora, write_image

SNOW = "adapters/snow.safetensors"
SOURCE = "pairs/snow_1_source.png"
A, B = f"transformer.{TO_Q}.lora_A.weight", f"transformer.{TO_Q}.lora_B.weight"
PLAIN = {A: torch.ones(2, WIDTH), B: torch.ones(WIDTH, 2)}
AGAIN = "download or export it again"


def _bytes(file: str, data: bytes) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        work.file(file).write_bytes(data)

    return spoil


def _truncated(file: str, keep: float) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        data = work.file(file).read_bytes()
        work.file(file).write_bytes(data[: int(len(data) * keep)])

    return spoil


def _modules(modules: dict[str, LoraModule]) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        write_lora(work.file(SNOW), modules, {})

    return spoil


def _tensors(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        save_file(tensors, work.file(SNOW), metadata)

    return spoil


def _torch_zip(work: Work) -> None:
    torch.save(PLAIN, work.file(SNOW))


def _adapter_folder(work: Work) -> None:
    work.file(SNOW).unlink()
    work.file(SNOW).mkdir()


def _header(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _nan(value: float, part: int) -> dict[str, LoraModule]:
    module = lora()[TO_Q]
    (module.down, module.up)[part].view(-1)[3] = value
    return {TO_Q: module}


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"")
    chunks = (head, b"IDAT" + body, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def _small(width: int, height: int) -> Callable[[Work], None]:
    return lambda work: write_image(work.file(SOURCE), size=(width, height))


def _deep(work: Work) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(work.file(SOURCE))


def _adapter(name: str, spoil: Callable[[Work], None], field: str, remedy: str) -> Case:
    return Case(name, spoil, "snow.safetensors", field, remedy)


def _image(name: str, spoil: Callable[[Work], None], field: str, remedy: str) -> Case:
    return Case(name, spoil, "snow_1_source.png", field, remedy)


FILE_CASES = (
    _adapter("adapter_empty", _bytes(SNOW, b""), "content", AGAIN),
    _adapter("adapter_truncated", _truncated(SNOW, 0.7), "content: truncated", AGAIN),
    _adapter("adapter_header_cut", _truncated(SNOW, 0.05), "content: truncated", AGAIN),
    _adapter("adapter_7_bytes", _bytes(SNOW, b"1234567"), "content", "safetensors"),
    _adapter("adapter_torch_zip", _torch_zip, "content: a zip", "give a safetensors file"),
    _adapter(
        "adapter_pickle",
        _bytes(SNOW, pickle.dumps({"a": 1}, protocol=4)),
        "content: a Python pickle",
        "give a safetensors file",
    ),
    _adapter(
        "adapter_lfs_pointer",
        _bytes(SNOW, b"version https://git-lfs.github.com/spec/v1\n"),
        "content: a Git LFS pointer",
        "give a safetensors file",
    ),
    _adapter(
        "adapter_huge_header", _bytes(SNOW, b"\xff" * 7 + b"\x00{}"), "content: a header", AGAIN
    ),
    _adapter("adapter_header_no_json", _bytes(SNOW, _header(b"{nope")), "content", AGAIN),
    _adapter(
        "adapter_key_twice_in_header",
        _bytes(SNOW, _header(b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}')),
        "given twice",
        AGAIN,
    ),
    _adapter(
        "adapter_broken_entry",
        _bytes(SNOW, _header({A: {"dtype": "F32", "shape": [-1], "data_offsets": "x"}})),
        "content",
        AGAIN,
    ),
    _adapter("adapter_no_tensors", _bytes(SNOW, _header({})), "no tensors", "a trained LoRA"),
    Case("adapter_is_a_folder", _adapter_folder, "bank.yaml", "effects.0.adapter", "add the file"),
    _adapter(
        "adapter_of_integers",
        _tensors({A: torch.ones(2, WIDTH, dtype=torch.int8), B: PLAIN[B]}),
        "lora_A.weight: not a float",
        "save it as F32",
    ),
    _adapter("adapter_no_up", _tensors({A: PLAIN[A]}), "lora_B or lora_up is missing", AGAIN),
    _adapter("adapter_no_down", _tensors({B: PLAIN[B]}), "lora_A or lora_down is missing", AGAIN),
    _adapter(
        "adapter_doubled",
        _tensors(PLAIN | {f"{TO_Q}.lora_A.weight": torch.zeros(2, WIDTH)}),
        "the same tensor as",
        "keep one of them",
    ),
    _adapter(
        "adapter_unknown_key",
        _tensors(PLAIN | {"transformer.img_in.bias": torch.zeros(4)}),
        "transformer.img_in.bias: unknown key",
        "lora_A/lora_B",
    ),
    _adapter(
        "adapter_lokr",
        _tensors({f"{TO_Q}.lokr_w1": torch.ones(2, 2)}),
        "LoKr",
        "convert the adapter to plain LoRA",
    ),
    _adapter(
        "adapter_loha",
        _tensors({f"{TO_Q}.hada_w1_a": torch.ones(2, 2)}),
        "LoHa",
        "convert the adapter to plain LoRA",
    ),
    _adapter(
        "adapter_kohya_other_modules",
        _tensors({"lora_unet_down_blocks_0_attn_to_q.lora_down.weight": PLAIN[A]}),
        "lora_unet_down_blocks_0_attn_to_q.lora_down.weight: the model has no",
        "use a LoRA for this model",
    ),
    _adapter(
        "adapter_kohya_no_up",
        _tensors({"lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": PLAIN[A]}),
        f"{TO_Q}: lora_B or lora_up is missing",
        AGAIN,
    ),
    _adapter(
        "adapter_in_two_styles",
        _tensors(
            PLAIN | {"lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": torch.ones(2, 2)}
        ),
        f"{A}: the same tensor as lora_unet_transformer_blocks_0_attn_to_q",
        "keep one of them",
    ),
    _adapter(
        "adapter_of_a_text_encoder",
        _tensors(PLAIN | {"lora_te1_text_model_encoder.lora_down.weight": torch.ones(2, 2)}),
        "text encoder",
        "train the adapter on the transformer alone",
    ),
    _adapter(
        "adapter_fused_rows",
        _tensors(
            {
                "transformer_blocks.0.attn.to_qkv.lora_A.weight": PLAIN[A],
                "transformer_blocks.0.attn.to_qkv.lora_B.weight": torch.ones(2 * WIDTH, 2),
            }
        ),
        "transformer_blocks.0.attn.to_qkv: 256 rows",
        AGAIN,
    ),
    _adapter(
        "adapter_two_alphas",
        _tensors(
            PLAIN | {f"transformer.{TO_Q}.alpha": torch.tensor(4.0)},
            {"lora_adapter_metadata": '{"transformer.lora_alpha": 8}'},
        ),
        "two alphas",
        AGAIN,
    ),
    _adapter(
        "adapter_alpha_regular_expression",
        _tensors(PLAIN, {"lora_adapter_metadata": '{"transformer.alpha_pattern": {"(a+)+$": 8}}'}),
        "alpha_pattern",
        "whole module paths",
    ),
    _adapter(
        "adapter_dora",
        _tensors(PLAIN, {"lora_adapter_metadata": '{"transformer.use_dora": true}'}),
        "use_dora",
        "plain LoRA",
    ),
    _adapter(
        "adapter_metadata_no_json",
        _tensors(PLAIN, {"lora_adapter_metadata": "nope"}),
        "lora_alpha",
        AGAIN,
    ),
    _adapter(
        "adapter_of_convolutions",
        _tensors({A: torch.ones(2, WIDTH, 1, 1), B: torch.ones(WIDTH, 2, 1, 1)}),
        "not a matrix",
        "LoRA of linear layers",
    ),
    _adapter(
        "adapter_alpha_of_two",
        _tensors(PLAIN | {f"transformer.{TO_Q}.alpha": torch.ones(2)}),
        f"{TO_Q}.alpha: not one number",
        AGAIN,
    ),
    _adapter(
        "adapter_alpha_nan",
        _tensors(PLAIN | {f"transformer.{TO_Q}.alpha": torch.tensor(float("nan"))}),
        f"{TO_Q}.alpha",
        "give the alpha",
    ),
    _adapter(
        "adapter_ranks_differ",
        _tensors({A: torch.ones(3, WIDTH), B: torch.ones(WIDTH, 2)}),
        "lora_A has rank 3, lora_B has rank 2",
        AGAIN,
    ),
    _adapter(
        "adapter_other_modules",
        _modules({"down_blocks.0.to_q": lora()[TO_Q]}),
        "down_blocks.0.to_q: the model has no such linear layer",
        "use a LoRA for this model",
    ),
    _adapter(
        "adapter_block_too_many",
        _modules({"transformer_blocks.2.attn.to_q": lora()[TO_Q]}),
        "transformer_blocks.2.attn.to_q",
        "use a LoRA for this model",
    ),
    _adapter(
        "adapter_other_width",
        _modules(lora(width=64)),
        f"{TO_Q}: the model's layer is (128, 128) wide",
        "use a LoRA for this model",
    ),
    _adapter("adapter_nan", _modules(_nan(float("nan"), 0)), "lora_A.weight: NaN", "train or"),
    _adapter("adapter_inf", _modules(_nan(float("inf"), 1)), "lora_B.weight: NaN", "train or"),
    _image("image_empty", _bytes(SOURCE, b""), "content", "save it again"),
    _image("image_is_text", _bytes(SOURCE, b"<html>not found</html>"), "content", "save it again"),
    _image("image_truncated", _truncated(SOURCE, 0.5), "content", "save it again"),
    _image("image_of_1_pixel", _small(1, 1), "size: smaller", "replace it"),
    _image("image_too_narrow", _small(7, 400), "size: smaller", "replace it"),
    _image("image_huge", _bytes(SOURCE, _png_of_size(9000, 9000)), "size: more", "scale it down"),
    _image("image_bomb", _bytes(SOURCE, _png_of_size(60000, 60000)), "size: more", "scale it down"),
    _image("image_postscript", _bytes(SOURCE, b"%!PS-Adobe-3.0 EPSF-3.0\n"), "content", "save it"),
    _image("image_16_bit", _deep, "mode", "8-bit RGB"),
)
