"""The full-size bench's bars, one test a bar: `pytest -m slow tests/gpu` on a card of 141 GB."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from pipeline.distill.bench.__main__ import bars

GB = 10**9
MEMORY = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bench's bars by name, from a process of its own: none of its memory is left here."""
    if MEMORY < 130 * GB:
        pytest.skip("no card of 141 GB here")
    out = tmp_path_factory.mktemp("bench") / "full.json"
    command = [sys.executable, "-m", "pipeline.distill.bench", "--size", "full", "--out", str(out)]
    subprocess.run(command, check=True)
    record: dict[str, Any] = json.loads(out.read_text())
    return dict(line.split(": ", 1) for line in record["about"]["bars"])


@pytest.mark.parametrize("bar", [line.split(": ")[0] for line in bars({})])
def test_a_bar_is_met(found: dict[str, str], bar: str) -> None:
    assert found[bar].endswith(": met"), found[bar]
