"""From a finished checkpoint to the student's LoRA file, which is evaluated and exported."""

from pathlib import Path

from torch import Tensor

from pipeline.config import Recipe, recipe_hash
from pipeline.distill.checkpoint import load_student
from pipeline.models.fingerprint import fingerprint
from pipeline.models.lora_formats import read_lora
from pipeline.places import Places
from pipeline.stages.export import write_student_lora
from pipeline.stages.grow import start_of
from pipeline.storage import content_key, is_whole, seal
from pipeline.types import Manifest


def run_key_of(recipe: Recipe, manifest: Manifest) -> str:
    """What names a distillation: the recipe's settings and the content of all it trains on."""
    base = fingerprint(recipe.model.path, "transformer")
    ranks = recipe.cluster.student_group.logical_ranks
    start = start_of(recipe)
    begun = [start.key] if start else []
    watched = [recipe.watch.model_dump(mode="json")] if recipe.watch.every else []
    content = manifest_content(manifest)
    return content_key(recipe_hash(recipe), base, content, ranks, *begun, *watched)[:16]


def manifest_content(manifest: Manifest) -> dict[str, object]:
    """The manifest less the adapters' paths: content, not places."""
    data = manifest.to_dict()
    for effect in data["effects"]:
        del effect["adapter"]
        if not effect["held_back"]:
            del effect["held_back"]
    return data


def student_file(places: Places, run_key: str) -> Path:
    """Where a run's finished student is."""
    return places.training / run_key / "student.safetensors"


def finished_student(places: Places, run_key: str) -> Path | None:
    """The finished student of a run, if there is one."""
    path = student_file(places, run_key)
    return path if is_whole(path) else None


def save_student(checkpoint: Path, recipe: Recipe, places: Places, run_key: str) -> Path:
    """Write the checkpoint's student (its average, where there is one) as a LoRA file.

    The weights and nothing else: whatever the recipe calls its bank, they give the same bytes.
    """
    path = student_file(places, run_key)
    write_student_lora(path, load_student(checkpoint), recipe.student.lora)
    seal(path)
    return path


def student_weights(lora: Path) -> dict[str, Tensor]:
    """A LoRA file's weights under ``Adapters.state``'s names."""
    weights: dict[str, Tensor] = {}
    for module, matrices in read_lora(lora).modules.items():
        weights[f"{module}.lora_A"] = matrices.down
        weights[f"{module}.lora_B"] = matrices.up
    return weights
