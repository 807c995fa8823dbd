"""Whether models are all there before a run begins: the base's parts, the judges' folders."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.config_judges import JudgeSettings
from pipeline.models.families import Family
from pipeline.models.loading import weight_files
from pipeline.models.safetensors_files import whole_header
from pipeline.problems import InputError, Problem

SHOWN = 3
REMEDY = "download the whole model again, or give another folder"
JUDGE_REMEDY = "give the model's local folder, with its config.json and safetensors"


def base_problems(folder: Path, family: Family) -> list[Problem]:
    """What a diffusers folder lacks of the parts that a run loads; headers are read, no weights."""
    problems: list[Problem] = []
    for part in ("transformer", "vae", "scheduler", *family.text):
        place = folder / part
        if part == "scheduler":
            needed = "scheduler_config.json"
        elif part.startswith(("tokenizer", "processor")):
            needed = "*.json"  # whose files have other names from release to release
        else:
            needed = "config.json"
        if not any(place.glob(needed)):
            problems.append(Problem(str(place), "", None, f"no {needed} in it", REMEDY))
        elif needed == "config.json":
            problems += _weight_problems(place, REMEDY)
    return problems


def judge_problems(file: str, judges: JudgeSettings) -> Iterator[Problem]:
    """The recipe's judges whose folder is missing or is none of transformers'."""
    for kind in ("clip", "dino", "dreamsim"):
        given = getattr(judges, kind)
        if given is None:
            continue
        field, folder = f"evaluate.judges.{kind}", Path(given)
        if not folder.is_dir():
            yield Problem(file, field, given, "no such folder", JUDGE_REMEDY)
            continue
        pattern = "*/config.json" if kind == "dreamsim" else "config.json"
        models = sorted(path.parent for path in folder.glob(pattern))
        if not models:
            yield Problem(file, field, given, f"no {pattern} in it", JUDGE_REMEDY)
        for model in models:
            yield from _weight_problems(model, JUDGE_REMEDY)


def _weight_problems(place: Path, remedy: str) -> list[Problem]:
    """Weights of one model that are missing, cut short or no safetensors."""
    try:
        indexed = any(place.glob("*.safetensors.index.json"))
        files = weight_files(place) if indexed else sorted(place.glob("*.safetensors"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"its index of weights cannot be read ({' '.join(str(error).split())[:120]})"
        return [Problem(str(place), "", None, what, remedy)]
    if not files:
        return [Problem(str(place), "", None, "no weights (.safetensors) in it", remedy)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        names = ", ".join(missing[:SHOWN])
        what = f"{len(missing)} of {len(files)} files of weights are missing ({names}{more})"
        return [Problem(str(place), "", None, what, remedy)]
    problems: list[Problem] = []
    for path in files:
        try:
            whole_header(path)
        except InputError as error:
            problems += error.problems
    return problems
