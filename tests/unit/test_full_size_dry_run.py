"""``--dry-run`` of the full-size recipes, by the real command, on a model that has no weights."""

import json
import re
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.miniature.bank import write_bank
from tests.unit.models.test_lora_full_size import CONFIG
from tests.unit.test_memory_budget import CARDS_OF


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen-Image-Edit's folder as far as a plan needs it: its configurations."""
    folder = tmp_path_factory.mktemp("model")
    index = {"_class_name": "QwenImageEditPlusPipeline"}
    parts = {
        "transformer/config.json": CONFIG,
        "vae/config.json": {"temperal_downsample": [False, True, True]},
    }
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler"):
        index[part] = ["diffusers", "any"]  # type: ignore[assignment]
        (folder / part).mkdir()
    for name, content in {"model_index.json": index, **parts}.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    write_bank(folder, ["sepia"], pairs=2, general=3, sources=1, test=1)
    return folder


# As they are; the others' flags are held against the same arithmetic in test_memory_budget.py.
AS_IT_IS = [(name, *cards[0]) for name, cards in CARDS_OF.items()]


@pytest.mark.parametrize(("name", "count", "gb"), [*AS_IT_IS, ("qwen_image_edit_2509", "1", "141")])
def test_it_says_what_each_process_holds_and_on_which_cards(
    name: str, count: str, gb: str, model: Path, bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = f"pipeline/recipes/{name}.yaml"
    lines = re.findall(r"^# (\d) x (\d+) GB: --set (.+)$", Path(recipe).read_text(), re.M)
    given = {(count, gb): flags.split(" --set ") for count, gb, flags in lines}
    overrides = [f"model.path={model}", f"bank={bank}", "evaluate.photographs=1"]
    overrides += given.get((count, gb), [])
    flags = [part for override in overrides for part in ("--set", override)]
    assert main(["run", recipe, "--dry-run", *flags]) == 0
    text = capsys.readouterr().out
    parts = dict(re.findall(r"memory    (.+): ([\d.]+) GB", text))
    assert "GB  base" in text and "Adam's moments, fp32" in text
    if count == "1":
        assert float(parts["one of each on one card"]) < int(gb)
        return
    cards = re.findall(r"fits on cards of ([\d, ]+) GB", text)
    assert len(parts) == len(cards) == 2
    assert all(gb in fitting.split(", ") for fitting in cards), text


def test_a_warm_start_is_among_the_work(
    model: Path, bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "pipeline/recipes/qwen_image_edit_2509.yaml"
    overrides = [f"model.path={model}", f"bank={bank}", "evaluate.photographs=1"]

    def told(*more: str) -> str:
        flags = [part for override in (*overrides, *more) for part in ("--set", override)]
        assert main(["run", recipe, "--dry-run", *flags]) == 0
        return capsys.readouterr().out

    assert "\nstart " not in told()
    # A forward and a backward, which is two.
    line = "start     20 steps of 4 on the targets: 240 forwards\ndistill "
    assert line in told("distill.warm_start={steps: 20, batch: 4}")
    # Guided teachers take two more.
    line = "start     20 steps of 4 on the teachers: 400 forwards\ndistill "
    assert line in told("distill.warm_start={steps: 20, batch: 4, follow: teachers}")
