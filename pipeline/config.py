"""The recipe: one typed YAML file that says everything a run depends on.

Unknown keys are errors, every number has its range, and all problems come in one report. The
defaults are the published settings (arXiv 2605.25378), except where ``method.md`` trials on the
small scale say that an option is off in the published recipe: those default to off here, too.
Paths are relative to the working directory.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline.config_cluster import ClusterSettings as ClusterSettings
from pipeline.config_cluster import ElasticWorkers as ElasticWorkers
from pipeline.config_cluster import PoolSettings as PoolSettings
from pipeline.config_cluster import StudentGroupSettings as StudentGroupSettings
from pipeline.config_judges import JudgeSettings
from pipeline.config_prompts import EndpointSettings as EndpointSettings
from pipeline.config_prompts import PromptSettings as PromptSettings
from pipeline.config_reports import AblationRow, GrowthReport, ReportSizes
from pipeline.config_training import MODULES as MODULES
from pipeline.config_training import DistillSettings as DistillSettings
from pipeline.config_training import GrowSettings, JointSettings, WarmStartSettings
from pipeline.config_training import LoraSettings as LoraSettings
from pipeline.config_training import TeachSettings as TeachSettings
from pipeline.config_types import Count, Guidance, Name, PathText, Positive, Section
from pipeline.config_watch import PromoteSettings, WatchSettings
from pipeline.models.quantization import Quantize
from pipeline.problems import InputError, Problem, from_pydantic
from pipeline.yaml_file import parse_yaml, read_mapping

# Raise it when a default changes that decides the weights: finished runs are then other runs.
DEFAULTS = 1


class ModelSettings(Section):
    """The frozen base: a diffusers folder, whose ``model_index.json`` says its family.

    path: a folder, ``s3://bucket/prefix`` or ``hf://owner/name``; quantize: how the linear layers
    of the transformer's blocks are stored, for teachers and student alike (null: in ``dtype``).
    """

    path: PathText = "pipeline/miniature/base"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Quantize | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def precision(self) -> str:
        """What the base's numbers depend on beside its weights, for content keys."""
        return self.dtype if self.quantize is None else f"{self.dtype}-{self.quantize}"


class TargetSettings(Section):
    """The teachers' multi-step outputs y: made once, independent of the student.

    ``keep_norm``: rescale guided predictions to the conditional one's length, as the stock Qwen
    pipelines do (and the published training does not).
    """

    sources: Positive = 20
    draws: Positive = 1
    steps: Positive = 40
    guidance: Guidance = 5.0
    keep_norm: bool = False
    batch: Positive = 8


class StudentSettings(Section):
    """The few-step student: its schedule (S steps, static shift) and its LoRA."""

    steps: Positive = 8
    shift: Annotated[float, Field(ge=1, le=20)] = 3.0
    lora: LoraSettings = LoraSettings()


class EvaluateSettings(Section):
    """Held-out scores; ``truth: miniature`` knows each effect's true outcomes."""

    truth: Literal["miniature", "pairs"] = "pairs"
    photographs: Positive = 20
    draws: Positive = 1
    batch: Positive = 8
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    sheet_rows: Positive = 12
    judges: JudgeSettings = JudgeSettings()


class BenchSettings(Section):
    """The evidence (``collectionlora bench``): who is compared, on what budget.

    seeds: of the trained contenders; joint: how the one LoRA of all pairs is trained; density: the
    share of entries that TIES and DARE keep. ``*_set`` are overrides of
    the recipe (``{"distill.rounds": 200}``) for the acceleration LoRA, the ablation's runs and
    the scale's; ablation: which of its rows (null: all), on so many ablation_effects; scale:
    collections' sizes; general_edits: instructions a photograph on which generality is measured;
    growth: see there; sizes: of the other reports.
    """

    seeds: tuple[Count, ...] = Field(default=(0, 1, 2), min_length=1, strict=False)
    joint: JointSettings = JointSettings()
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    acceleration_set: dict[str, Any] = {}
    ablation_set: dict[str, Any] = {}
    ablation: tuple[AblationRow, ...] | None = Field(default=None, min_length=1, strict=False)
    ablation_effects: Positive = 16
    scale_set: dict[str, Any] = {}
    scale: tuple[Positive, ...] = Field(default=(5, 10, 20, 50), min_length=1, strict=False)
    general_edits: Positive = 8
    growth: GrowthReport = GrowthReport()
    sizes: ReportSizes = ReportSizes()


