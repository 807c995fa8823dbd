"""Evaluate: base, teachers and student on held-out photographs, scored, with their costs.

Pictures and scores are cached under the content of all that they depend on; an evaluation whose
plan is done already reads them and starts nothing.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.evaluation import plots
from pipeline.evaluation.effectbench import (
    EvalRow,
    JudgeJob,
    Method,
    TestSource,
    by_whole_photograph,
    cost_key,
    eval_rows,
    judge_jobs,
    open_source,
)
from pipeline.evaluation.report import (
    ImageScore,
    MethodCost,
    Report,
    bleed,
    build_report,
    effects_table,
    environment,
    markdown_table,
    write_report,
)
from pipeline.evaluation.strips import SOURCE, write_strip
from pipeline.miniature.effects import KNOWN, true_samples
from pipeline.models.fingerprint import fingerprint
from pipeline.models.local import absolute
from pipeline.problems import InputError, Problem, StorageError
from pipeline.storage import is_whole, sha256_file, write_atomic
from pipeline.tensor_store import TensorStore, stored_keys

Picture = NDArray[np.float32]

# Photographs on each effect's own sheet; the same ones for every method.
SHEET_PHOTOGRAPHS = 4
STRIP_PHOTOGRAPHS = 6


@dataclass(frozen=True)
class EvaluationPlan:
    """All pictures and scores that an evaluation consists of, and which are missing."""

    rows: list[EvalRow]
    jobs: list[JudgeJob]
    families: dict[str, str]
    pictures: Path
    scores: Path
    unsampled: list[EvalRow]
    unjudged: list[JudgeJob]

    @property
    def forwards(self) -> int:
        """Transformer forwards that the missing pictures take."""
        return sum(r["steps"] * (1 if r["guidance"] == 1 else 2) for r in self.unsampled)


@dataclass(frozen=True)
class Evaluation:
    """Scores and costs of all methods, and where their pictures are."""

    scores: list[ImageScore]
    costs: dict[str, MethodCost]
    rows: list[EvalRow]
    pictures: Path


def plan_evaluation(
    recipe: Recipe,
    bank: Bank,
    test: Sequence[TestSource],
    methods: Sequence[Method],
    cache: Path,
) -> EvaluationPlan:
    """What an evaluation of ``methods`` has to do.

    Raises:
        InputError: ``truth: miniature`` with an effect that the miniature does not have, or no
            held-out photographs.
    """
    families = families_of(recipe, bank)
    if not test:
        what, remedy = "no held-out photographs to evaluate on", "give the bank a test folder"
        raise InputError([Problem(str(bank.folder / "bank.yaml"), "test", None, what, remedy)])
    test = test[: recipe.evaluate.photographs]
    rows = eval_rows(methods, list(families), test, recipe.seed, model_key(recipe))
    photographs = {t.photograph: (str(Path(t.path).resolve()), sha256_file(t.path)) for t in test}
    autoencoder = f"{fingerprint(recipe.model.path, 'vae')}-{recipe.model.dtype}"
    jobs = judge_jobs(rows, photographs, families, recipe.evaluate.truth, autoencoder)
    pictures, scores = cache / "pictures", cache / "scores"
    stored = stored_keys(pictures)
    return EvaluationPlan(
        rows=rows,
        jobs=jobs,
        families=families,
        pictures=pictures,
        scores=scores,
        unsampled=[row for row in rows if row["key"] not in stored],
        unjudged=[job for job in jobs if not is_whole(_scores_file(scores, job))],
    )


def model_key(recipe: Recipe) -> str:
    """Identifies the base's weights and precision, on which every picture depends."""
    weights = fingerprint(recipe.model.path, "transformer", "scheduler", "vae")
    return f"{weights}-{recipe.model.precision}"


def evaluate(recipe: Recipe, plan: EvaluationPlan, stores: Sequence[Path]) -> Evaluation:
    """Do what is missing (Ray starts only if anything is), then read all scores and costs."""
    if plan.unsampled or plan.unjudged:
        from actors.session import ray_session

        with ray_session(recipe.cluster):
            _sample(recipe, plan, stores)
            _judge(recipe, plan)
    return collect_evaluation(recipe, plan)


