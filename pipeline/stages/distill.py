"""Distill: the on-policy part. Turns a recipe into the two halves' arguments and runs them."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import mirror
from pipeline.config import Recipe
from pipeline.distill.rates import RateSettings
from pipeline.distill.update_settings import UpdateSettings
from pipeline.models.local import absolute
from pipeline.plan import PlanSettings, count_buckets
from pipeline.problems import disk_errors
from pipeline.stages.grow import effect_weights, start_of
from pipeline.types import Manifest

if TYPE_CHECKING:
    from actors.arguments import StudentArguments, TeacherPoolArguments


def plan_settings(recipe: Recipe, manifest: Manifest) -> PlanSettings:
    """What the routed plan depends on."""
    distill, student = recipe.distill, recipe.student
    return PlanSettings(
        seed=recipe.seed if distill.seed is None else distill.seed,
        batch=distill.batch,
        p_switch=distill.p_switch,
        fake_updates=distill.fake_updates,
        student_steps=student.steps,
        shift=student.shift,
        tau_max=distill.tau_max,
        tau_min=distill.tau_min,
        ta_fm_batch=distill.ta_fm_batch,
        effect_weights=effect_weights(recipe, manifest),
        samples=tuple(len(e.samples) for e in manifest.effects),
        general=len(manifest.general),
        buckets=count_buckets(manifest),
        score_by_step=distill.score_by_step,
    )


def update_settings(recipe: Recipe) -> UpdateSettings:
    """Rates, weights and bounds of the update."""
    d = recipe.distill
    return UpdateSettings(
        rounds=d.rounds,
        student_rate=RateSettings(d.learning_rate, d.warmup, d.schedule),
        fake_rate=RateSettings(d.fake_learning_rate, d.warmup, d.fake_schedule or d.schedule),
        betas=d.betas,
        grad_clip=d.grad_clip,
        ema=d.ema,
        weight_bs=d.losses.dmd_bs,
        weight_ts=d.losses.dmd_ts,
        weight_ta=d.losses.ta_fm,
        scale_ta=d.ta_fm_scale,
        micro_batch=recipe.cluster.student_group.micro_batch,
    )


def arguments_of(
    recipe: Recipe,
    manifest: Manifest,
    stores: list[Path],
    run_key: str,
    warm: Path | None = None,
) -> "tuple[StudentArguments, TeacherPoolArguments]":
    """Both halves' arguments: plain data, the same for Ray and for the reference loop.

    warm: a warm start's LoRA file; without one a recipe that grows starts from its student.
    """
    from actors.arguments import StudentArguments, TeacherPoolArguments, WatchArguments
    from actors.session import NAMESPACE, device_of

    plan, lora = plan_settings(recipe, manifest), recipe.student.lora
    pool, group = recipe.cluster.teacher_pool, recipe.cluster.student_group
    start = start_of(recipe)
    lora_file = warm or (start.lora if start else None)
    folders, board = tuple(str(s.resolve()) for s in stores), f"policies-{run_key}"
    student = StudentArguments(
        model=absolute(recipe.model.path),
        device=device_of(recipe.model, group.num_gpus),
        dtype=recipe.model.dtype,
        quantize=recipe.model.quantize,
        shard=group.shard,
        threads=group.threads,
        gradient_checkpointing=recipe.distill.gradient_checkpointing,
        rank=lora.rank,
        alpha=lora.alpha,
        modules=lora.modules,
        start=None if lora_file is None else str(lora_file.resolve()),
        start_fake=str(start.fake.resolve()) if start and start.fake else None,
        stores=folders,
        manifest=manifest.to_dict(),
        plan=plan,
        settings=update_settings(recipe),
        lag=recipe.distill.lag,
        checkpoint_every=recipe.distill.checkpoint_every,
        recipe_hash=run_key,
        board=board,
        namespace=NAMESPACE,
        watch=WatchArguments(recipe.watch.every, recipe.watch.pictures),
        logical_ranks=group.logical_ranks,
    )
    teachers = TeacherPoolArguments(
        model=student.model,
        device=device_of(recipe.model, pool.num_gpus),
        dtype=recipe.model.dtype,
        quantize=recipe.model.quantize,
        threads=pool.threads,
        rank=lora.rank,
        alpha=lora.alpha,
        modules=lora.modules,
        adapters_resident=pool.adapters_resident,
        stores=folders,
        manifest=student.manifest,
        plan=plan,
        guidance=recipe.distill.guidance,
        lag=recipe.distill.lag,
        board=board,
        namespace=NAMESPACE,
        simulate=recipe.distill.losses.dmd_ts > 0,
    )
    return student, teachers


OnMetrics = Callable[[dict[str, float]], None]
OnPreview = Callable[[int, bytes], None]
# Names a row's run in the history; no metric.
RUN = "run"


class History:
    """Metrics by round in a JSON-lines file; a resumed run's rounds replace those it repeats.

    run_key: whose rounds they are, of all the runs that an output has had. Rows without a key, of
    a version that wrote none, are the run's own up to where it wrote rows with one. None: all rows.
    """

    def __init__(self, path: Path, run_key: str | None = None) -> None:
        self.path, self.run_key = path, run_key
        self._fetched = False

    def load(self) -> list[dict[str, float]]:
        """All rounds of the run on record, in order, the last word on each."""
        if not mirror.fetch(self.path):
            return []
        rows: dict[float, dict[str, float]] = {}
        unnamed: dict[float, dict[str, float]] = {}
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            key = row.pop(RUN, None)
            if self.run_key is None or key == self.run_key:
                rows[row["round"]] = row
            elif key is None:
                unnamed[row["round"]] = row
        # A run that began anew repeats them all, one that went on those after its checkpoint.
        began = min(rows, default=math.inf)
        rows |= {r: row for r, row in unnamed.items() if r < began}
        return [rows[r] for r in sorted(rows)]

    def append(self, metrics: dict[str, float]) -> None:
        """Add one round."""
        if not self._fetched:
            # Of a run in S3 that goes on here: what is published is this file, whole.
            mirror.fetch(self.path)
            self._fetched = True
        named: dict[str, object] = {RUN: self.run_key} if self.run_key else {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.path), self.path.open("ab+") as file:
            # A kill or a full disk may have cut the last line short.
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write(json.dumps(named | metrics).encode() + b"\n")

    def publish(self) -> None:
        """To S3, if it is kept there, where nothing can be appended to an object."""
        mirror.publish(self.path)

    def counters(self) -> dict[str, Any]:
        """What ``report.json`` says of the run's cost, from the rounds' own counts.

        The first rounds hold start-up costs, so seconds and waiting are over the rest.
        """
        rows = self.load()
        settled = rows[min(len(rows) // 2, 10) :]
        update = np.array([row["seconds_update"] for row in settled])
        wait = np.array([row["seconds_wait"] for row in settled])
        return {
            "forwards_per_student_update": {
                side: float(np.mean([row[f"forwards_{side}"] for row in rows]))
                for side in ("student_group", "teacher_pool")
            },
            "seconds_per_round": float(np.median(update + wait)),
            "student_wait_share": float(wait.sum() / (update + wait).sum()),
        }

    def series(self) -> dict[str, list[float]]:
        """Each metric as a list over rounds."""
        rows = self.load()
        names = sorted({name for row in rows for name in row})
        return {name: [row[name] for row in rows if name in row] for name in names}


def distill(
    recipe: Recipe,
    manifest: Manifest,
    stores: list[Path],
    training: Path,
    run_key: str,
    on_metrics: OnMetrics,
    on_preview: OnPreview,
    warm: Path | None = None,
) -> Path:
    """Run or resume the distillation; returns the student folder of its last or best checkpoint.

    warm: see :func:`arguments_of`.
    """
    from actors.run_place import RunPlace
    from actors.student_group import run_student_group

    student, teachers = arguments_of(recipe, manifest, stores, run_key, warm)
    return run_student_group(
        student,
        teachers,
        recipe.cluster.teacher_pool,
        recipe.cluster.student_group,
        RunPlace(training.resolve(), run_key),
        on_metrics,
        on_preview,
        keep_best=recipe.watch.every > 0 and recipe.watch.keep == "best",
    )
