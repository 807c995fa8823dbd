"""Rank 0's looks at its own student: scores for the checkpoint, pictures for the tracker."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distill.update import StudentTrainer
from pipeline.distill.watch import Watch, held_back_pairs
from pipeline.evaluation.plots import contact_sheet
from pipeline.models.families import load_editor
from pipeline.types import Sample

Picture = NDArray[np.float32]
_LONG_SIDE = 192


class StudentWatch:
    """Looks, with the autoencoder at hand; the same photographs and the same noise each time."""

    def __init__(self, trainer: StudentTrainer, model: str, dtype: str, pictures: int) -> None:
        self.watch = Watch(trainer, held_back_pairs(trainer.manifest))
        self.decoder = load_editor(
            model, ["vae"], str(trainer.editor.device), getattr(torch, dtype)
        )
        # Each effect's first pair comes first: as many effects as a preview has rows.
        order = sorted(range(len(self.watch.pairs)), key=self._turn)
        self.shown = order[:pictures]
        self.sides = [self._beside(self.watch.pairs[i].sample) for i in self.shown]

    def look(self) -> tuple[dict[str, float], bytes]:
        """The metrics of a look, and its preview as PNG: source, teacher, student."""
        look = self.watch.look()
        rows = []
        for i, beside in zip(self.shown, self.sides, strict=True):
            pair = self.watch.pairs[i]
            student = self._picture(look.outputs[i], pair.sample.grid)
            rows.append((pair.effect, [*beside, student]))
        scale = max(1, _LONG_SIDE // max(rows[0][1][-1].shape[:2]))
        sheet = contact_sheet(rows, ["source", "teacher", "student"], scale)
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG")
        return look.metrics, buffer.getvalue()

    def _turn(self, index: int) -> int:
        """How many pairs of its effect come before a pair."""
        effect = self.watch.pairs[index].effect
        return sum(pair.effect == effect for pair in self.watch.pairs[:index])

    def _beside(self, sample: Sample) -> list[Picture]:
        """The source and the teacher's picture."""
        tensors = self.watch.trainer.store
        assert sample.target is not None
        source = tensors.get(sample.sources[-1])
        _, rows, columns = sample.shapes[-1]
        target = self._picture(tensors.get(sample.target), sample.grid)
        return [self._picture(source, (rows, columns)), target]

    @torch.no_grad()
    def _picture(self, tokens: Tensor, grid: tuple[int, int]) -> Picture:
        decoded = self.decoder.decode(tokens[None].to(self.decoder.device), grid)[0]
        return np.asarray(decoded.permute(1, 2, 0).float().cpu().numpy())
