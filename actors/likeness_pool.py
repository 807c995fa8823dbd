"""The likeness pool: CLIP, DINO or DreamSim on outputs and their photographs, a file a score."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.effectbench import open_source
from pipeline.evaluation.embedders import Kind, load_likeness
from pipeline.miniature.pictures import to_image
from pipeline.mirror import at_hand, local_path
from pipeline.storage import write_atomic
from pipeline.tensor_store import TensorStore


class LikenessActor:
    """Scores rows (``key``, ``picture`` of the store, ``source``) into ``folder/<key>.json``."""

    def __init__(
        self, kind: Kind, model: str, device: str, threads: int, pictures: str, folder: str
    ) -> None:
        torch.set_num_threads(threads)
        self.likeness = load_likeness(kind, Path(model), device)
        self.store = TensorStore([local_path(pictures)])
        self.folder = local_path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        outputs = [self.store.get(str(key)).numpy() for key in batch["picture"]]
        sources = [
            to_image(open_source(at_hand(str(path)), *output.shape[:2]))
            for path, output in zip(batch["source"], outputs, strict=True)
        ]
        scores = self.likeness(sources, [to_image(output) for output in outputs])
        for key, score in zip(batch["key"], scores.tolist(), strict=True):
            write_atomic(self.folder / f"{key}.json", json.dumps({"value": score}).encode())
        return {"key": np.asarray(batch["key"])}
