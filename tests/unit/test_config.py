"""The recipe: defaults, overrides, one report of all problems, and what its hash is over."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Recipe, inspect_recipe, load_recipe, recipe_hash, vary
from pipeline.problems import InputError, Problem
from pipeline.yaml_file import parse_yaml

MINIMAL = {"name": "small", "bank": "bank", "output": "runs/small"}
in_one_folder = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_defaults_are_the_published_settings(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.student.steps == 8
    assert recipe.student.shift == 3.0
    assert recipe.student.lora.rank == recipe.student.lora.alpha == 128
    assert len(recipe.student.lora.modules) == 14
    assert (recipe.distill.p_switch, recipe.distill.fake_updates) == (0.5, 5)
    assert (recipe.distill.tau_min, recipe.distill.tau_max) == (0.5, 0.75)
    assert (recipe.distill.rounds, recipe.distill.guidance) == (5000, 5.0)
    assert (recipe.distill.schedule, recipe.distill.ema) == ("constant", 0.0)


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


@in_one_folder
@given(
    rounds=st.integers(1, 10**6),
    rate=st.floats(1e-9, 1, exclude_min=True),
    p_switch=st.floats(0, 1),
    output=st.from_regex(r"[A-Za-z][A-Za-z0-9_/]{0,20}", fullmatch=True),
    effects=st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), min_size=1),
)
def test_overrides_round_trip(
    tmp_path: Path, rounds: int, rate: float, p_switch: float, output: str, effects: list[str]
) -> None:
    values = {
        "distill.rounds": rounds,
        "distill.learning_rate": rate,
        "distill.p_switch": p_switch,
        "output": output,
        "effects": effects,
    }
    overrides = [f"{key}={yaml.safe_dump(value).split('...')[0]}" for key, value in values.items()]
    recipe = load_recipe(write(tmp_path, MINIMAL), overrides)
    assert recipe.distill.rounds == rounds
    assert recipe.distill.learning_rate == rate
    assert recipe.distill.p_switch == p_switch
    assert recipe.output == output
    assert recipe.effects == tuple(effects)


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_as_python_writes_them_are_numbers(value: float) -> None:
    assert parse_yaml(repr(value)) == value
    assert parse_yaml(f"{value:e}") == float(f"{value:e}")


@in_one_folder
@given(text=st.text(max_size=60))
def test_any_text_gives_a_recipe_or_a_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    recipe, problems = inspect_recipe(path, ("name=small", text))
    assert isinstance(recipe, Recipe | None)
    assert problems


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("distill.rounds", "distill.rounds"),
        ("=3", ""),
        ("name.first=x", "name.first"),
        ("distill.rounds=[1", "distill.rounds"),
    ],
)
def test_a_wrong_override_is_reported(tmp_path: Path, override: str, field: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path, MINIMAL), (override,))
    assert [(p.file, p.field) for p in error.value.problems] == [("--set", field)]


def test_all_problems_come_in_one_report(tmp_path: Path) -> None:
    wrong = MINIMAL | {"seed": -1, "distill": {"lag": -1, "tau_min": 0.8}, "what": 1}
    path = write(tmp_path, wrong)
    with pytest.raises(InputError) as error:
        load_recipe(path, ("distill.p_switch=2", "broken"))
    fields = {p.field for p in error.value.problems}
    assert fields == {"seed", "distill.lag", "distill.p_switch", "distill", "what", "broken"}
    recipe, problems = inspect_recipe(path)
    assert recipe is not None
    assert recipe.distill.lag == 0
    assert len(problems) == 4


def test_a_section_that_lacks_a_field_is_reported_once(tmp_path: Path) -> None:
    endpoint = {"prompts": {"endpoint": {"url": "http://localhost/v1"}}, "seed": -1}
    recipe, problems = inspect_recipe(write(tmp_path, MINIMAL | endpoint))
    assert sorted(p.field for p in problems) == ["prompts.endpoint.model", "seed"]
    assert recipe is not None
    assert recipe.prompts.endpoint is None


@pytest.mark.parametrize("decay", ["distill.ema=1", "teach.ema=1", "distill.betas=[0.9, 1.0]"])
def test_an_average_that_never_moves_is_refused(tmp_path: Path, decay: str) -> None:
    with pytest.raises(InputError, match="less than 1"):
        load_recipe(write(tmp_path, MINIMAL), (decay,))


def test_a_change_below_what_is_off_begins_the_section(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.distill.warm_start is None
    begun = vary(recipe, {"distill.warm_start.steps": 7}).distill.warm_start
    assert begun is not None
    assert begun.steps == 7
    assert load_recipe(write(tmp_path, MINIMAL), ("distill.warm_start.steps=7",)) == vary(
        recipe, {"distill.warm_start.steps": 7}
    )
    with pytest.raises(InputError, match="seed is not a section"):
        vary(recipe, {"seed.first": 1})


def test_a_bench_says_at_once_what_a_report_would_trip_over(tmp_path: Path) -> None:
    wrong = {"ablation_set": {"distill.round": 3}, "scale_set": {"distill.p_switch": 2.0}}
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path, MINIMAL | {"bench": wrong}))
    assert [p.field for p in error.value.problems] == [
        "bench.ablation_set: distill.round",
        "bench.scale_set: distill.p_switch",
    ]


def test_a_wrong_tau_is_not_also_crossed(tmp_path: Path) -> None:
    _, problems = inspect_recipe(
        write(tmp_path, MINIMAL | {"distill": {"tau_min": 0.8, "tau_max": 7.0}})
    )
    assert [p.field for p in problems] == ["distill.tau_max"]


def test_anchors_that_let_go_want_a_student_that_knows_something(tmp_path: Path) -> None:
    scale = {"ta_fm_scale": 0.5}
    with pytest.raises(InputError, match=r"ta_fm_scale 0\.5.*distill\.warm_start"):
        load_recipe(write(tmp_path, MINIMAL | {"distill": scale}))
    load_recipe(write(tmp_path, MINIMAL | {"distill": scale | {"warm_start": {}}}))
    load_recipe(write(tmp_path, MINIMAL | {"distill": scale, "grow": {"start_from": "runs/a"}}))


def test_a_plain_loss_leaves_what_was_trained_before_its_name(tmp_path: Path) -> None:
    plain, tempered = (
        load_recipe(write(tmp_path, MINIMAL | {"teach": {"loss_power": power}})).teach.content()
        for power in (1.0, 0.5)
    )
    assert tempered == plain | {"loss_power": 0.5} and "steps" in plain and "lora" not in plain
    for power in (0.0, 1.5):
        with pytest.raises(InputError, match=r"teach\.loss_power"):
            load_recipe(write(tmp_path, MINIMAL | {"teach": {"loss_power": power}}))


def test_hash_is_over_what_decides_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    base = recipe_hash(load_recipe(path))
    elsewhere = load_recipe(path, ("output=other", "cluster.teacher_pool.max=3", "name=b"))
    assert recipe_hash(elsewhere) == base
    assert recipe_hash(load_recipe(path, ("seed=1",))) != base
    assert recipe_hash(load_recipe(path, ("distill.ema=0.9",))) != base
    assert recipe_hash(load_recipe(path, ("distill.seed=0",))) == base, "the recipe's own seed"
    assert recipe_hash(load_recipe(path, ("distill.seed=1",))) != base


def test_custom_resources_are_named_amounts(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, MINIMAL), ("cluster.teacher_pool.resources={teacher: 1, fast-disk: 0.5}",)
    )
    assert recipe.cluster.teacher_pool.resources == {"teacher": 1.0, "fast-disk": 0.5}
    assert recipe.cluster.student_group.resources == {}


@pytest.mark.parametrize("resources", ["{GPU: 1}", "{teacher: 0}", "{2nd: 1}", "[teacher]"])
def test_wrong_custom_resources_are_reported(tmp_path: Path, resources: str) -> None:
    override = f"cluster.student_group.resources={resources}"
    _, problems = inspect_recipe(write(tmp_path, MINIMAL), (override,))
    assert [p.field for p in problems if p.field.startswith("cluster.student_group.resources")]


@pytest.mark.parametrize("workers", ["2", "{min: 1, max: 2}"])
def test_several_workers_want_a_gpu_each(tmp_path: Path, workers: str) -> None:
    path, group = write(tmp_path, MINIMAL), "cluster.student_group"
    _, problems = inspect_recipe(path, (f"{group}.workers={workers}", f"{group}.num_gpus=0.5"))
    assert any(p.field.startswith(group) and "NCCL" in str(p) for p in problems)
    for gpus in (f"{group}.num_gpus=1", f"{group}.num_gpus=0"):
        assert inspect_recipe(path, (f"{group}.workers={workers}", gpus))[1] == []
    one = (f"{group}.workers=1", f"{group}.num_gpus=0.5")
    assert inspect_recipe(path, one)[1] == []


def test_a_problem_shows_little_of_a_large_value() -> None:
    problem = Problem("recipe.yaml", "name", "x" * 10_000, "too long", "shorten it")
    assert str(problem).startswith("recipe.yaml: name: too long (found 'xxx")
    assert len(str(problem)) < 200
