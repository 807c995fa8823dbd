"""Model folders that are wrong: the base's, and the judges'."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.malformed.case import Case
from tests.unit.malformed.good_bank import TRANSFORMER, Work

AGAIN = "download or export it again"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _model(change: Callable[[Path], object]) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        change(work.folder / "model")

    return spoil


def _config(**changes: Any) -> Callable[[Work], None]:
    text = json.dumps(TRANSFORMER | changes)
    return _model(lambda folder: (folder / "transformer" / "config.json").write_text(text))


def _lacks(name: str, change: Callable[[Path], object], file: str, what: str) -> Case:
    return Case(name, _model(change), file, what, "download the whole model again")


def _index(folder: Path, names: object) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


def _shard_missing(model: Path) -> None:
    _index(model / "transformer", {"a": WEIGHTS, "b": "diffusion_pytorch_model-2.safetensors"})


def _index_broken(model: Path) -> None:
    _index(model / "transformer", [1])


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-2])


def _judge(kind: str, there: bool) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        folder = work.folder / "judge"
        if there:
            folder.mkdir()
        work.recipe["evaluate"]["judges"] = {kind: str(folder)}

    return spoil


def _no_model(work: Work) -> None:
    work.recipe["model"]["path"] = "org/some-model"


MODEL_CASES = (
    Case("model_missing", _no_model, "recipe.yaml", "model.path", "diffusers folder"),
    Case(
        "model_without_index",
        _model(lambda folder: (folder / "model_index.json").unlink()),
        "recipe.yaml",
        "model.path",
        "diffusers folder",
    ),
    _lacks(
        "model_without_transformer_weights",
        lambda folder: (folder / "transformer" / WEIGHTS).unlink(),
        "model/transformer",
        "no weights (.safetensors)",
    ),
    _lacks(
        "model_without_vae",
        lambda folder: shutil.rmtree(folder / "vae"),
        "model/vae",
        "no config.json",
    ),
    _lacks(
        "model_without_vae_weights",
        lambda folder: (folder / "vae" / WEIGHTS).unlink(),
        "model/vae",
        "no weights",
    ),
    _lacks(
        "model_without_text_encoder",
        lambda folder: shutil.rmtree(folder / "text_encoder"),
        "model/text_encoder",
        "no config.json",
    ),
    _lacks(
        "model_without_processor",
        lambda folder: shutil.rmtree(folder / "processor"),
        "model/processor",
        "no *.json",
    ),
    _lacks(
        "model_without_scheduler",
        lambda folder: shutil.rmtree(folder / "scheduler"),
        "model/scheduler",
        "no scheduler_config.json",
    ),
    _lacks("model_without_a_shard", _shard_missing, "model/transformer", "1 of 2 files"),
    _lacks("model_index_of_weights_broken", _index_broken, "model/transformer", "its index"),
    Case(
        "model_weights_cut",
        _model(lambda folder: _cut(folder / "transformer" / WEIGHTS)),
        f"transformer/{WEIGHTS}",
        "content: truncated",
        AGAIN,
    ),
    Case(
        "model_weights_lfs_pointer",
        _model(
            lambda folder: (folder / "vae" / WEIGHTS).write_bytes(
                b"version https://git-lfs.github.com/spec/v1\n"
            )
        ),
        f"vae/{WEIGHTS}",
        "a Git LFS pointer",
        "safetensors file",
    ),
    *(
        Case(
            f"judge_{kind}_missing",
            _judge(kind, False),
            "recipe.yaml",
            f"evaluate.judges.{kind}: no such folder",
            "give the model's local folder",
        )
        for kind in ("clip", "dino", "dreamsim")
    ),
    Case(
        "judge_without_config",
        _judge("dino", True),
        "recipe.yaml",
        "no config.json in it",
        "give the model's local folder",
    ),
    Case(
        "model_of_another_kind",
        _model(lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')),
        "model_index.json",
        "_class_name",
        "diffusers folder",
    ),
    Case(
        "model_without_config",
        _model(lambda folder: (folder / "transformer" / "config.json").unlink()),
        "transformer/config.json",
        "cannot be read",
        "diffusers folder",
    ),
    Case(
        "model_other_transformer",
        _config(_class_name="FluxTransformer2DModel"),
        "transformer/config.json",
        "_class_name",
        "diffusers folder",
    ),
    Case(
        "model_too_many_layers",
        _config(num_layers=10**9),
        "transformer/config.json",
        "num_layers",
        "diffusers folder",
    ),
    Case(
        "model_config_of_text",
        _config(num_attention_heads="four"),
        "transformer/config.json",
        "not a transformer's config",
        "diffusers folder",
    ),
)
