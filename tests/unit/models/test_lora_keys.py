"""Names to layers: what is ambiguous, unknown, missing or doubled is said, all of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.adapters import Adapters
from pipeline.models.lora_formats import LoraFile, linear_shapes, lora_problems, read_lora
from pipeline.problems import InputError
from tests.unit.tiny import tiny_editor, tiny_lora

LAYERS = {"a.to_q": (4, 3), "a.to_k": (2, 3), "a.to_v": (3, 3), "b.to_out.0": (4, 3)}


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({k: t.contiguous().clone() for k, t in tensors.items()}, path, metadata)
    return path


def pair(stem: str, out: int = 4, rank: int = 2) -> dict[str, Tensor]:
    up = torch.arange(float(out * rank)).reshape(out, rank)
    return {f"{stem}.lora_down.weight": torch.ones(rank, 3), f"{stem}.lora_up.weight": up}


def refusal(path: Path, layers: dict[str, tuple[int, int]] | None) -> str:
    with pytest.raises(InputError) as error:
        read_lora(path, layers)
    return str(error.value)


def test_two_layers_of_one_flattened_name_are_ambiguous(tmp_path: Path) -> None:
    layers = {"block.to_q.0": (4, 3), "block.to.q_0": (4, 3), "block.to_k": (4, 3)}
    path = save(tmp_path / "a.safetensors", pair("lora_unet_block_to_q_0"))
    text = refusal(path, layers)
    assert "ambiguous: the model has block.to_q.0 and block.to.q_0" in text
    assert "lora_unet_block_to_q_0.lora_down.weight" in text
    # The model's other layers are not in doubt.
    path = save(tmp_path / "b.safetensors", pair("lora_unet_block_to_k"))
    assert list(read_lora(path, layers).modules) == ["block.to_k"]


def test_flattened_names_need_the_model(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", pair("lora_unet_b_to_out_0"))
    assert "only the model's layers can tell" in refusal(path, None)
    assert list(read_lora(path, LAYERS).modules) == ["b.to_out.0"]
    path = save(tmp_path / "b.safetensors", pair("lora_unet_c_to_out_0"))
    assert "the model has no linear layer of that name" in refusal(path, LAYERS)


def test_every_wrong_key_is_named_however_many_there_are(tmp_path: Path) -> None:
    tensors = pair("a.to_q") | {"a.to_k.lora_A.weight": torch.ones(2, 3)}
    tensors |= {f"lora_unet_x_{i}_q.lora_down.weight": torch.ones(2, 3) for i in range(9)}
    tensors |= {f"x.{i}.w.diff": torch.ones(1) for i in range(9)} | pair("lora_unet_a_to_q")
    text = refusal(save(tmp_path / "a.safetensors", tensors), LAYERS)
    assert "a.to_k: lora_B or lora_up is missing" in text
    assert "and 6 more: unknown key: x.*.w.diff (6)" in text
    assert "and 6 more: the model has no linear layer" in text
    assert "lora_unet_x_*_q.lora_down.weight (6)" in text
    for part in ("down", "up"):
        key = f"lora_{part}.weight"
        assert f"lora_unet_a_to_q.{key}: the same tensor as a.to_q.{key}" in text


def test_fused_rows_go_to_layers_of_unequal_widths(tmp_path: Path) -> None:
    tensors = pair("lora_unet_a_to_qkv", out=9) | {"lora_unet_a_to_qkv.alpha": torch.tensor(1)}
    modules = read_lora(save(tmp_path / "a.safetensors", tensors), LAYERS).modules
    ups = [modules[f"a.{name}"].up for name in ("to_q", "to_k", "to_v")]
    assert [up.shape[0] for up in ups] == [4, 2, 3]
    assert torch.equal(torch.cat(ups), tensors["lora_unet_a_to_qkv.lora_up.weight"])
    assert {modules[n].scale for n in modules} == {0.5}
    text = refusal(save(tmp_path / "b.safetensors", pair("a.qkv", out=12)), LAYERS)
    assert "a.qkv: 12 rows for a.to_q, a.to_k, a.to_v of 4 + 2 + 3" in text
    # Without a model the three are taken to be alike.
    modules = read_lora(tmp_path / "b.safetensors").modules
    assert [m.up.shape[0] for m in modules.values()] == [4, 4, 4]


def test_a_layer_in_a_fused_module_and_by_itself_is_doubled(tmp_path: Path) -> None:
    tensors = pair("a.to_qkv", out=9) | pair("lora_unet_a_to_k", out=2)
    text = refusal(save(tmp_path / "a.safetensors", tensors), LAYERS)
    assert "lora_unet_a_to_k.lora_up.weight: the same tensor as a.to_qkv.lora_up.weight" in text


def test_a_models_own_fused_layer_is_left_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", pair("lora_unet_a_to_qkv", out=12))
    assert list(read_lora(path, {"a.to_qkv": (12, 3)}).modules) == ["a.to_qkv"]


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("lora_unet_a_to_q.lokr_w1", "LoKr"),
        ("diffusion_model.a.to_q.lokr_w2_a", "LoKr"),
        ("lycoris_a_to_q.hada_w1_a", "LoHa"),
        ("lora_unet_a_to_q.dora_scale", "DoRA"),
        ("base_model.model.a.to_q.lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_te_text_model_encoder_layers_0_q.lora_down.weight", "text encoder"),
        ("lora_te.layers.0.q_proj.lora_down.weight", "text encoder"),
        ("text_encoder_2.layers.0.q.lora_A.weight", "text encoder"),
        ("text_encoder.layers.0.q_proj.lora_A.weight", "text encoder"),
        ("a.to_q.lora_B.bias", "unknown key"),
        ("a.to_q.lora_mid.weight", "unknown key"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(tmp_path: Path, key: str, word: str) -> None:
    text = refusal(save(tmp_path / "a.safetensors", {key: torch.ones(2, 2)}), LAYERS)
    assert f"{key}: " in text and word in text


def test_the_patterns_of_a_config_are_names_first_come_first_served(tmp_path: Path) -> None:
    tensors = pair("a.to_q") | pair("aa.to_q") | pair("b.to_out.0")
    patterns = {r"^a\.to_q$": 3, "to_q": 5, "b.to_out.0": 7}
    recorded = {"transformer.alpha_pattern": patterns, "transformer.lora_alpha": 2}
    metadata = {"lora_adapter_metadata": json.dumps(recorded), "format": "pt", "note": "mine"}
    lora = read_lora(save(tmp_path / "a.safetensors", tensors, metadata))
    assert {n: m.alpha for n, m in lora.modules.items()} == {
        "a.to_q": 3.0,
        "aa.to_q": 5.0,
        "b.to_out.0": 7.0,
    }
    assert lora.metadata == {"note": "mine"}


def test_alphas_of_tensors_and_settings_must_agree(tmp_path: Path) -> None:
    recorded = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 0.1})}
    half = torch.tensor(0.1, dtype=torch.bfloat16)
    path = save(tmp_path / "a.safetensors", pair("a.to_q") | {"a.to_q.alpha": half}, recorded)
    assert read_lora(path).modules["a.to_q"].alpha == half.item()
    tensors = pair("a.to_q") | {"a.to_q.alpha": torch.tensor(0.2)}
    text = refusal(save(tmp_path / "b.safetensors", tensors, recorded), None)
    assert "a.to_q: two alphas: 0.2 in the tensors, 0.1 in the settings" in text


def test_whole_numbers_are_for_alphas_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", pair("a.to_q") | {"a.to_q.alpha": torch.tensor(6)})
    assert read_lora(path).modules["a.to_q"].scale == 3.0
    tensors = {key: t.long() for key, t in pair("a.to_q").items()}
    assert "not a float tensor" in refusal(save(tmp_path / "b.safetensors", tensors), None)
    tensors = pair("a.to_q") | {"a.to_q.alpha": torch.tensor(True)}
    assert "not a float tensor" in refusal(save(tmp_path / "c.safetensors", tensors), None)


def test_a_lora_is_checked_by_itself_where_there_is_no_model(tmp_path: Path) -> None:
    tensors = pair("nowhere") | {"nowhere.alpha": torch.tensor(-1.0)}
    (problem,) = lora_problems(read_lora(save(tmp_path / "a.safetensors", tensors)), None)
    assert problem.field == "nowhere.alpha"


def test_a_models_layers_are_the_same_with_adapters_on_it() -> None:
    editor = tiny_editor()
    bare = linear_shapes(editor.transformer)
    assert len(bare) == 14 + 6
    adapters = Adapters(editor.transformer)
    modules = tiny_lora(editor, {"to_q": 2, "img_mlp.net.2": 3}, {"to_q": 4.0}, 0)
    adapters.add_file("snow", LoraFile(Path("x"), modules))
    assert linear_shapes(editor.transformer) == bare
