"""The encoder pool: text encoder and autoencoder, each input once, straight to the store."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.images import open_image
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.tensor_store import write_part


class EncoderActor:
    """Encodes rows ``{key, kind: "image" | "prompt", path, prompt}`` into a tensor store.

    Each batch becomes one atomic Parquet part; what comes back is keys, not tensors.
    """

    def __init__(self, model: str, device: str, dtype: str, threads: int, folder: str) -> None:
        torch.set_num_threads(threads)
        self.folder = Path(folder)
        self.editor = QwenImageEditor.load(model, ["vae", "text"], device, getattr(torch, dtype))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        tensors = []
        rows = zip(batch["key"], batch["kind"], batch["path"], batch["prompt"], strict=True)
        for key, kind, path, prompt in rows:
            image = open_image(Path(path))
            if kind == "image":
                tensors.append((str(key), self.editor.encode_images([image])[0]))
            else:
                tensors.append((str(key), self.editor.encode_prompt(str(prompt), [image])))
        write_part(self.folder, tensors)
        return {"key": np.asarray(batch["key"])}