def collect_evaluation(recipe: Recipe, plan: EvaluationPlan) -> Evaluation:
    """Scores and costs of a plan that is done."""
    scores = [
        ImageScore(**entry)
        for job in plan.jobs
        for entry in json.loads(_whole(_scores_file(plan.scores, job)).read_bytes())
    ]
    if recipe.evaluate.truth == "miniature":
        scores = by_whole_photograph(scores)
    store = TensorStore([plan.pictures])
    costs = {}
    for method in dict.fromkeys(row["method"] for row in plan.rows):
        keys = [cost_key(row["key"]) for row in plan.rows if row["method"] == method]
        each = np.stack([tensor.numpy() for tensor in store.get_many(keys)])
        # The median: an actor's first batch also pays for what a process does once.
        milliseconds, forwards = np.median(each, axis=0)
        costs[method] = MethodCost(round(float(forwards)), float(milliseconds))
    return Evaluation(scores, costs, plan.rows, plan.pictures)


def write_evaluation(
    out: Path,
    recipe: Recipe,
    bank: Bank,
    test: Sequence[TestSource],
    evaluation: Evaluation,
    counters: Mapping[str, Any],
    history: Mapping[str, Sequence[float]],
) -> Report:
    """Write the report, its tables and its pictures into ``out``; returns the report.

    ``report.json``, ``report.md``, ``contact_sheet.png``, ``bleed_matrix.png`` (student, teacher
    beside it), ``bleed.json``, ``loss_curves.png`` (unless ``history`` is empty) and, for the
    tracker, ``methods/<method>/<effect>.png`` and ``strips/<method>/<effect>.png`` with the same
    photographs for every method.
    """
    report = build_report(
        evaluation.scores,
        evaluation.costs,
        counters,
        environment(),
        recipe.evaluate.bootstrap,
        recipe.seed,
    )
    write_report(report, out / "report.json")
    text = (
        f"# {recipe.name}\n\n{markdown_table(report)}\n\nMeans with 95 % bootstrap intervals over "
        "photographs. NFE: forwards of the transformer for one picture, counted; guidance takes "
        f"two a step.\n\n## By effect\n\n{effects_table(report)}\n"
    )
    write_atomic(out / "report.md", text.encode())
    gallery = _Gallery(recipe, test[: recipe.evaluate.photographs], evaluation)
    effects = [effect.name for effect in bank.effects]
    _save(out / "contact_sheet.png", gallery.contact_sheet(effects))
    for method in evaluation.costs:
        for effect in effects:
            _save(out / "methods" / method / f"{effect}.png", gallery.sheet(method, effect))
    write_strips(out / "strips", recipe, test, evaluation, effects)
    matrices = {
        method: bleed(evaluation.scores, method, effects).tolist() for method in evaluation.costs
    }
    bled = {"effects": effects, "columns": [*effects, "other"], "methods": matrices}
    write_atomic(out / "bleed.json", json.dumps(bled).encode())
    _save(out / "bleed_matrix.png", _bleed_matrices(evaluation.scores, effects))
    if history:
        # Those by sigma, stream or effect are in a figure of their own.
        plain = {name: values for name, values in history.items() if "/" not in name}
        write_atomic(out / "loss_curves.png", lambda path: plots.loss_curves(plain, path))
    return report


def write_strips(
    folder: Path,
    recipe: Recipe,
    test: Sequence[TestSource],
    evaluation: Evaluation,
    effects: Sequence[str],
) -> None:
    """``<method>/<effect>.png`` in ``folder``: the same photographs of every method, and theirs."""
    gallery = _Gallery(recipe, test[: recipe.evaluate.photographs], evaluation)
    for method in (*evaluation.costs, SOURCE):
        for effect in effects:
            write_strip(folder / method / f"{effect}.png", *gallery.strip(method, effect))


def _sample(recipe: Recipe, plan: EvaluationPlan, stores: Sequence[Path]) -> None:
    from actors.pool import through_pool
    from actors.sampler_pool import SamplerActor
    from actors.session import device_of

    pool = recipe.cluster.teacher_pool
    arguments = {
        "model": absolute(recipe.model.path),
        "device": device_of(recipe.model, pool.num_gpus),
        "dtype": recipe.model.dtype,
        "threads": pool.threads,
        "adapters_resident": pool.adapters_resident,
        "quantize": recipe.model.quantize,
        "stores": [str(s.resolve()) for s in stores],
        "folder": str(plan.pictures.resolve()),
    }
    batch = recipe.evaluate.batch
    for _ in through_pool(plan.unsampled, SamplerActor, arguments, pool, batch, "evaluate: edit"):
        pass


def _judge(recipe: Recipe, plan: EvaluationPlan) -> None:
    from actors.judge_pool import JudgeActor
    from actors.pool import through_pool
    from actors.session import device_of

    pool = recipe.cluster.encoder_pool
    arguments = {
        "model": absolute(recipe.model.path),
        "device": device_of(recipe.model, pool.num_gpus),
        "dtype": recipe.model.dtype,
        "threads": pool.threads,
        "pictures": str(plan.pictures.resolve()),
        "folder": str(plan.scores.resolve()),
        "truth": recipe.evaluate.truth,
        "families": plan.families,
    }
    rows = [job.row() for job in plan.unjudged]
    for _ in through_pool(rows, JudgeActor, arguments, pool, 1, "evaluate: score"):
        pass


