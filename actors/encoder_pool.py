"""The encoder pool: text encoder and autoencoder, each input once, straight to the store."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.images import open_image
from pipeline.mirror import at_hand, local_path
from pipeline.models.families import load_editor
from pipeline.tensor_store import pooled_key, write_part


class EncoderActor:
    """Encodes rows ``{key, kind: "image" | "prompt", paths, prompt, width, height}`` into a store.

    ``paths`` is a JSON list. Each batch becomes one atomic Parquet part; what comes back is
    keys, not tensors.
    """

    def __init__(self, model: str, device: str, dtype: str, threads: int, folder: str) -> None:
        torch.set_num_threads(threads)
        self.folder = local_path(folder)
        self.editor = load_editor(model, ["vae", "text"], device, getattr(torch, dtype))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        tensors: list[tuple[str, Tensor]] = []
        names = ("key", "kind", "paths", "prompt", "width", "height")
        for row in zip(*(batch[name] for name in names), strict=True):
            key, kind, paths, prompt, width, height = row
            images = [open_image(at_hand(path)) for path in json.loads(paths)]
            if kind == "image":
                size = (int(width), int(height))
                tensors.append((str(key), self.editor.encode_images(images, size)[0]))
                continue
            tensors.append((str(key), self.editor.encode_prompt(str(prompt), images)))
            pooled = self.editor.pool_prompt(str(prompt))
            if pooled is not None:
                tensors.append((pooled_key(str(key)), pooled))
        write_part(self.folder, tensors)
        return {"key": np.asarray(batch["key"])}
