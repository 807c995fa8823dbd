"""The exported student on its base: pictures in, edited pictures out, batched across effects."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.distill.noise import gaussian_batch
from pipeline.distill.sampler import sample_student
from pipeline.editing.jobs import EditJob
from pipeline.editing.student_export import StudentExport
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Conditions, batch_conditions
from pipeline.models.families import load_editor
from pipeline.models.geometry import TokenShape
from pipeline.models.lora_formats import linear_shapes, read_lora
from pipeline.problems import InputError, Problem

STUDENT = "student"


class StudentEditor:
    """An exported student, loaded once. Its pictures do not depend on what shares their batch."""

    def __init__(self, export: StudentExport, device: str, dtype: str) -> None:
        """Load base and adapter.

        Raises:
            InputError: the weights are no LoRA, or not one of this base.
        """
        self.export = export
        self.editor = load_editor(
            export.base, ["transformer", "vae", "text"], device, getattr(torch, dtype)
        )
        self.adapters = Adapters(self.editor.transformer)
        try:
            lora = read_lora(export.weights, linear_shapes(self.editor.transformer))
        except ValueError as error:
            what, remedy = " ".join(str(error).split()), "give the export's own base with --base"
            raise InputError([Problem(str(export.weights), "", None, what, remedy)]) from error
        self.adapters.add_file(STUDENT, lora)

    @torch.no_grad()
    def edit(self, jobs: Sequence[EditJob]) -> list[Image.Image]:
        """The edited pictures, in order, each at its own edit size.

        Jobs of one aspect ratio (one bucket) share every forward, whatever their effects.
        """
        instructions = [self.instructions(job) for job in jobs]
        pictures = [job.image for job in jobs]
        for turn in range(max(map(len, instructions), default=0)):
            rows = [i for i, texts in enumerate(instructions) if turn < len(texts)]
            prompts = [instructions[i][turn] for i in rows]
            keys = [(jobs[i].seed, "edit", turn) for i in rows]
            made = self._edit_once([pictures[i] for i in rows], prompts, keys)
            for i, picture in zip(rows, made, strict=True):
                pictures[i] = picture
        return pictures

    def instructions(self, job: EditJob) -> list[str]:
        """The prompt of each edit that a job takes, one after another."""
        prompts = [self.export.prompts[name] for name in job.effects]
        return [", then ".join(prompts)] if job.order == "together" else prompts

    def _edit_once(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        keys: Sequence[tuple[int | str, ...]],
    ) -> list[Image.Image]:
        buckets: dict[tuple[TokenShape, ...], list[int]] = {}
        for i, image in enumerate(images):
            buckets.setdefault(tuple(self._shapes(image)), []).append(i)
        pictures: dict[int, Image.Image] = {}
        for shapes, rows in buckets.items():
            conditions = self._conditions(
                [images[i] for i in rows], [prompts[i] for i in rows], list(shapes)
            )
            decoded = self._sample(conditions, [keys[i] for i in rows])
            pictures |= zip(rows, map(_to_image, decoded), strict=True)
        return [pictures[i] for i in range(len(images))]

    def _shapes(self, image: Image.Image) -> list[TokenShape]:
        geometry = self.editor.geometry
        target = geometry.tokens(geometry.target(image.size))
        return [target, geometry.tokens(geometry.source(image.size))]

    def _conditions(
        self, images: Sequence[Image.Image], prompts: Sequence[str], shapes: list[TokenShape]
    ) -> Conditions:
        pairs = list(zip(prompts, images, strict=True))
        pooled = [self.editor.pool_prompt(prompt) for prompt in prompts]
        return batch_conditions(
            [self.editor.encode_prompt(prompt, [image]) for prompt, image in pairs],
            self.editor.encode_images(images),
            shapes,
            None if pooled[0] is None else cast("list[Tensor]", pooled),
        ).to(self.editor.device)

    def _sample(
        self, conditions: Conditions, keys: Sequence[tuple[int | str, ...]]
    ) -> list[Tensor]:
        """Pictures ``[3, H, W]`` in [0, 1]."""
        _, rows, columns = conditions.shapes[0]
        shape = (rows * columns, conditions.sources.shape[-1])

        def noise(step: int) -> Tensor:
            return gaussian_batch(shape, [(*key, step) for key in keys]).to(self.editor.device)

        with self.adapters.use(STUDENT):
            x0 = sample_student(
                self.editor, conditions, noise(0), noise, self.export.steps, self.export.shift
            )
        return list(self.editor.decode(x0, (rows, columns)))


def _to_image(picture: Tensor) -> Image.Image:
    pixels = (picture.permute(1, 2, 0).cpu().numpy() * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(pixels)