class TrackingSettings(Section):
    """MLflow: where runs are recorded; null is ``sqlite:///<output>/mlflow.db``."""

    uri: str | None = None
    experiment: Name | None = None


class Recipe(Section):
    """Everything a run depends on. See ``pipeline/recipes/`` for worked ones."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    bank: PathText
    output: PathText
    effects: tuple[Name, ...] | None = Field(default=None, min_length=1, strict=False)
    model: ModelSettings = ModelSettings()
    teach: TeachSettings = TeachSettings()
    prompts: PromptSettings = PromptSettings()
    targets: TargetSettings = TargetSettings()
    student: StudentSettings = StudentSettings()
    distill: DistillSettings = DistillSettings()
    grow: GrowSettings = GrowSettings()
    watch: WatchSettings = WatchSettings()
    promote: PromoteSettings = PromoteSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings = BenchSettings()
    tracking: TrackingSettings = TrackingSettings()

    @property
    def warm_start(self) -> WarmStartSettings | None:
        """The one that a student of this recipe begins with: a grown one has its own."""
        return self.grow.warm_start if self.grow.start_from else self.distill.warm_start

    @model_validator(mode="after")
    def _bounded_target_simulation(self) -> Self:
        lowest = self.student.shift / (self.student.steps - 1 + self.student.shift)
        if self.distill.losses.dmd_ts > 0 and lowest >= self.distill.tau_max:
            raise ValueError(
                f"no student step lies below tau_max {self.distill.tau_max}: the lowest of "
                f"{self.student.steps} steps is {lowest:.3f}; use more student.steps or set "
                "distill.losses.dmd_ts to 0"
            )
        return self

    @model_validator(mode="after")
    def _anchored_from_the_start(self) -> Self:
        # Without, every sample's loss is above the scale at first: nothing anchors, and the
        # miniature's demo ended with no effect made at all.
        begun = self.distill.warm_start or self.grow.start_from
        if self.distill.ta_fm_scale is not None and not begun:
            raise ValueError(
                f"distill.ta_fm_scale {self.distill.ta_fm_scale} lets go of a student that knows "
                "nothing yet; give distill.warm_start, or leave the scale out"
            )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``overrides`` are ``section.key=value`` with YAML values.

    Raises:
        InputError: the file cannot be read, or fields are wrong: all of them, in one report.
    """
    recipe, problems = inspect_recipe(path, overrides)
    if recipe is None or problems:
        raise InputError(problems)
    return recipe


def inspect_recipe(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, list[Problem]]:
    """A recipe and all that is wrong with it; a wrong field has its default in the recipe.

    So that one wrong field does not hide what is wrong elsewhere. A required field that is wrong
    or missing reads ``unknown``; the recipe is None only where nothing could be read.
    """
    try:
        data = read_mapping(Path(path), "give a YAML mapping such as those in pipeline/recipes/")
    except InputError as error:
        return None, error.problems
    problems: list[Problem] = []
    for override in overrides:
        try:
            _apply_override(data, override)
        except InputError as error:
            problems += error.problems
    recipe, found = _salvage(str(path), data)
    problems += found
    if recipe is not None and not problems:
        problems = _wrong_changes(str(path), recipe)
    return recipe, problems


def _wrong_changes(file: str, recipe: Recipe) -> list[Problem]:
    """What is wrong with the bench's changes to the recipe, which its reports try hours later."""
    problems: list[Problem] = []
    for name in ("acceleration_set", "ablation_set", "scale_set"):
        try:
            vary(recipe, getattr(recipe.bench, name))
        except InputError as error:
            problems += [
                replace(p, file=file, field=f"bench.{name}: {p.field}") for p in error.problems
            ]
    return problems


