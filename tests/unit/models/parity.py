"""Our edits by the production path: encoded by the encoder pool's actor, stored, sampled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from actors.encoder_pool import EncoderActor
from pipeline.config import ModelSettings
from pipeline.distill.batches import conditions_of
from pipeline.distill.sampler import sample_student, sample_teacher
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Editor
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import LoraModule, read_lora, transformer_shapes, write_lora
from pipeline.stages.encode import Encodings
from pipeline.tensor_store import TensorStore
from pipeline.types import Sample

PROMPT = "cover the photo with falling snow"
# Of three buckets at 64 px; the model never sees a picture at its own size.
PICTURES = {"square": (70, 66), "wide": (90, 60), "tall": (50, 80)}


def write_pictures(folder: Path) -> dict[str, Path]:
    """Coloured blots of the sizes above, as PNG files."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, size in PICTURES.items():
        blots = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        paths[name] = folder / f"{name}.png"
        blots.resize(size, Image.Resampling.BICUBIC).save(paths[name])
    return paths


def write_random_lora(path: Path, model: Path, endings: Sequence[str], scale: float) -> Path:
    """A LoRA of rank 2 on all layers that end so."""
    rng = torch.Generator().manual_seed(5)
    modules = {
        name: LoraModule(
            torch.randn(2, width_in, generator=rng) * scale,
            torch.randn(width_out, 2, generator=rng) * scale,
        )
        for name, (width_out, width_in) in transformer_shapes(model).items()
        if name.endswith(tuple(endings))
    }
    assert modules
    write_lora(path, modules, {})
    return path


class Ours:
    """A model folder's editor with one adapter on it, and pictures encoded on demand."""

    def __init__(self, model: Path, lora: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.encodings = Encodings(ModelSettings(path=str(model)))
        self.encoder = EncoderActor(str(model), "cpu", "float32", 1, str(folder))
        self.editor: Editor = load_editor(model, ["transformer", "vae"])
        self.adapters = Adapters(self.editor.transformer)
        self.adapters.add_file("effect", read_lora(lora))

    def encode(self, sources: Sequence[Path], prompt: str = PROMPT) -> tuple[Sample, TensorStore]:
        """An edit's keys, and the store that has what is under them."""
        self.encodings.jobs.clear()
        sample = self.encodings.sample(sources, prompt, prompt)
        rows = [job.row() for job in self.encodings.jobs.values()]
        self.encoder({name: [row[name] for row in rows] for name in rows[0]})
        return sample, TensorStore([self.folder])

    def noise(self, sample: Sample, seed: int) -> Tensor:
        channels = self.editor.transformer.config.in_channels
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, sample.tokens, channels, generator=generator)

    def teacher(
        self, sources: Sequence[Path], seed: int, steps: int, guidance: float, keep_norm: bool
    ) -> Tensor:
        """The picture ``[1, 3, H, W]`` of the multi-step sampler under the adapter."""
        sample, store = self.encode(sources)
        conditions = conditions_of([sample], "teacher", store)
        null = conditions_of([sample], "null", store) if guidance != 1 else None
        noise = self.noise(sample, seed)
        with self.adapters.use(*["effect"] * (1 if null is None else 2)):
            x0 = sample_teacher(self.editor, conditions, null, noise, steps, guidance, keep_norm)
        return self.editor.decode(x0, sample.grid)

    def student(
        self, sources: Sequence[Path], seed: int, draws: Sequence[Tensor], shift: float
    ) -> Tensor:
        """The picture of the few-step sampler; ``draws`` is the noise after each step."""
        sample, store = self.encode(sources)
        conditions, steps = conditions_of([sample], "student", store), len(draws)
        with self.adapters.use("effect"):
            x0 = sample_student(
                self.editor,
                conditions,
                self.noise(sample, seed),
                lambda step: draws[step - 1],
                steps,
                shift,
            )
        return self.editor.decode(x0, sample.grid)
