"""The judge pool: all outputs of one photograph against what the effects truly do to it."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.autoencoded import autoencoded
from pipeline.evaluation.effectbench import Item, JudgeJob, Truth, open_source
from pipeline.evaluation.metrics import EffectJudge, fidelity_db, subject_kept, texture_distance
from pipeline.evaluation.report import ImageScore
from pipeline.miniature.effects import EFFECTS, KNOWN, true_samples
from pipeline.mirror import at_hand, local_path
from pipeline.models.families import load_editor
from pipeline.storage import write_sealed
from pipeline.tensor_store import TensorStore

Array = NDArray[np.float32]

SOURCE = "source"
TRUE_SAMPLES = 4


@dataclass(frozen=True)
class Bench:
    """What outputs for one photograph are held against.

    source ``[H, W, 3]``; truths: by effect, samples ``[K, H, W, 3]``.
    """

    source: Array
    truths: dict[str, Array]
    judge: EffectJudge


class JudgeActor:
    """Scores :class:`JudgeJob` rows, a photograph each, into one JSON file a job.

    ``truth: miniature``: the true samples of all fifty effects (and of new ones, where they
    are asked for) on this photograph are known.
    Fidelity, texture distance and subject are against these themselves, so they include what the
    autoencoder loses; which effect happened is asked of truths that went through it.

    ``truth: pairs``: nobody knows what an effect truly does to a held-out photograph, so the
    teachers' own pictures stand in: an output of draw d is held against the teachers' other
    draws, the teachers' own outputs as well as the student's, each against equally many. So the
    scores say how like its teachers a student is and how far teachers agree with themselves; they
    cannot say that a teacher is good, a student that betters its teacher loses by it, and an
    effect can be mistaken only for one of the recipe's others or for the unchanged photograph.
    """

    def __init__(
        self,
        model: str,
        device: str,
        dtype: str,
        threads: int,
        pictures: str,
        folder: str,
        truth: Truth,
        families: dict[str, str],
    ) -> None:
        torch.set_num_threads(threads)
        self.editor = load_editor(model, ["vae"], device, getattr(torch, dtype))
        self.store = TensorStore([local_path(pictures)])
        self.folder = local_path(folder)
        self.truth = truth
        self.families = families

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = (batch[name] for name in ("key", "photograph", "path", "items"))
        for key, photograph, path, items in zip(*columns, strict=True):
            row = {"key": key, "photograph": photograph, "path": path, "items": items}
            job = JudgeJob.from_row(row)
            text = json.dumps([asdict(score) for score in self.judge(job)])
            write_sealed(self.folder / f"{job.key}.json", text.encode())
        return {"key": np.asarray(batch["key"])}

    def judge(self, job: JudgeJob) -> list[ImageScore]:
        """The scores of a photograph's outputs, in the job's order."""
        outputs = {item.key: self._picture(item.key) for item in job.items}
        height, width = next(iter(outputs.values())).shape[:2]
        source = open_source(at_hand(job.path), height, width)
        if self.truth == "miniature":
            benches = [self._true_bench(source, job.photograph)]
        else:
            benches = self._teacher_benches(source, job, outputs)
        return [
            _score(benches[item.draw % len(benches)], item, job.photograph, self.families, output)
            for item, output in ((item, outputs[item.key]) for item in job.items)
        ]

    def _true_bench(self, source: Array, photograph: str) -> Bench:
        seed = zlib.crc32(photograph.encode())
        distinct, truths = {SOURCE: source[None]}, {}
        # New effects are possible outcomes where they are asked for: who knows the fifty alone is
        # judged as before there were more.
        possible = EFFECTS | {name: KNOWN[name] for name in self.families}
        for name, spec in possible.items():
            by_chance = spec.family == "textured"
            samples = true_samples(name, source, TRUE_SAMPLES if by_chance else 1, seed)
            distinct[name] = samples
            # Without chance one sample is the truth; two of them tell `subject_kept` so.
            truths[name] = samples if by_chance else np.repeat(samples, 2, axis=0)
        seen = iter(autoencoded(self.editor, np.concatenate(list(distinct.values()))))
        outcomes = {name: np.stack([next(seen) for _ in s]) for name, s in distinct.items()}
        return Bench(source, truths, EffectJudge(outcomes))

    def _teacher_benches(
        self, source: Array, job: JudgeJob, outputs: Mapping[str, Array]
    ) -> list[Bench]:
        """For each draw, the teachers' other draws. Raises ValueError where there is one only."""
        drawn: dict[str, list[Array]] = {}
        for item in job.items:
            if item.method == "teacher":
                drawn.setdefault(item.effect, []).append(outputs[item.key])
        draws = min((len(pictures) for pictures in drawn.values()), default=0)
        if draws < 2:
            raise ValueError(f"{job.photograph}: teachers need at least 2 draws, not {draws}")
        seen_source = autoencoded(self.editor, source[None])
        benches = []
        for left_out in range(draws):
            truths = {
                effect: np.stack([p for i, p in enumerate(pictures[:draws]) if i != left_out])
                for effect, pictures in drawn.items()
            }
            benches.append(Bench(source, truths, EffectJudge(truths | {SOURCE: seen_source})))
        return benches

    def _picture(self, key: str) -> Array:
        return np.asarray(self.store.get(key).numpy())


def _score(
    bench: Bench, item: Item, photograph: str, families: Mapping[str, str], output: Array
) -> ImageScore:
    truths, family = bench.truths[item.effect], families[item.effect]
    happened = bench.judge.happened(output)
    fidelity = texture = None
    if family != "textured":
        fidelity = float(np.mean([fidelity_db(output, truth) for truth in truths]))
    if family not in ("tone", "layout"):
        texture = texture_distance(output, truths)
    return ImageScore(
        method=item.method,
        effect=item.effect,
        family=family,
        photograph=photograph,
        draw=item.draw,
        fidelity=fidelity,
        texture_distance=texture,
        bad_case=float(happened != item.effect),
        subject=subject_kept(output, bench.source, truths),
        happened=happened,
    )
