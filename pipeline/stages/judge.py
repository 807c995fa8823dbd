"""Judge: the field's own scores of the pictures that an evaluation made, where the recipe asks.

EffectBench: every method's first draw of every effect on every test picture. Scores and verdicts
are cached one by one under the content of all that they depend on, so a stopped judging goes on
with what is missing, and another judge added later leaves the others' scores as they are.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bank import Bank
from pipeline.config import EndpointSettings, Recipe
from pipeline.endpoint import Usage
from pipeline.evaluation import edit_reward
from pipeline.evaluation.effectbench import EvalRow, TestSource
from pipeline.evaluation.embedders import KINDS
from pipeline.evaluation.field_report import FieldScore
from pipeline.evaluation.kappa import agreement
from pipeline.evaluation.vlm_judge import VERSION, ask_judgement, vsa
from pipeline.models.fingerprint import fingerprint
from pipeline.problems import InputError, Problem
from pipeline.stages.asking import answer, ask, cost_lines
from pipeline.storage import content_key, sha256_file

StartRay = Callable[[], None]


@dataclass(frozen=True)
class Judged:
    """All scores, the judge's agreement with itself by stage, and what the answers took."""

    scores: list[FieldScore]
    agreement: dict[str, float | None]
    notes: list[str]


@dataclass(frozen=True)
class Output:
    """One picture to judge, with all that judges are told about it."""

    row: EvalRow
    source: str
    source_sha: str
    prompt: str
    example: str


def judge(
    recipe: Recipe,
    bank: Bank,
    test: Sequence[TestSource],
    rows: Sequence[EvalRow],
    pictures: Path,
    cache: Path,
    ray: StartRay,
) -> Judged | None:
    """Scores by the judges of the recipe; None if it names none.

    Raises:
        InputError: a judge's folder cannot be used, the endpoint refuses, or some judgements got
            no usable answer: running again asks for these alone.
    """
    judges = recipe.evaluate.judges
    outputs = _outputs(bank, test, rows)
    scores: list[FieldScore] = []
    for kind in KINDS:
        folder = getattr(judges, kind)
        if folder is not None:
            scores += _likeness(recipe, kind, folder, outputs, pictures, cache / kind, ray)
    agreed: dict[str, float | None] = {}
    notes: list[str] = []
    if judges.edit_reward is not None:
        found, notes = _rewards(recipe, judges.edit_reward, outputs, pictures, cache, ray)
        scores += found
    if judges.vlm is not None:
        found, agreed, cost = _verdicts(recipe, judges.vlm, outputs, pictures, cache / "vlm", ray)
        scores += found
        notes += cost
    return Judged(scores, agreed, notes) if scores else None


def _outputs(bank: Bank, test: Sequence[TestSource], rows: Sequence[EvalRow]) -> list[Output]:
    sources = {t.photograph: (str(Path(t.path).resolve()), sha256_file(t.path)) for t in test}
    prompts = {effect.name: effect.prompt for effect in bank.effects}
    examples = {
        e.name: [str(p.target.resolve()) for p in bank.pairs_of(e.name)] for e in bank.effects
    }
    return [
        Output(
            row,
            *sources[row["photograph"]],
            prompts[row["effect"]],
            next(iter(examples[row["effect"]]), ""),
        )
        for row in rows
        if row["draw"] == 0
    ]


def _likeness(
    recipe: Recipe,
    kind: str,
    model: str,
    outputs: Sequence[Output],
    pictures: Path,
    folder: Path,
    ray: StartRay,
) -> Iterator[FieldScore]:
    from actors.likeness_pool import LikenessActor
    from actors.pool import through_pool
    from actors.session import device_of

    mark = fingerprint(model, ".")
    keys = {content_key("likeness", kind, mark, o.source_sha, o.row["key"]): o for o in outputs}
    todo = [
        {"key": key, "picture": o.row["key"], "source": o.source}
        for key, o in keys.items()
        if _score(folder, key) is None
    ]
    if todo:
        # Before any actor starts: a folder that is none would fail in each of them.
        if not Path(model).is_dir():
            what, remedy = "no such folder", "give the model's local folder"
            raise InputError([Problem(f"evaluate.judges.{kind}", "", model, what, remedy)])
        ray()
        folder.mkdir(parents=True, exist_ok=True)
        pool = recipe.cluster.encoder_pool
        arguments = {
            "kind": kind,
            "model": str(Path(model).resolve()),
            "device": device_of(recipe.model, pool.num_gpus),
            "threads": pool.threads,
            "pictures": str(pictures.resolve()),
            "folder": str(folder.resolve()),
        }
        batch = recipe.evaluate.judges.batch
        for _ in through_pool(todo, LikenessActor, arguments, pool, batch, f"judge: {kind}"):
            pass
    for key, o in keys.items():
        value = _score(folder, key)
        assert value is not None
        yield _field_score(o, kind, value)


