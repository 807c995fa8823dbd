"""A student group sharded over two processes is one that is not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.distill.checkpoint import STATE_FILE
from pipeline.distill.dealing import Dealing
from tests.unit.distill.group import Group
from tests.unit.distill.halves import Collection
from tests.unit.distill.sharded_rounds import SETTINGS, WHOLE, WORKERS, in_two_processes, look
from tests.unit.tiny import tiny_editor

CLOSE = 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """Checkpoints: ``one`` and ``two`` at round 3; at round 4 from each by one and by two.

    And ``uneven`` and ``even`` at round 2, of three logical ranks on two processes and on three.
    """
    folder = tmp_path_factory.mktemp("runs")
    base = folder / "base"
    # Several files, so that rows are looked up in the right one.
    tiny_editor().transformer.save_pretrained(base / "transformer", max_shard_size="60KB")
    assert len(list((base / "transformer").glob("*.safetensors"))) > 2
    collection = Collection(folder / "collection")
    threads = Group(collection, WHOLE, SETTINGS)
    metrics = threads.go_on(range(3))[0]
    threads.save(folder / "one", 3)
    in_two_processes(folder, base, folder / "one")
    threads.go_on(range(3, 4))
    threads.save(folder / "one_more", 4)
    resumed = Group(collection, WHOLE, SETTINGS, folder / "two")
    resumed.go_on(range(3, 4))
    resumed.save(folder / "one_from_two", 4)
    three = Group(collection, Dealing(3, 3), SETTINGS)
    three.go_on(range(2))
    three.save(folder / "even", 2)
    return folder, metrics


def seen(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"rank{rank}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("ours", "reference"),
    [("two", "one"), ("two_more", "one_more"), ("one_from_two", "one_more"), ("uneven", "even")],
)
def test_two_processes_are_one(
    runs: tuple[Path, list[dict[str, float]]], ours: str, reference: str
) -> None:
    folder, _ = runs
    names = {path.name for path in (folder / reference).glob("*.safetensors")}
    assert len(names) == 6
    moved = 0.0
    for name in names:
        mine, theirs = load_file(folder / ours / name), load_file(folder / reference / name)
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype == torch.float32
            assert (mine[key] - value).abs().max() < CLOSE, (name, key)
            if name == "student.safetensors" and key.endswith("lora_B"):
                moved = max(moved, value.abs().max().item())
    # B begins at zero: a hundred times the tolerance has been learned.
    assert moved > 100 * CLOSE
    states = [json.loads((folder / run / STATE_FILE).read_text()) for run in (ours, reference)]
    assert states[0] == states[1]


def test_losses_and_gradients_norms_are_the_whole_groups(
    runs: tuple[Path, list[dict[str, float]]],
) -> None:
    folder, reference = runs
    metrics = seen(folder, 0)["metrics"]
    for mine, theirs in zip(metrics, reference, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    norms = [m[f"grad_norm_{name}"] for m in metrics for name in ("fake", "student")]
    assert max(norms) > SETTINGS.grad_clip
    # Both workers clip by the same norm, though their samples differ.
    other = seen(folder, 1)["metrics"]
    assert [m["grad_norm_student"] for m in other] == [m["grad_norm_student"] for m in metrics]
    assert other[0]["loss_fake"] != metrics[0]["loss_fake"]


def test_a_look_at_a_sharded_student_is_one_at_the_whole(
    runs: tuple[Path, list[dict[str, float]]],
) -> None:
    folder, _ = runs
    whole = Group(Collection(folder / "looked at"), WHOLE, SETTINGS, folder / "one").trainers[0]
    expected = look(whole)
    for rank in range(WORKERS):
        assert seen(folder, rank)["look"] == pytest.approx(expected, rel=1e-4)


def test_each_process_holds_its_rows_alone(runs: tuple[Path, list[dict[str, float]]]) -> None:
    folder, _ = runs
    ranks = [seen(folder, rank) for rank in range(WORKERS)]
    names = ranks[0]["parameters"].keys()
    assert sum(".lora_" in name for name in names) == 2 * 2 * 6
    for name in names:
        whole, first = ranks[0]["parameters"][name]
        assert first + ranks[1]["parameters"][name][1] == whole, name
        assert first < whole or whole == 1, name
    # Each row read from the folder is where it belongs.
    expected = dict(tiny_editor().transformer.named_parameters())
    for name, total in ranks[0]["base"].items():
        own = expected[name.replace(".base_layer.", ".")]
        assert total == pytest.approx(own.sum().item(), rel=1e-4, abs=1e-4), name


def test_masters_of_a_base_of_half_precision_are_fp32(
    runs: tuple[Path, list[dict[str, float]]],
) -> None:
    for rank in range(WORKERS):
        found = seen(runs[0], rank)
        assert found["half_masters"] == ["torch.float32"]
        assert all(math.isfinite(value) for value in found["half"][0].values())
        assert found["half"][0]["grad_norm_student"] > 0