def families_of(recipe: Recipe, bank: Bank) -> dict[str, str]:
    """Effects in the bank's order with their families, which decide what scores fit.

    Raises:
        InputError: ``truth: miniature`` with an effect that the miniature does not have.
    """
    if recipe.evaluate.truth == "pairs":
        return {effect.name: effect.category for effect in bank.effects}
    what, remedy = "the miniature has no such effect", "set evaluate.truth to pairs"
    file = str(bank.folder / "bank.yaml")
    unknown = [effect.name for effect in bank.effects if effect.name not in KNOWN]
    if unknown:
        raise InputError([Problem(file, "effects", name, what, remedy) for name in unknown])
    return {effect.name: KNOWN[effect.name].family for effect in bank.effects}


def _scores_file(folder: Path, job: JudgeJob) -> Path:
    return folder / f"{job.key}.json"


def _whole(path: Path) -> Path:
    if not is_whole(path):
        raise StorageError(f"{path}: damaged or removed just now; run again, and it is made again")
    return path


class _Gallery:
    """An evaluation's pictures by method, effect and photograph (first draws)."""

    def __init__(self, recipe: Recipe, test: Sequence[TestSource], evaluation: Evaluation) -> None:
        self.recipe = recipe
        self.test = test
        # Edits of a photograph have one size, whatever the method.
        self.any_method = next(iter(evaluation.costs))
        self.store = TensorStore([evaluation.pictures])
        self.keys = {
            (r["method"], r["effect"], r["photograph"]): r["key"]
            for r in evaluation.rows
            if r["draw"] == 0
        }

    def contact_sheet(self, effects: Sequence[str]) -> Image.Image:
        """A row an effect: source, truth (where it is known), teacher, student."""
        known = self.recipe.evaluate.truth == "miniature"
        columns = ["source", *(["truth"] if known else []), "teacher", "student"]
        rows = []
        for i, effect in enumerate(effects[: self.recipe.evaluate.sheet_rows]):
            source = self.test[i % len(self.test)]
            photograph = self.photograph(source, effect)
            truth = [true_samples(effect, photograph, 1, self.recipe.seed)[0]] if known else []
            outputs = [self.output(m, effect, source) for m in ("teacher", "student")]
            rows.append((effect, [photograph, *truth, *outputs]))
        return plots.contact_sheet(rows, columns, _scale(rows[0][1][0]))

    def sheet(self, method: str, effect: str) -> Image.Image:
        """A method's outputs of one effect beside their photographs."""
        rows = [
            (s.photograph, [self.photograph(s, effect), self.output(method, effect, s)])
            for s in self.test[:SHEET_PHOTOGRAPHS]
        ]
        return plots.contact_sheet(rows, ["source", method], _scale(rows[0][1][0]))

    def strip(self, method: str, effect: str) -> tuple[list[str], list[Picture]]:
        """A method's outputs of one effect (or their photographs), by photograph."""
        some = self.test[:STRIP_PHOTOGRAPHS]
        make = self.photograph if method == SOURCE else None
        pictures = [make(s, effect) if make else self.output(method, effect, s) for s in some]
        return [s.photograph for s in some], pictures

    def output(self, method: str, effect: str, source: TestSource) -> Picture:
        key = self.keys[method, effect, source.photograph]
        return np.asarray(self.store.get(key).numpy())

    def photograph(self, source: TestSource, effect: str) -> Picture:
        """The photograph, at the size of its edits."""
        height, width = self.output(self.any_method, effect, source).shape[:2]
        return open_source(Path(source.path), height, width)


def _scale(picture: Picture) -> int:
    return max(1, 128 // len(picture))


def _bleed_matrices(scores: Sequence[ImageScore], effects: Sequence[str]) -> Image.Image:
    """The student's matrix with the teachers' beside it, the yardstick."""
    columns = [*effects, "other"]
    images: list[Image.Image] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("student", "teacher"):
            path = Path(folder) / f"{method}.png"
            title = f"Which effect happened: {method}"
            plots.bleed_matrix(effects, bleed(scores, method, effects), path, columns, title)
            images.append(Image.open(path).convert("RGB"))
    both = Image.new("RGB", (sum(i.width for i in images), images[0].height), "white")
    left = 0
    for image in images:
        both.paste(image, (left, 0))
        left += image.width
    return both


def _save(path: Path, image: Image.Image) -> None:
    write_atomic(path, lambda place: image.save(place))
