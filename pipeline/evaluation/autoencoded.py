"""Truths as outputs are: through the model's autoencoder and back."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.miniature.autoencoder import single_frame_convolutions
from pipeline.models.editor import Editor

_CHUNK = 16


@torch.no_grad()
def autoencoded(editor: Editor, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[n, H, W, 3]`` through the autoencoder and back, as an output has been."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
    _, rows, columns = editor.geometry.tokens((x.shape[3], x.shape[2]))
    parts = (x[i : i + _CHUNK] for i in range(0, len(x), _CHUNK))
    with single_frame_convolutions():
        back = [editor.decode(editor.encode_pixels(p), (rows, columns)) for p in parts]
    return np.asarray(torch.cat(back).cpu().permute(0, 2, 3, 1).numpy())
