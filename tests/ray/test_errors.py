"""A run that fails says why: the actor's own words, not Ray's word that something failed."""

from pathlib import Path

import pytest
from ray.train import TrainingFailedError

from actors.run_place import RunPlace
from actors.student_group import run_student_group
from pipeline.config import PoolSettings, StudentGroupSettings
from pipeline.stages.distill import arguments_of
from tests.ray.test_distill import manifest_of
from tests.tiny_run import recipe_in, write_tiny_bank


def test_a_teacher_that_fails_is_quoted(tmp_path: Path) -> None:
    folder = write_tiny_bank(tmp_path)
    recipe = recipe_in(folder, "first")
    manifest = manifest_of(recipe)
    stores = [folder / "first/cache/encodings", folder / "first/cache/targets"]
    student, teachers = arguments_of(recipe, manifest, stores, "fails")
    for effect in manifest.effects:
        Path(effect.adapter).unlink()
    with pytest.raises(TrainingFailedError) as caught:
        run_student_group(
            student,
            teachers,
            PoolSettings(min=1, max=1),
            StudentGroupSettings(max_failures=0),
            RunPlace(tmp_path / "training", "fails"),
            lambda metrics: None,
        )
    said = str(caught.value)
    assert "No such file or directory" in said and "snow" in said
