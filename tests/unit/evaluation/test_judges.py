"""Reading judges' answers, their agreement, likeness, and the judges' table."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.evaluation.edit_reward import read_reward
from pipeline.evaluation.embedders import centred, load_likeness
from pipeline.evaluation.field_report import FieldScore, field_estimates, field_table, with_field
from pipeline.evaluation.kappa import agreement
from pipeline.evaluation.report import run_metrics
from pipeline.evaluation.vlm_judge import read_happened, read_kept, vsa
from pipeline.problems import InputError
from tests.tiny_judges import write_tiny_clip, write_tiny_dino


def test_verdicts_are_read_out_of_talk() -> None:
    assert read_happened('{"happened": false} no: {"reason": "{x", "happened": true}') is True
    assert read_happened('```json\n{"happened": "No"}\n```') is False
    assert read_kept('{"reason": "tiny {slips}", "score": 4.5}') == 4.5
    assert read_reward('{"reward": -2}') == -2.0


@pytest.mark.parametrize(
    ("read", "answer", "why"),
    [
        (read_happened, "yes", "no JSON"),
        (read_happened, '{"happened": "perhaps"}', "true or false"),
        (read_happened, '{"happened": 1}', "true or false"),
        (read_kept, '{"score": true}', "a number"),
        (read_kept, '{"score": 5.1}', "not from 0 to 5"),
        (read_kept, '{"score": NaN}', "not from 0 to 5"),
        (read_reward, '{"reward": Infinity}', "a number"),
        (read_reward, '{"reward": "1"}', "a number"),
        (read_happened, "{" * 5000, "no JSON"),
        (read_happened, '{"a":' * 5000, "no JSON"),
    ],
)
def test_what_cannot_be_used_is_said(read: object, answer: str, why: str) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match=why):
        read(answer)


@given(st.text(max_size=200))
def test_any_answer_is_read_or_refused(answer: str) -> None:
    for read, kind in ((read_happened, bool), (read_kept, float), (read_reward, float)):
        try:
            value = read(answer)
        except ValueError:
            continue
        assert isinstance(value, kind) and math.isfinite(value)


def test_vsa_is_nought_where_the_effect_did_not_happen() -> None:
    assert vsa(False, None) == vsa(False, 5.0) == 0.0
    assert vsa(True, 3.5) == 3.5


def test_kappa_of_worked_examples() -> None:
    # Cohen's own kind of table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: (.7 - .5) / (1 - .5).
    first = [1.0] * 25 + [0.0] * 25
    second = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    assert agreement(first, second) == pytest.approx(0.4)
    # Two classes weigh alike, whatever the weights.
    assert agreement(first, second, scale=True) == pytest.approx(0.4)
    assert agreement([0, 1, 5], [0, 1, 5], scale=True) == 1.0
    # One square of 1 in three; by chance all nine pairings: 0 + 4 + 9 + 4 + 0 + 1 + 16 + 4 + 1.
    assert agreement([0, 2, 4], [0, 2, 3], scale=True) == pytest.approx(1 - (1 / 3) / (39 / 9))
    assert agreement([0, 1], [1, 0]) == pytest.approx(-1.0)


def test_kappa_does_not_exist_of_one_answer_throughout() -> None:
    assert agreement([], []) is None
    assert agreement([1, 1], [1, 1]) is None


def test_dreamsims_distance_is_of_centred_embeddings() -> None:
    embedding = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
    found = centred(embedding)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(centred(embedding + 7), found)


def noise(seed: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))


def test_likeness_of_a_picture_with_itself_is_the_most(tmp_path: Path) -> None:
    write_tiny_clip(tmp_path / "clip")
    write_tiny_dino(tmp_path / "sim" / "0")
    write_tiny_clip(tmp_path / "sim" / "1", 1)
    images = [noise(0), noise(1), noise(2, (64, 30))]
    for kind, folder, same in (
        ("clip", "clip", 1.0),
        ("dino", "sim/0", 1.0),
        ("dreamsim", "sim", 0.0),
    ):
        likeness = load_likeness(kind, tmp_path / folder, "cpu")  # type: ignore[arg-type]
        torch.testing.assert_close(likeness(images, images), torch.full((3,), same))
        turned = likeness(images, images[::-1])
        assert ((turned - same).abs() > 1e-4).tolist() == [True, False, True]
        # One alone as in a batch.
        torch.testing.assert_close(likeness(images[:1], images[2:]), turned[:1])


def test_folders_that_are_no_judge_are_refused(tmp_path: Path) -> None:
    dino = write_tiny_dino(tmp_path / "dino")
    (tmp_path / "empty").mkdir()
    for kind, folder, why in (
        ("clip", dino, "is no CLIP"),
        ("clip", tmp_path / "empty", "no config.json"),
        ("dreamsim", tmp_path / "empty", "config.json in it"),
    ):
        with pytest.raises(InputError, match=why):
            load_likeness(kind, folder, "cpu")  # type: ignore[arg-type]
    (dino / "model.safetensors").rename(dino / "pytorch_model.bin")
    with pytest.raises(InputError, match="not read by transformers"):
        load_likeness("dino", dino, "cpu")


def test_the_table_has_the_papers_columns_and_the_tracker_the_numbers() -> None:
    scores = [
        FieldScore("student", effect, photograph, metric, value)
        for effect, add in (("snow", 0.0), ("rain", 0.5))
        for photograph in ("a", "b")
        for metric, value in (("clip", 0.5 + add), ("bcr", add), ("vsa", 4.0))
    ]
    report = {"methods": {"student": {"nfe": 8, "ms_per_image": 1, "metrics": {}, "effects": {}}}}
    report["methods"]["student"]["effects"] = {"snow": {}, "rain": {}}  # type: ignore[assignment]
    agreed = {"happened": 0.8123, "kept": None}
    made = with_field(report, field_estimates(scores, 200, 0), agreed)
    text = field_table(made, agreed, ["cost"])
    assert "CLIP ↑" in text and "DreamSim" not in text.splitlines()[2]
    assert "0.750 [0.750, 0.750]" in text and "effect happened 0.81, subject kept -" in text
    assert run_metrics(made, "student")["judges/clip"] == pytest.approx(0.75)
    assert run_metrics(made, "student", "snow")["judges/bcr"] == 0.0
