"""Whole runs with bank and output in S3, on a real server over HTTP: the same student."""

import json
from pathlib import Path

import pytest

from pipeline.storage import sha256_file
from tests.s3_server import (
    BUCKET,
    KEY_ID,
    SECRET,
    keys_below,
    put_folder,
    run_environment,
    s3_server,
)
from tests.tiny_run import EFFECTS, pipeline, write_inputs, write_recipe

# Four commands, each of which starts Ray or takes a minute; a loaded machine takes far longer.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> str:
    """The sha256 of the student of the same recipe on a local disk."""
    recipe = write_recipe(inputs / "local.yaml", inputs, str(inputs / "local"))
    done = pipeline(run_environment("http://127.0.0.1:9", inputs / "none"), "distill", recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    (student,) = (inputs / "local" / "training").glob("*/student.safetensors")
    return sha256_file(student)


def student_in(endpoint: str, run: str) -> bytes:
    found = keys_below(endpoint, f"{run}/training/")
    (name,) = (k for k in found if k.endswith("/student.safetensors") and k.count("/") == 1)
    return found[name]


def test_every_stage_in_s3_and_the_same_student(
    inputs: Path, undisturbed: str, tmp_path: Path
) -> None:
    with s3_server(tmp_path / "log.txt") as endpoint:
        put_folder(endpoint, inputs / "bank", "bank")
        places = {"bank": f"s3://{BUCKET}/bank"}
        recipe = write_recipe(tmp_path / "s3.yaml", inputs, f"s3://{BUCKET}/run", places)
        environment = run_environment(endpoint, tmp_path / "node")
        done = pipeline(environment, "run", recipe)
        assert done.returncode == 0, done.stderr[-3000:]
        made = keys_below(endpoint, "run/")
        for name in ("prompts.json", "report.json", "contact_sheet.png", "mlflow.db"):
            assert made[name], name
        assert made["student/manifest.json"] and made["history.jsonl"].count(b"\n") == 6
        assert {json.loads(line)["round"] for line in made["history.jsonl"].splitlines()} == {
            *range(6)
        }
        import hashlib

        assert hashlib.sha256(student_in(endpoint, "run")).hexdigest() == undisturbed
        artifacts = [k for k in made if k.startswith("mlartifacts/")]
        for effect in EFFECTS:
            assert any(k.endswith(f"images/{effect}.png") for k in artifacts)
        assert any(k.endswith("student/pytorch_lora_weights.safetensors") for k in artifacts)
        assert f"s3://{BUCKET}/run/report.md" in done.stdout

        # Another node, with nothing on its disk, finds all of it done.
        again = pipeline(run_environment(endpoint, tmp_path / "other"), "run", recipe)
        assert again.returncode == 0, again.stderr[-3000:]
        assert "round/s" not in again.stderr and "row/s" not in again.stderr
        assert hashlib.sha256(student_in(endpoint, "run")).hexdigest() == undisturbed

    # Of the credentials that all of this went by, nothing is written anywhere.
    planted = (KEY_ID.encode(), SECRET.encode())
    written = [*made.values(), done.stdout.encode(), done.stderr.encode()]
    for node in ("node", "other"):
        written += [p.read_bytes() for p in (tmp_path / node).rglob("*") if p.is_file()]
    assert len(written) > 100
    assert not any(secret in content for content in written for secret in planted)
