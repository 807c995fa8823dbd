"""The bench in its small size: every row is there, counted as it should be, and may fail alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import MODULES
from pipeline.distill.bench import cases
from pipeline.distill.bench.__main__ import bars, main
from pipeline.distill.bench.flops import forward_flops, training_flops
from pipeline.distill.bench.measure import Record
from pipeline.distill.bench.model import FULL, MINI, random_conditions, random_editor
from pipeline.distill.update import STUDENT
from pipeline.models.adapters import BASE
from tests.unit.models.test_lora_full_size import CONFIG


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "mini.json"
    assert main(["--size", "mini", "--device", "cpu", "--out", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_row_is_measured(record: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in record["rows"]}
    backend = record["about"]["attention"]
    expected = {f"{kind}, native, batch 1" for kind in ("forward", "train")}
    expected |= {f"{kind}, {backend}, batch 2" for kind in ("forward", "train")}
    expected |= {"published update, emulated", "student update", "student update, float8 base"}
    expected |= {"rollout", "target", "adapter switch"}
    assert expected <= rows.keys()
    for name in expected:
        assert "error" not in rows[name], rows[name]
        assert rows[name].get("seconds", 1) > 0
    assert rows["student update"]["forwards"] == 26
    assert rows["student update"]["finite"] is True
    assert rows["rollout"]["forwards"] == 13
    assert rows["train, native, batch 1"]["mfu"] > 0
    assert len(record["about"]["bars"]) == 6


@pytest.mark.slow
def test_the_seconds_are_as_the_forwards_say(record: dict[str, Any]) -> None:
    """Slow for its reason, not its length: it compares seconds, which wants a quiet machine."""
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["train, native, batch 1"]["mfu"] < 1.5
    # Ours does a third of the forwards.
    ours = rows["student update"]["seconds"]
    assert ours < rows["published update, emulated"]["seconds"]
    switch = rows["adapter switch"]
    assert switch["seconds_from_host"] < switch["seconds_injected_with_its_file_read"]


def test_the_published_update_costs_77_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = cases.Bench(MINI, torch.device("cpu"), 1e12, repeats=1)
    forwards = cases.Forwards.of(bench)
    cost = [0]

    def work(batch: int, train: bool, adapter: str = BASE) -> Any:
        def add() -> None:
            cost[0] += 3 if train else 1

        return add

    monkeypatch.setattr(forwards, "work", work)
    forwards.published()
    warm = 1 + 1 + 3
    assert cost == [warm + 77]


@pytest.mark.parametrize("rank", [0, MINI.rank])
def test_operations_are_those_that_torch_counts(rank: int) -> None:
    device = torch.device("cpu")
    bench = cases.Bench(MINI, device, 1e12, repeats=1)
    editor = random_editor(MINI, device)
    editor.transformer.set_attention_backend("_native_math")
    adapters = bench.adapters(editor, STUDENT)
    x = torch.randn(1, MINI.tokens, MINI.config["in_channels"])
    conditions = random_conditions(MINI, 1, device)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), adapters.use(STUDENT if rank else BASE):
        editor.velocity(x, torch.tensor([0.5]), conditions)
    ours = forward_flops(editor.transformer, 2 * MINI.tokens, MINI.words, rank)
    assert ours == counter.get_total_flops()


def test_operations_at_the_true_size() -> None:
    with torch.device("meta"):
        model = QwenImageTransformer2DModel.from_config(CONFIG)
    pictures, words, width = 2 * FULL.tokens, FULL.words, 3072
    total = forward_flops(model, pictures, words)
    # Half of the blocks' weights are the pictures', but for modulation, and half the prompt's.
    blocks = 60 * 2 * (12 * width**2 * (pictures + words) + 12 * width**2)
    attention = 60 * 4 * (pictures + words) ** 2 * width
    assert total == pytest.approx(blocks + attention, rel=2e-3)
    assert training_flops(total, 0) == 2 * total
    assert FULL.config.items() <= CONFIG.items()
    assert set(cases.MODULES) == set(MODULES)


def test_a_row_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json", {})

    def no_memory() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory: so many bytes\nand more")

    def no_backend() -> dict[str, Any]:
        raise ImportError("no such backend")

    assert record.add("large", no_memory) is None
    assert record.add("absent", no_backend) is None
    assert record.add("good", lambda: {"seconds": 1.0}) == {"name": "good", "seconds": 1.0}
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [row.get("error") for row in rows] == [
        "out of memory",
        "ImportError: no such backend",
        None,
    ]


def test_bars_say_what_is_met_and_what_was_not_measured() -> None:
    rows: dict[str, dict[str, Any]] = {
        "student update": {"seconds": 30.0, "peak_gib": 126.0},
        "published update, emulated": {"seconds": 100.0},
        "train, native, batch 1": {"mfu": 0.39},
        "train, native, batch 2": {"mfu": 0.45},
        "adapter switch": {"seconds_from_host": 0.1},
        "rollout": {"seconds": 4.0},
    }
    found = bars(rows)
    assert found[0].endswith("126, at most 125: NOT MET")
    assert found[1].endswith("not measured")
    assert found[2].endswith("0.45, at least 0.4: met")
    assert [line.split(": ")[-1] for line in found[3:]] == ["met", "NOT MET", "met"]
