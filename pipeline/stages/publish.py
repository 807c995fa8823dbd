"""Publish: progress while it distils, then teachers, base and student side by side in MLflow."""

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Never

from tqdm import tqdm

from pipeline import mirror
from pipeline.bank import Bank
from pipeline.config import Recipe, recipe_hash
from pipeline.evaluation.report import Report, run_metrics
from pipeline.evaluation.strips import SOURCE, strip_folder
from pipeline.evaluation.watch_plots import watch_curves
from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.stages.watching import Watching
from pipeline.storage import content_key, sha256_file, write_atomic
from pipeline.tracking import DEFAULT_STORE, Tracker, publish_store

LOG_EVERY = 10
# So often the run's own store goes to S3, whole, for a node that goes on when this one is lost.
STORE_SECONDS = 60.0
REPORT_FILES = (
    "report.json",
    "report.md",
    "contact_sheet.png",
    "bleed_matrix.png",
    "bleed.json",
    "loss_curves.png",
    "watch_curves.png",
    "warnings.log",
    "prompts.json",
)


class Publisher:
    """The one writer to the tracker of a run; nothing is written before there is something."""

    def __init__(self, recipe: Recipe, bank: Bank, places: Places) -> None:
        self.recipe, self.bank, self.places = recipe, bank, places
        self.hash = recipe_hash(recipe)
        self.watching = Watching(recipe.watch, places.output)
        self._tracker: Tracker | None = None
        self._parent = ""
        self._store_at = 0.0

    def progress(self, history: History) -> Callable[[dict[str, float]], None]:
        """A callback for finished rounds: progress bar with ETA, history file, tracker."""
        rounds = self.recipe.distill.rounds
        # Opened with the first round: a finished run that is only looked at stays finished.
        student: str | None = None
        bar: tqdm[Never] | None = None
        last = time.monotonic()
        # Not every round has a slot of every effect: what is logged is the mean since the last.
        parts: dict[str, list[float]] = {}

        def on_metrics(metrics: dict[str, float]) -> None:
            nonlocal bar, last, student
            round_index = int(metrics["round"])
            if bar is None:
                bar = tqdm(total=rounds, initial=round_index, desc="distill", unit="round")
            history.append(metrics)
            self.watching.hear(metrics)
            for key, value in metrics.items():
                if "/" in key:
                    parts.setdefault(key, []).append(value)
            bar.update()
            bar.set_postfix_str(
                f"fake {metrics['loss_fake']:.3f} anchor {metrics['loss_ta_fm']:.3f} "
                f"wait {metrics['seconds_wait']:.2f}s"
            )
            if round_index % LOG_EVERY == 0 or round_index == rounds - 1:
                means = {key: sum(values) / len(values) for key, values in parts.items()}
                parts.clear()
                series = {f"train/{k}": v for k, v in (metrics | means).items() if k != "round"}
                student = student or self._run("student", "student", None)
                self._open().log_metrics(student, series, round_index)
                history.publish()
                if time.monotonic() >= self._store_at:
                    # One that cannot be read now can wait; at the end it must go.
                    with suppress(sqlite3.Error):
                        self._publish_store()
                    self._store_at = time.monotonic() + STORE_SECONDS
            if round_index == rounds - 1:
                bar.close()
                if self.recipe.watch.every:
                    curves = self.places.output / "watch_curves.png"
                    write_atomic(curves, lambda path: watch_curves(history.load(), path))

        return on_metrics

    def preview(self, rounds: int, preview: bytes) -> None:
        """A preview of the student in training, to disk and to the tracker."""
        path = self.watching.save(rounds, preview)
        student = self._run("student", "student", None)
        self._open().log_step_image(student, path, "preview", rounds)

    def publish(self, report: Report, adapters: Mapping[str, Path], lora: Path) -> None:
        """Scores, pictures and adapters of every method; nothing if this was published before."""
        seal = self.places.output / "cache" / "published"
        output = self.places.output
        files = [output / name for name in REPORT_FILES if (output / name).exists()]
        hashes = [sha256_file(file) for file in (output / "report.json", lora)]
        key = content_key(hashes, self.recipe.tracking.uri)
        if mirror.fetch(seal) and seal.read_text() == key:
            self._connect()
            return
        tracker = self._open()
        for file in files:
            tracker.log_artifact(self._parent, file, "report")
        for method in report["methods"]:
            if method == "teacher":
                for effect in tqdm(self.bank.effects, "publish teachers", unit="run"):
                    run = self._run(f"teacher-{effect.name}", "teacher", effect.name)
                    self._score(run, report, method, effect.name)
                    tracker.log_artifact(run, adapters[effect.name], "adapter")
                    tracker.finish(run)
                continue
            run = self._run(method, "student" if method == "student" else "base", None)
            self._score(run, report, method, None)
            if method == "student":
                tracker.log_artifact(run, self.places.student, "student")
            tracker.finish(run)
        tracker.finish(self._parent)
        self._publish_store()
        write_atomic(seal, key.encode())

    def _score(self, run: str, report: Report, method: str, effect: str | None) -> None:
        tracker = self._open()
        costs = {k: float(report["methods"][method][k]) for k in ("nfe", "ms_per_image")}
        tracker.log_metrics(run, run_metrics(report, method, effect) | costs)
        names = [effect] if effect else [e.name for e in self.bank.effects]
        pictures = self.places.output / "methods" / method
        tracker.log_images(run, [pictures / f"{name}.png" for name in names])
        for shown in (method, SOURCE):
            for name in names:
                strip = self.places.output / "strips" / shown / f"{name}.png"
                tracker.log_artifact(run, strip, strip_folder(shown == SOURCE))

    def _publish_store(self) -> None:
        if self.recipe.tracking.uri is None:
            publish_store(self.places.output)

    def _run(self, name: str, role: str, effect: str | None) -> str:
        tracker = self._open()
        return tracker.child(self._parent, name, role, effect, self.hash)  # type: ignore[arg-type]

    def _connect(self) -> Tracker:
        """The tracker, which sends what a server that was away did not take."""
        settings, output = self.recipe.tracking, self.places.output
        artifacts = f"{mirror.address(output)}/mlartifacts" if mirror.address(output) else None
        experiment = settings.experiment or self.recipe.name
        return Tracker.open(settings.uri, experiment, output, artifacts)

    def _open(self) -> Tracker:
        if self._tracker is None:
            if self.recipe.tracking.uri is None:
                mirror.fetch(self.places.output / DEFAULT_STORE)
            self._tracker = self._connect()
            parameters = self.recipe.model_dump(mode="json")
            self._parent = self._tracker.parent(self.recipe.name, self.hash, parameters)
        return self._tracker
