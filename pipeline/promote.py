"""``collectionlora promote``: the alias ``champion`` moves to a student only where a rule holds.

The students' LoRA folders are versions of one registered model in MLflow's own model registry;
the rule is the recipe's ``promote`` section, judged on the two runs' logged means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import mirror
from pipeline.compare import read_store
from pipeline.comparison.regressions import higher_is_better
from pipeline.config import Recipe, recipe_hash
from pipeline.evaluation.report import METRICS
from pipeline.mirror import local_path
from pipeline.problems import InputError, Problem
from pipeline.tracking import DEFAULT_STORE, RunRow, default_uri, publish_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"


@dataclass(frozen=True)
class Check:
    """One metric of the rule; ``champion`` None: there is none yet, or it has no such score."""

    metric: str
    champion: float | None
    student: float | None
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the student is not worse by more than is allowed; a missing score fails."""
        if self.champion is None:
            return True
        if self.student is None:
            return False
        sign = 1 if higher_is_better(self.metric) else -1
        # A rounding error is not worse.
        return sign * (self.student - self.champion) >= -self.allowed - 1e-9

    def __str__(self) -> str:
        heading, digits = METRICS[self.metric]
        shown = ["-" if v is None else f"{v:.{digits}f}" for v in (self.student, self.champion)]
        verdict = "holds" if self.holds else "FAILS"
        return (
            f"{verdict}  {heading}: student {shown[0]}, champion {shown[1]}, "
            f"may be worse by {self.allowed:g}"
        )


@dataclass(frozen=True)
class Promotion:
    """What was found, and whether the alias is the student's now."""

    model: str
    student: str
    champion: str | None
    checks: tuple[Check, ...]
    moved: bool

    @property
    def holds(self) -> bool:
        """Whether every part of the rule holds."""
        return all(check.holds for check in self.checks)

    def __str__(self) -> str:
        old = f"champion {self.champion[:8]}" if self.champion else "no champion yet"
        if self.student == self.champion:
            end = f"it is {self.model}@{ALIAS} already"
        elif self.moved:
            end = f"{self.model}@{ALIAS} is now run {self.student[:8]}"
        else:
            end = (
                f"{self.model}@{ALIAS} would move" if self.holds else f"{self.model}@{ALIAS} stays"
            )
        lines = [f"student {self.student[:8]}, {old}", *map(str, self.checks), end]
        return "\n".join(lines)


def promote(recipe: Recipe, run: str | None = None, dry_run: bool = False) -> Promotion:
    """Judge the recipe's student (or the run with an id that begins so) and move the alias.

    Raises:
        InputError: no store, or no finished student in it.
    """
    output = local_path(recipe.output)
    if recipe.tracking.uri is None:
        mirror.fetch(output / DEFAULT_STORE)
    uri = recipe.tracking.uri or default_uri(output)
    experiment = recipe.tracking.experiment or recipe.name
    model = recipe.promote.model or experiment
    client, rows = read_store(uri, experiment)
    student = _student(rows, recipe, run, uri)
    champion = _champion(client, model)
    theirs: Mapping[str, float] = {}
    if champion is not None:
        theirs = client.get_run(champion).data.metrics
    checks = tuple(
        Check(metric, theirs.get(metric), student.metrics.get(metric), allowed)
        for metric, allowed in recipe.promote.worse_by.items()
        # An effect's family decides which scores exist: of a bank without it there is neither.
        if metric in student.metrics or metric in theirs
    )
    found = Promotion(model, student.run_id, champion, checks, moved=False)
    if dry_run or not found.holds or champion == student.run_id:
        return found
    version = _version(client, model, student)
    client.set_registered_model_alias(model, ALIAS, version)
    if recipe.tracking.uri is None:
        publish_store(output)
    return replace(found, moved=True)


def _student(rows: list[RunRow], recipe: Recipe, run: str | None, uri: str) -> RunRow:
    students = [row for row in rows if row.role == "student" and set(row.metrics) & set(METRICS)]
    if run is not None:
        meant = [row for row in students if row.run_id.startswith(run)]
    else:
        meant = [row for row in students if row.recipe_hash == recipe_hash(recipe)][:1]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(f"{row.run_id[:8]} (recipe {row.recipe_hash})" for row in students) or "none"
    what = f"not one scored student: the store has {names}"
    remedy = "run `collectionlora run RECIPE` first, or name one with --run"
    raise InputError([Problem(uri, "--run" if run else "recipe_hash", run, what, remedy)])


def _champion(client: "MlflowClient", model: str) -> str | None:
    """The champion's run, if there is a champion."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(model, ALIAS).run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _version(client: "MlflowClient", model: str, student: RunRow) -> str:
    """The student's version of the registered model: the one it has, or a new one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{model}'"):
        if version.run_id == student.run_id:
            return str(version.version)
    source = f"{client.get_run(student.run_id).info.artifact_uri}/student"
    tags = {"recipe_hash": student.recipe_hash}
    made = client.create_model_version(model, source, run_id=student.run_id, tags=tags)
    return str(made.version)
