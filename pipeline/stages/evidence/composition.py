"""Composition without training: "A, then B" named in one prompt, or two LoRAs at once.

Students are asked with one prompt that names both effects, or in turn, the second effect on their
own picture of the first; teachers with both LoRAs active under their joined prompts ("stacked") or
one after the other ("sequential", two whole passes: the most that teachers can do, and what the
others are measured by beside the truth).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import mirror
from pipeline.config import Recipe, vary
from pipeline.controller import Prepared
from pipeline.evaluation.composition import Composition, choose_pairs
from pipeline.evaluation.effectbench import (
    SCORING,
    EvalRow,
    Method,
    TestSource,
    adapter_file,
    by_whole_photograph,
    eval_rows,
    standard_methods,
)
from pipeline.evaluation.evidence import cells_of
from pipeline.evaluation.report import ImageScore
from pipeline.miniature.pictures import to_image
from pipeline.models.fingerprint import fingerprint
from pipeline.models.local import absolute
from pipeline.places import Places
from pipeline.problems import InputError, Problem
from pipeline.prompting import compose
from pipeline.stages.contenders import everyone, stacked
from pipeline.stages.encode import Encodings, encode, missing, sha
from pipeline.stages.evaluate import EvaluationPlan, evaluate, families_of, model_key
from pipeline.stages.evidence.work import Bench, Evidence, folder_of
from pipeline.storage import content_key, write_atomic
from pipeline.tensor_store import TensorStore, stored_keys

if TYPE_CHECKING:
    from actors.composition_tasks import CompositionJob

IN_TURN, STACKED, SEQUENTIAL = "student in turn", "stacked teachers", "sequential teachers"


def composition_report(work: Bench) -> None:
    """Students of each seed against stacked and sequential teachers, on pairs of effects."""
    recipe, bank = work.recipe, work.bank
    pairs = pairs_to_compose(work)
    prepared = work.prepared(recipe, bank, "main")
    desk = _Desk(work, recipe, pairs, prepared)
    held = [(mine, theirs) for mine in ("student", IN_TURN) for theirs in (STACKED, SEQUENTIAL)]
    evidence = Evidence("composition", [], {}, {}, pairs=held)
    evidence.extra = {"pairs": [asdict(pair) for pair in pairs]}
    for rows in (desk.stacked(), desk.sequential()):
        _add(evidence, desk, rows, None)
    for seed in recipe.bench.seeds:
        seeded = vary(recipe, {"distill.seed": seed})
        lora = work.train(f"student-seed{seed}", seeded, bank, prepared.manifest)
        _add(evidence, desk, desk.student(lora), seed)
        _add(evidence, desk, desk.student_in_turn(lora), seed)


def pairs_to_compose(work: Bench) -> list[Composition]:
    """The pairs of effects that are asked for.

    Raises:
        InputError: nobody knows the truth, or the bank has no two families to pair.
    """
    recipe, bank = work.recipe, work.bank
    if recipe.evaluate.truth != "miniature":
        what = "composition needs the true outcome of two effects, which is not known"
        remedy = "name the other reports: --report main --report scale"
        raise InputError([Problem("recipe", "evaluate.truth", "pairs", what, remedy)])
    pairs = choose_pairs(families_of(recipe, bank), recipe.bench.sizes.pairs)
    if not pairs:
        what, remedy = "no pair of families (layout, tone, textured)", "add effects of two of them"
        raise InputError([Problem(str(bank.folder), "effects", None, what, remedy)])
    return pairs


def _add(evidence: Evidence, desk: "_Desk", rows: list[EvalRow], seed: int | None) -> None:
    evidence.costs |= desk.costs
    evidence.cells += cells_of(desk.judged(rows), seed)
    evidence.write(desk.work)


@dataclass
class _Desk:
    """The pairs with the photographs that they are asked on; makes pictures and scores."""

    work: Bench
    recipe: Recipe
    pairs: list[Composition]
    prepared: Prepared

    def __post_init__(self) -> None:
        self.places = Places(self.work.root)
        self.costs: dict[str, dict[str, float]] = {}
        self.names = [pair.name for pair in self.pairs]
        self.test = self.prepared.collection.test[: self.recipe.evaluate.photographs]
        self.words = {p.effect: p for p in self.prepared.prompts}
        self.asked = self._ask()
        self.adapters = {e.name: Path(e.adapter) for e in self.prepared.manifest.effects}

    def student(self, lora: Path) -> list[EvalRow]:
        """One LoRA, one prompt, the student's few steps."""
        method = replace(self._student(lora), adapters=everyone(self.names, lora))
        return self._at_once(method, [lora])

    def student_in_turn(self, lora: Path) -> list[EvalRow]:
        """One LoRA, the second effect on its own picture of the first: twice the few steps."""
        adapters = dict.fromkeys(self.adapters, adapter_file(lora))
        return self._one_by_one(self._student(lora), IN_TURN, adapters, [lora])

    def stacked(self) -> list[EvalRow]:
        """Both LoRAs active at once, both prompts in one."""
        folder = folder_of(self.work)
        files = {
            pair.name: stacked([self.adapters[pair.first], self.adapters[pair.second]], folder)
            for pair in self.pairs
        }
        adapters = {name: adapter_file(file) for name, file in files.items()}
        method = replace(self._teacher(), name=STACKED, adapters=adapters)
        return self._at_once(method, self._used())

    def sequential(self) -> list[EvalRow]:
        """The second teacher on the first one's picture."""
        adapters = {effect: adapter_file(path) for effect, path in self.adapters.items()}
        return self._one_by_one(self._teacher(), SEQUENTIAL, adapters, self._used())

    def _at_once(self, method: Method, files: Sequence[Path]) -> list[EvalRow]:
        """A picture a pair, under the prompt that names both effects."""
        model = model_key(self.recipe)
        rows = eval_rows([method], self.names, self.asked, self.recipe.seed, model)
        self.costs[method.name] = self._made(method, rows, files)
        return rows

    def _one_by_one(
        self,
        method: Method,
        name: str,
        adapters: Mapping[str, tuple[str, str]],
        files: Sequence[Path],
    ) -> list[EvalRow]:
        """The second effect on the method's own picture of the first."""
        model, seed = model_key(self.recipe), self.recipe.seed
        firsts = list(dict.fromkeys(pair.first for pair in self.pairs))
        rows = eval_rows([method], firsts, self.test, seed, model)
        once = self._made(method, rows, [])
        between = self._between(rows)
        made: list[EvalRow] = []
        again = replace(method, name=name)
        for pair in self.pairs:
            one = replace(again, adapters={pair.name: adapters[pair.second]})
            made += eval_rows([one], [pair.name], between[pair.name], seed, model)
        cost = self._made(again, made, files)
        for counted in ("nfe", "ms_per_image"):
            cost[counted] += once[counted]
        self.costs[name] = cost
        return made

    def judged(self, rows: Sequence[EvalRow]) -> list[ImageScore]:
        """The scores of pictures, a cached file a photograph."""
        from actors.composition_tasks import CompositionJob

        folder = self.places.evaluation / "compositions"
        autoencoder = f"{fingerprint(self.recipe.model.path, 'vae')}-{self.recipe.model.dtype}"
        content = [SCORING, autoencoder, [asdict(pair) for pair in self.pairs]]
        jobs: dict[Path, CompositionJob] = {}
        for source in self.test:
            mine = tuple(
                (r["method"], r["effect"], r["key"])
                for r in rows
                if r["photograph"] == source.photograph
            )
            job = CompositionJob(source.photograph, source.path, mine)
            key = content_key("composition", content, sha(Path(source.path)), mine)
            jobs[folder / f"{key}.json"] = job
        todo = [(path, job) for path, job in jobs.items() if not mirror.fetch(path)]
        if todo:
            self._judge(todo)
        scores = [ImageScore(**one) for path in jobs for one in json.loads(path.read_bytes())]
        return by_whole_photograph(scores)

    def _judge(self, todo: "list[tuple[Path, CompositionJob]]") -> None:
        self.work.ray()
        import ray

        from actors.composition_tasks import judge_compositions
        from actors.session import device_of

        pool = self.recipe.cluster.encoder_pool
        task = judge_compositions.options(
            num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, resources=pool.resources
        )
        shares = [todo[i :: pool.max] for i in range(min(pool.max, len(todo)))]
        pending = [
            task.remote(
                [job for _, job in share],
                {pair.name: pair for pair in self.pairs},
                absolute(self.recipe.model.path),
                device_of(self.recipe.model, pool.num_gpus),
                self.recipe.model.dtype,
                pool.threads,
                str((self.places.evaluation / "pictures").resolve()),
            )
            for share in shares
        ]
        for share, scores in zip(shares, ray.get(pending), strict=True):
            for path, job in share:
                mine = [asdict(s) for s in scores if s.photograph == job.photograph]
                write_atomic(path, json.dumps(mine).encode())

    def _student(self, lora: Path) -> Method:
        student = standard_methods(self.recipe, self.prepared.manifest, adapter_file(lora))[2]
        return replace(student, draws=1)

    def _teacher(self) -> Method:
        teacher = standard_methods(self.recipe, self.prepared.manifest, ("", ""))[1]
        return replace(teacher, draws=1)

    def _used(self) -> list[Path]:
        """The teachers that the pairs need."""
        effects = dict.fromkeys(e for pair in self.pairs for e in (pair.first, pair.second))
        return [self.adapters[effect] for effect in effects]

    def _made(self, method: Method, rows: list[EvalRow], files: Sequence[Path]) -> dict[str, float]:
        """Make the pictures of rows that are missing; returns what the method costs."""
        pictures, scores = self.places.evaluation / "pictures", self.places.evaluation / "scores"
        stored = stored_keys(pictures)
        unsampled = [row for row in rows if row["key"] not in stored]
        if unsampled:
            self.work.ray()
        plan = EvaluationPlan(rows, [], {}, pictures, scores, unsampled, [])
        cost = evaluate(self.recipe, plan, self.places.stores).costs[method.name]
        size = float(sum(path.stat().st_size for path in files))
        return vars(cost) | {"bytes": size}

    def _ask(self) -> list[TestSource]:
        """The photographs with "A, then B" for prompts, encoded."""
        encodings, asked = Encodings(self.recipe.model), []
        for source in self.test:
            seen = [Path(source.path)]
            keys: dict[str, dict[str, str]] = {"student": {}, "teacher": {}}
            for pair in self.pairs:
                first, second = self.words[pair.first], self.words[pair.second]
                student = compose(first.student, second.student)
                teacher = compose(first.teacher, second.teacher)
                keys["student"][pair.name] = encodings.prompt(student, seen)
                keys["teacher"][pair.name] = encodings.prompt(teacher, seen)
            asked.append(
                replace(source, teacher_prompts=keys["teacher"], student_prompts=keys["student"])
            )
        self._encoded(encodings)
        return asked

    def _between(self, rows: Sequence[EvalRow]) -> dict[str, list[TestSource]]:
        """By pair, the pictures of its first effect as photographs to edit again, encoded."""
        folder = self.places.evaluation / "between"
        store = TensorStore([self.places.evaluation / "pictures"])
        keys = {(r["effect"], r["photograph"]): r["key"] for r in rows}
        encodings = Encodings(self.recipe.model)
        found: dict[str, list[TestSource]] = {}
        for pair in self.pairs:
            for source in self.test:
                key = keys[pair.first, source.photograph]
                path = folder / f"{key}.png"
                if not mirror.fetch(path):
                    picture = to_image(np.asarray(store.get(key).numpy()))
                    write_atomic(path, picture.save)
                words = self.words[pair.second]
                bare = encodings.sample((path,), words.student, words.teacher)
                found.setdefault(pair.name, []).append(
                    replace(
                        source,
                        path=str(path),
                        source=bare.sources[0],
                        null_prompt=bare.null_prompt,
                        teacher_prompts={pair.name: bare.teacher_prompt},
                        student_prompts={pair.name: bare.student_prompt},
                        shapes=bare.shapes,
                    )
                )
        self._encoded(encodings)
        return found

    def _encoded(self, encodings: Encodings) -> None:
        todo = missing(encodings.jobs.values(), stored_keys(self.places.encodings))
        if todo:
            self.work.ray()
            encode(self.recipe, todo, self.places.encodings)