def _rewards(
    recipe: Recipe,
    endpoint: EndpointSettings,
    outputs: Sequence[Output],
    pictures: Path,
    cache: Path,
    ray: StartRay,
) -> tuple[list[FieldScore], list[str]]:
    asked = [(o, 0) for o in outputs]
    folder = cache / "edit_reward"
    rewards = _settle(endpoint, "reward", asked, pictures, folder, recipe.seed, ray)
    usage = sum((spent for _, spent in rewards), Usage())
    scores = [
        _field_score(o, "edit_reward", float(value))
        for o, (value, _) in zip(outputs, rewards, strict=True)
    ]
    return scores, cost_lines(usage, len(outputs), endpoint)


def _verdicts(
    recipe: Recipe,
    endpoint: EndpointSettings,
    outputs: Sequence[Output],
    pictures: Path,
    folder: Path,
    ray: StartRay,
) -> tuple[list[FieldScore], dict[str, float | None], list[str]]:
    """BCR and VSA of every output, a mean over the passes; stage two only where it applies."""
    passes = range(recipe.evaluate.judges.passes)
    asked = [(o, number) for number in passes for o in outputs]
    happened = _settle(endpoint, "happened", asked, pictures, folder, recipe.seed, ray)
    yes = [pair for pair, (value, _) in zip(asked, happened, strict=True) if value]
    kept = _settle(endpoint, "kept", yes, pictures, folder, recipe.seed, ray)
    verdict = {(o.row["key"], n): v for (o, n), (v, _) in zip(asked, happened, strict=True)}
    score = {(o.row["key"], n): float(v) for (o, n), (v, _) in zip(yes, kept, strict=True)}
    scores = []
    for o in outputs:
        key = o.row["key"]
        each = [vsa(bool(verdict[key, n]), score.get((key, n))) for n in passes]
        bad = [float(not verdict[key, n]) for n in passes]
        scores.append(_field_score(o, "vsa", sum(each) / len(each)))
        scores.append(_field_score(o, "bcr", sum(bad) / len(bad)))
    usage = sum((spent for _, spent in [*happened, *kept]), Usage())
    return (
        scores,
        _agreement(outputs, verdict, score),
        cost_lines(usage, len(asked) + len(yes), endpoint),
    )


def _agreement(
    outputs: Sequence[Output],
    verdict: Mapping[tuple[str, int], Any],
    score: Mapping[tuple[str, int], float],
) -> dict[str, float | None]:
    """Cohen's kappa of the first two passes; of scores where both say that the effect happened."""
    keys = [o.row["key"] for o in outputs if (o.row["key"], 1) in verdict]
    both = [key for key in keys if (key, 0) in score and (key, 1) in score]
    first, second = ([float(verdict[key, n]) for key in keys] for n in (0, 1))
    kept, again = ([score[key, n] for key in both] for n in (0, 1))
    return {"happened": agreement(first, second), "kept": agreement(kept, again, scale=True)}


def _settle(
    endpoint: EndpointSettings,
    stage: str,
    asked: Sequence[tuple[Output, int]],
    pictures: Path,
    folder: Path,
    seed: int,
    ray: StartRay,
) -> list[tuple[Any, Usage]]:
    """The answers of one stage in order, asking for those that are not there."""
    rows = [_row(endpoint, stage, o, number, pictures, seed) for o, number in asked]
    todo = [row for row in rows if answer(folder, row["key"]) is None]
    if todo:
        ray()
        question = edit_reward.ask_reward if stage == "reward" else ask_judgement
        done = ask(todo, question, endpoint, folder, f"judge: {stage}")
        if done.unanswered:
            why = next(iter(done.unanswered.values()))
            what = (
                f"{len(done.unanswered)} of {len(rows)} judgements ({stage}) got no usable answer"
            )
            remedy = "run again: these alone are asked again"
            raise InputError(
                [Problem(endpoint.url, endpoint.model, None, f"{what} ({why})", remedy)]
            )
    found = [answer(folder, row["key"]) for row in rows]
    return [(settled.value, settled.usage) for settled in found if settled is not None]


def _row(
    endpoint: EndpointSettings, stage: str, o: Output, number: int, pictures: Path, seed: int
) -> dict[str, Any]:
    example = o.example if stage == "happened" else ""
    said = [o.row["effect"], o.prompt, example and sha256_file(example), o.source_sha]
    version = edit_reward.VERSION if stage == "reward" else VERSION
    key = content_key("vlm", version, stage, endpoint.model, said, o.row["key"], number, seed)
    return {
        "key": key,
        "stage": stage,
        "name": o.row["effect"],
        "prompt": o.prompt,
        "source": o.source,
        "example": example,
        "pictures": str(pictures.resolve()),
        "picture": o.row["key"],
        # Passes differ in nothing else: how far they agree is the judge's own noise.
        "seed": seed + 1000 * number,
    }


def _score(folder: Path, key: str) -> float | None:
    try:
        return float(json.loads((folder / f"{key}.json").read_bytes())["value"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _field_score(o: Output, metric: str, value: float) -> FieldScore:
    return FieldScore(o.row["method"], o.row["effect"], o.row["photograph"], metric, value)
