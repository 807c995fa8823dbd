"""Stacking against the sum of the updates; merging against its formulas and peft's own model."""

import pytest
import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn

from pipeline.models.lora_formats import LoraModule
from pipeline.models.merging import merge, stack


def lora(seed: int, rank: int = 3, alpha: float | None = None) -> LoraModule:
    g = torch.Generator().manual_seed(seed)
    return LoraModule(torch.randn(rank, 6, generator=g), torch.randn(5, rank, generator=g), alpha)


def update(module: LoraModule) -> Tensor:
    return module.scale * module.up @ module.down


def test_a_stack_adds_what_its_parts_add() -> None:
    a, b, c = lora(0, 2, alpha=5.0), lora(1, 4), lora(2, 1)
    stacked = stack([{"x": a, "y": c}, {"x": b}])
    assert stacked["x"].rank == 6
    torch.testing.assert_close(update(stacked["x"]), update(a) + update(b))
    torch.testing.assert_close(update(stacked["y"]), update(c))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(6, 5, bias=False)


@pytest.mark.parametrize(("method", "name"), [("linear", "linear"), ("ties", "ties")])
def test_merging_is_what_pefts_add_weighted_adapter_does(method: str, name: str) -> None:
    parts = [lora(0, alpha=6.0), lora(1), lora(2, alpha=1.5)]
    config = LoraConfig(r=3, lora_alpha=6.0, target_modules=["x"])
    model = LoraModel(Layer(), config, "a0")
    for i, part in enumerate(parts):
        if i:
            alpha = 3.0 if part.alpha is None else part.alpha
            other = LoraConfig(r=3, lora_alpha=alpha, target_modules=["x"])
            model.peft_config[f"a{i}"] = other
            model.inject_adapter(model.model, f"a{i}")
        model.model.x.lora_A[f"a{i}"].weight.data = part.down.clone()
        model.model.x.lora_B[f"a{i}"].weight.data = part.up.clone()
    weight = 1.0 if method == "ties" else 1 / 3
    model.add_weighted_adapter(["a0", "a1", "a2"], [weight] * 3, "m", name, density=0.5)
    layer = model.model.x
    expected = layer.scaling["m"] * layer.lora_B["m"].weight @ layer.lora_A["m"].weight
    merged = merge([{"x": p} for p in parts], method, 0.5, seed=0)["x"]  # type: ignore[arg-type]
    torch.testing.assert_close(update(merged), expected)


def test_dare_keeps_a_share_of_entries_and_its_seed_decides_which() -> None:
    parts = [{"x": lora(i, rank=40)} for i in range(2)]
    one, again, other = (merge(parts, "dare", 0.25, seed)["x"].down for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # An entry is zero where both have lost it: 0.75 squared of them.
    assert abs((one == 0).float().mean().item() - 0.5625) < 0.1


def test_unlike_loras_are_refused() -> None:
    with pytest.raises(ValueError, match="different ranks"):
        merge([{"x": lora(0, 2)}, {"x": lora(1, 3)}], "linear", 1.0, 0)
    with pytest.raises(ValueError, match="different modules"):
        merge([{"x": lora(0)}, {"y": lora(1)}], "linear", 1.0, 0)
