"""The true size, on no device: Qwen-Image-Edit-2509's layers, and a rank-128 adapter on them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from pipeline.config import MODULES
from pipeline.models.adapters import Adapters
from pipeline.models.lora.read import assemble
from pipeline.models.lora_formats import LoraFile, LoraModule, linear_shapes, transformer_shapes

# transformer/config.json as published for Qwen-Image-Edit-2509.
CONFIG = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}
BLOCKS, WIDTH, HEAD, WORDS, RANK = 60, 24 * 128, 128, 3584, 128
# (out, in) of a block's linear layers, in widths.
INNER = {
    "attn.to_q": (1, 1),
    "attn.to_k": (1, 1),
    "attn.to_v": (1, 1),
    "attn.to_out.0": (1, 1),
    "attn.add_q_proj": (1, 1),
    "attn.add_k_proj": (1, 1),
    "attn.add_v_proj": (1, 1),
    "attn.to_add_out": (1, 1),
    "img_mlp.net.0.proj": (4, 1),
    "img_mlp.net.2": (1, 4),
    "txt_mlp.net.0.proj": (4, 1),
    "txt_mlp.net.2": (1, 4),
    "img_mod.1": (6, 1),
    "txt_mod.1": (6, 1),
}
OUTER = {
    "time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
    "time_text_embed.timestep_embedder.linear_2": (WIDTH, WIDTH),
    "img_in": (WIDTH, 64),
    "txt_in": (WIDTH, WORDS),
    "norm_out.linear": (2 * WIDTH, WIDTH),
    "proj_out": (2 * 2 * 16, WIDTH),
}


def expected_linears() -> dict[str, tuple[int, int]]:
    inner = {
        f"transformer_blocks.{i}.{name}": (WIDTH * out, WIDTH * into)
        for i in range(BLOCKS)
        for name, (out, into) in INNER.items()
    }
    return OUTER | inner


@pytest.fixture(scope="module")
def model() -> QwenImageTransformer2DModel:
    with torch.device("meta"):
        return QwenImageTransformer2DModel.from_config(CONFIG)


@pytest.fixture(scope="module")
def shapes(model: QwenImageTransformer2DModel) -> dict[str, tuple[int, int]]:
    return linear_shapes(model)


@pytest.fixture(scope="module")
def lora(shapes: dict[str, tuple[int, int]]) -> dict[str, LoraModule]:
    """Rank 128 on the published modules; each tensor its own object, none of them with memory."""
    return {
        name: LoraModule(
            torch.empty(RANK, into, device="meta"), torch.empty(out, RANK, device="meta"), 64.0
        )
        for name, (out, into) in shapes.items()
        if name.startswith("transformer_blocks.")
    }


def test_all_parameters_have_the_expected_names_and_shapes(
    model: QwenImageTransformer2DModel,
) -> None:
    expected: dict[str, tuple[int, ...]] = {"txt_norm.weight": (WORDS,)}
    for name, shape in expected_linears().items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in range(BLOCKS):
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            expected[f"transformer_blocks.{i}.attn.{norm}.weight"] = (HEAD,)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert sum(p.numel() for p in model.parameters()) == 20_430_401_088
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_config_alone_gives_the_same_layers(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(CONFIG))
    assert transformer_shapes(tmp_path) == expected_linears()


def test_a_rank_128_adapter_has_840_modules_and_1_179_648_000_parameters(
    lora: dict[str, LoraModule],
) -> None:
    """A module of (out, in) has r (out + in) parameters. In a block, in widths of 3072:

    8 attention layers of 1 + 1 = 16; 4 MLP layers of 1 + 4 = 20; 2 modulations of 1 + 6 = 14:
    together 50 widths = 153,600. Times 128 ranks = 19,660,800 a block, times 60 blocks.
    """
    published = {f"transformer_blocks.{i}.{m}" for i in range(BLOCKS) for m in MODULES}
    assert lora.keys() == published
    assert len(lora) == 14 * 60 == 840
    counted = sum(m.down.numel() + m.up.numel() for m in lora.values())
    assert counted == 60 * 128 * 50 * 3072 == 1_179_648_000


def test_ranks_and_alphas_of_every_module_reach_its_layer(lora: dict[str, LoraModule]) -> None:
    with torch.device("meta"):
        adapters = Adapters(QwenImageTransformer2DModel.from_config(CONFIG))
        modules = {}
        for i, (name, m) in enumerate(lora.items()):
            rank = 1 + i % 30
            modules[name] = LoraModule(m.down[:rank], m.up[:, :rank], 1.0 + i % 7)
        adapters.add_file("resized", LoraFile(Path("a file"), modules))
    state = adapters.state("resized")
    for name, m in modules.items():
        assert state[f"{name}.lora_A"].shape == m.down.shape
        assert adapters.layers[name].scaling[adapters.slot("resized")] == m.scale


PREFIXES = (
    "",
    "transformer.",
    "diffusion_model.",
    "base_model.model.",
    "base_model.model.transformer.",
)
PAIRS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora.down.weight", "lora.up.weight"),
)
STYLES = [(prefix, *pair, False) for prefix in PREFIXES for pair in PAIRS] + [
    (prefix, "lora_down.weight", "lora_up.weight", True)
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")
]


@pytest.mark.parametrize(("prefix", "down", "up", "flat"), STYLES)
def test_every_style_maps_onto_them_one_to_one(
    prefix: str,
    down: str,
    up: str,
    flat: bool,
    shapes: dict[str, tuple[int, int]],
    lora: dict[str, LoraModule],
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, m in lora.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{stem}.{down}": m.down, f"{stem}.{up}": m.up}
        tensors[f"{stem}.alpha"] = torch.tensor(64.0)
    read = assemble("a file", tensors, tensors.__getitem__, shapes)
    assert read.keys() == lora.keys()
    for name, m in read.items():
        # The very objects: shapes alone would not tell one block from another.
        assert m.down is lora[name].down and m.up is lora[name].up
        assert m.scale == 0.5


@pytest.mark.parametrize("prefix", ["transformer.", "lora_unet_"])
def test_fused_layers_map_onto_them_one_to_one(
    prefix: str, shapes: dict[str, tuple[int, int]], lora: dict[str, LoraModule]
) -> None:
    tensors: dict[str, Tensor] = {}
    fused = {
        "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.to_added_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    }
    parts = {part for names in fused.values() for part in names}
    for i in range(BLOCKS):
        block = f"transformer_blocks.{i}."
        sizes = {n: 1 for n in INNER if n not in parts} | dict.fromkeys(fused, 3)
        for name, times in sizes.items():
            m = lora[block + (fused[name][0] if name in fused else name)]
            stem = block + name if prefix == "transformer." else (block + name).replace(".", "_")
            tensors[f"{prefix}{stem}.lora_down.weight"] = m.down
            tensors[f"{prefix}{stem}.lora_up.weight"] = torch.empty(
                times * m.up.shape[0], RANK, device="meta"
            )
    assert len(tensors) == 2 * BLOCKS * (8 + 2)
    read = assemble("a file", tensors, tensors.__getitem__, shapes)
    assert {n: (m.down.shape, m.up.shape) for n, m in read.items()} == {
        n: (m.down.shape, m.up.shape) for n, m in lora.items()
    }
    for i in range(BLOCKS):
        for names in fused.values():
            three = [read[f"transformer_blocks.{i}.{n}"] for n in names]
            assert all(m.down is lora[f"transformer_blocks.{i}.{names[0]}"].down for m in three)
            # Query, key, value: the first, second and third part of the rows.
            rows = [m.up.storage_offset() // RANK for m in three]
            assert rows == [0, WIDTH, 2 * WIDTH]
