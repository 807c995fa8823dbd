"""What all reports of a bench share: who judges, what a method ships."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import vary
from pipeline.evaluation.effectbench import Method, adapter_file, eval_rows
from pipeline.evaluation.evidence import Cell
from pipeline.places import Places
from pipeline.problems import InputError
from pipeline.stages.bench import bench
from pipeline.stages.contenders import cascade, stacked
from pipeline.stages.evidence.growth import costs_by_group
from pipeline.stages.evidence.work import Bench, Evidence, teachers_to_judge_by
from pipeline.types import Manifest
from tests.evaluation_case import EFFECTS, Case, make_case
from tests.no_ray import no_ray
from tests.tiny_model import write_tiny_lora


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = make_case(tmp_path, photographs=1)
    encodings = Places.of(case.recipe.output).encodings
    encodings.parent.mkdir(parents=True)
    case.store.rename(encodings)
    with no_ray():
        yield case


def bench_of(case: Case) -> Bench:
    return Bench(case.recipe, case.bank, lambda: None)


def effects(
    case: Case, methods: Sequence[Method], manifest: Manifest | None = None
) -> tuple[dict[str, list[Cell]], dict[str, dict[str, float]]]:
    """Cells by method, and costs."""
    cells, costs = bench_of(case).effects(
        case.recipe, case.bank, manifest or case.manifest, case.test, methods, 0
    )
    return {m: [c for c in cells if c.method == m] for m in costs}, costs


def test_without_truth_teachers_judge_a_plan_that_they_are_no_part_of(case: Case) -> None:
    _, teacher, student = case.methods()
    alone, costs = effects(case, [student])
    assert list(alone) == list(costs) == ["student"] and len(alone["student"]) == len(EFFECTS)
    assert costs["student"]["nfe"] == 4
    both, _ = effects(case, [teacher, student])
    assert both["student"] == alone["student"] and len(both["teacher"]) == len(EFFECTS)
    # By another name teachers are held against their other draws, as under their own.
    renamed, _ = effects(case, [replace(teacher, name="teacher @ 2")])
    assert [c.scores for c in renamed["teacher @ 2"]] == [c.scores for c in both["teacher"]]


def test_scores_without_truth_are_kept_for_these_teachers_alone(case: Case, tmp_path: Path) -> None:
    student = case.methods()[2]
    kept = Places.of(case.recipe.output).evaluation / "scores"
    first, _ = effects(case, [student])
    assert len(list(kept.glob("*.json"))) == 1
    assert effects(case, [student])[0] == first and len(list(kept.glob("*.json"))) == 1
    path, digest = adapter_file(write_tiny_lora(tmp_path / "other.safetensors", 7))
    entries = [replace(e, adapter=path, adapter_hash=digest) for e in case.manifest.effects]
    second, _ = effects(case, [student], replace(case.manifest, effects=tuple(entries)))
    assert len(list(kept.glob("*.json"))) == 2 and second != first


def test_known_truth_needs_no_teachers(case: Case) -> None:
    known = vary(case.recipe, {"evaluate.truth": "miniature"})
    assert teachers_to_judge_by(known, case.manifest, case.methods()[2:]) == []


def test_a_method_ships_each_file_once_whatever_the_sampler_needs(
    case: Case, tmp_path: Path
) -> None:
    _, teacher, student = case.methods()
    fast = write_tiny_lora(tmp_path / "fast.safetensors", 8, rank=4)
    bank = sum(Path(e.adapter).stat().st_size for e in case.manifest.effects)
    assert teacher.shipped_bytes == bank
    assert student.shipped_bytes == case.student.stat().st_size
    method = cascade(case.recipe, case.manifest, fast, tmp_path / "stacked")
    halved = stacked([fast], tmp_path / "stacked").stat().st_size
    assert halved < fast.stat().st_size and method.shipped_bytes == bank + halved
    # What is shipped is no part of a picture's name.
    rows = [eval_rows([m], list(EFFECTS), case.test, 0, "m") for m in (method, _bare(method))]
    assert rows[0] == rows[1]
    # Half of a bank behind a router, all of which has to lie there.
    one = dict.fromkeys(EFFECTS, teacher.adapters["snow"])
    routed = replace(
        teacher, adapters=one, ships=tuple(path for path, _ in teacher.adapters.values())
    )
    assert routed.shipped_bytes == bank > _bare(routed).shipped_bytes
    _, costs = effects(case, [_bare(student), method])
    assert costs["cascade"]["bytes"] == method.shipped_bytes


def _bare(method: Method) -> Method:
    return replace(method, ships=())


def test_teachers_of_new_effects_are_not_counted_with_the_old_ones(case: Case) -> None:
    _, teacher, student = case.methods()
    sizes = {e.name: Path(e.adapter).stat().st_size for e in case.manifest.effects}
    found = costs_by_group(teacher, {"nfe": 40.0, "bytes": 1.0}, "teacher", ["snow"])
    assert found == {
        "teacher, old effects": {"nfe": 40.0, "bytes": sizes["sepia"]},
        "teacher, new effects": {"nfe": 40.0, "bytes": sizes["snow"]},
    }
    one = costs_by_group(student, {}, "student after", ["snow"])
    assert {cost["bytes"] for cost in one.values()} == {case.student.stat().st_size}


def test_a_routed_teachers_pictures_are_called_alike_whichever_prompts_they_travel_in(
    case: Case,
) -> None:
    """Bench caches stay valid, and the teachers' own prompts are there to be judged by."""
    (source,) = case.test
    taken = dict(zip(EFFECTS, reversed(source.teacher_prompts.values()), strict=True))
    teacher = replace(case.methods()[1], name="teacher behind a router")
    before = [replace(source, teacher_prompts=taken)]
    now = [replace(source, student_prompts=taken)]
    assert eval_rows([teacher], list(EFFECTS), before, 0, "m") == eval_rows(
        [replace(teacher, prompts="student")], list(EFFECTS), now, 0, "m"
    )


def test_what_reports_cannot_do_without_truth_is_said_before_any_training(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "prepared", lambda *_: pytest.fail("nothing may be made"))
    monkeypatch.setattr(Bench, "train", lambda *_: pytest.fail("nothing may be trained"))
    with pytest.raises(InputError) as raised:
        bench(case.recipe, case.bank, ["main", "growth", "composition"])
    found = [(p.field, p.value) for p in raised.value.problems]
    assert found == [("bench.growth.bank", None), ("evaluate.truth", "pairs")]
    assert all(p.remedy for p in raised.value.problems)


def test_a_report_records_the_pictures_that_there_were(case: Case) -> None:
    """Not those that the recipe would have liked."""
    work, most = bench_of(case), case.recipe.evaluate.photographs
    for there, counted in ((2, 2), (most + 5, most)):
        photographs = tuple(Path(f"{i}.png") for i in range(there))
        work.bank = replace(case.bank, test=photographs)
        Evidence("main", [], {}, {}).write(work)
        report = json.loads((work.root / "bench" / "main.json").read_text())
        assert report["photographs"] == counted