def vary(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with other values, ``{"distill.losses.dmd_ts": 0.0}``, checked as a file would be.

    Raises:
        InputError: a key that no recipe has, or a value that it cannot have.
    """
    data = recipe.model_dump(mode="json")
    for key, value in changes.items():
        if (odd := _put(data, key, value)) is not None:
            what = f"{odd} is not a section"
            raise InputError([Problem(recipe.name, key, value, what, "check the key")])
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError([from_pydantic(recipe.name, e) for e in error.errors()]) from None


def recipe_hash(recipe: Recipe) -> str:
    """Twelve hex digits over what decides the weights (not over who computes them, or where).

    Only what differs from the defaults counts, so that a field which a later version adds, off by
    default, leaves finished runs their names. Whoever changes a default raises ``DEFAULTS``.
    """
    places: dict[str, Any] = dict.fromkeys(
        ("output", "cluster", "tracking", "evaluate", "bench", "name", "promote"), True
    )
    # Looks decide weights only where they decide which checkpoint becomes the student.
    if not (recipe.watch.every and recipe.watch.keep == "best"):
        places["watch"] = True
    # Captions decide weights, and name them through what the encodings are keyed by; not their
    # writer's address.
    places["prompts"] = {"endpoint", "pairs", "language"}
    content = recipe.model_dump(mode="json", exclude=places, exclude_defaults=True)
    content["defaults"] = DEFAULTS
    # The recipe's own seed, named once more: a bench says which seed, a run need not.
    distill = content.pop("distill", {})
    if distill.get("seed") == recipe.seed:
        del distill["seed"]
    if distill:
        content["distill"] = distill
    # The start is content, not a place: `run_key_of` has its weights.
    grow = content.pop("grow", {})
    if grow.pop("start_from", None) is not None:
        content["grow"] = grow
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _salvage(file: str, data: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    problems: list[Problem] = []
    dropped: set[str] = set()
    # A check across fields runs only once its fields are right: hence more than one pass.
    for _ in range(8):
        try:
            return Recipe.model_validate(data), problems
        except ValidationError as error:
            found = error.errors()
        for e in found:
            # A list of nothing but wrong items would be reported as too short as well.
            inner = any(o["loc"][: len(e["loc"])] == e["loc"] for o in found if o is not e)
            # Of a field already reported: it would speak of the default in its place.
            if not inner and not any(
                re.search(rf"\b{re.escape(name)}\b", e["msg"]) for name in dropped
            ):
                problems.append(from_pydantic(file, e))
        for e in found:
            dropped |= _drop(data, e)
    return None, problems


def _drop(data: dict[str, Any], error: ErrorDetails) -> set[str]:
    """Take what an error is about out of ``data``; the fields' names."""
    if not error["loc"]:
        data.pop("student", None)
        data.pop("distill", None)
        return set()
    *sections, last = error["loc"]
    # What is missing cannot be taken out: the section that lacks it goes.
    if error["type"] == "missing" and sections:
        *sections, last = sections
    inner: Any = data
    for section in sections:
        # Within a list, the whole list goes.
        if not isinstance(inner[section], dict):
            last = section
            break
        inner = inner[section]
    required = inner is data and last in ("name", "bank", "output")
    inner.pop(last, None)
    if required:
        inner[last] = "unknown"
    return {str(last)} if error["type"] != "value_error" else set()


def _apply_override(data: dict[str, Any], override: str) -> None:
    def refused(what: str, remedy: str) -> InputError:
        return InputError([Problem("--set", key, override, what, remedy)])

    key, separator, text = override.partition("=")
    if not separator or not key:
        raise refused("not KEY=VALUE", "write --set distill.rounds=100")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise refused(f"the value is not YAML: {error}", "quote it") from None
    if (odd := _put(data, key, value)) is not None:
        raise refused(f"{odd} is not a section", "check the key")


def _put(data: dict[str, Any], key: str, value: object) -> str | None:
    """Set a dotted key; what is no section on the way there. A section that is off is begun."""
    *sections, last = key.split(".")
    for section in sections:
        if data.get(section) is None:
            data[section] = {}
        data = data[section]
        if not isinstance(data, dict):
            return section
    data[last] = value
    return None
