"""Recipes that are wrong."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.models.lora_formats import write_lora
from tests.unit.malformed.case import Case
from tests.unit.malformed.good_bank import Work, lora

RANGE = "stated type and range"


def _set(key: str, value: Any) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        section = work.recipe
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value

    return spoil


def _remove(key: str) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        del work.recipe[key]

    return spoil


def _text(text: str | bytes) -> Callable[[Work], None]:
    """The recipe's whole text; with {good} for the good recipe."""

    def spoil(work: Work) -> None:
        def save() -> None:
            good_save()
            good = work.recipe_file.read_bytes()
            data = text.encode() if isinstance(text, str) else text
            work.recipe_file.write_bytes(data.replace(b"{good}", good))

        good_save = work.save
        work.save = save  # type: ignore[method-assign]

    return spoil


def _crossed_taus(work: Work) -> None:
    work.recipe["distill"] = {"tau_min": 0.8, "tau_max": 0.6}


def _no_step_below_tau_max(work: Work) -> None:
    work.recipe["student"] = {"steps": 2, "shift": 10.0}


def _start_from(inner: str) -> Callable[[Work], None]:
    def spoil(work: Work) -> None:
        start = f"{work.recipe['output']}/{inner}"
        if not start.endswith(".safetensors"):
            start += "/pytorch_lora_weights.safetensors"
        write_lora(Path(os.path.normpath(start)), lora(), {})
        work.recipe["grow"] = {"start_from": f"{work.recipe['output']}/{inner}"}

    return spoil


def _pool(work: Work) -> None:
    work.recipe["cluster"] = {"teacher_pool": {"min": 3, "max": 2}}


def _group(work: Work) -> None:
    work.recipe["cluster"] = {"student_group": {"workers": {"min": 3, "max": 2}}}


def _no_recipe(work: Work) -> None:
    work.save()
    work.recipe_file.unlink()
    work.save = lambda: None  # type: ignore[method-assign]


def _output_is_file(work: Work) -> None:
    work.file("taken").write_text("")
    work.recipe["output"] = str(work.file("taken"))


def _field(name: str, key: str, value: Any, remedy: str = RANGE) -> Case:
    return Case(name, _set(key, value), "recipe.yaml", key, remedy)


def _whole(name: str, text: str | bytes, says: str) -> Case:
    return Case(name, _text(text), "recipe.yaml", says, "give a YAML mapping")


RECIPE_CASES = (
    _field("unknown_key", "distil", {}, "check its spelling"),
    _field("unknown_key_in_section", "distill.guidence", 5.0, "check its spelling"),
    _field("unknown_key_deep", "distill.losses.gan", 1.0, "check its spelling"),
    _field("rounds_is_text", "distill.rounds", "many"),
    _field("rounds_is_float", "distill.rounds", 10.5),
    _field("rounds_is_bool", "distill.rounds", True),
    _field("rate_is_list", "distill.learning_rate", [1e-4]),
    _field("rate_is_nan", "distill.learning_rate", float("nan")),
    _field("rate_is_zero", "distill.learning_rate", 0.0),
    _field("clip_is_infinite", "distill.grad_clip", float("inf")),
    _field("p_switch_above_1", "distill.p_switch", 1.5),
    _field("p_switch_below_0", "distill.p_switch", -0.1),
    _field("steps_0", "student.steps", 0),
    _field("no_fake_updates", "distill.fake_updates", 0),
    _field("guidance_below_1", "distill.guidance", 0.5),
    _field("negative_lag", "distill.lag", -1),
    _field("ema_of_1", "distill.ema", 1.0),
    _field("rank_0", "student.lora.rank", 0),
    _field("no_modules", "student.lora.modules", []),
    _field("negative_loss_weight", "distill.losses.ta_fm", -1.0),
    _field("unknown_dtype", "model.dtype", "int4"),
    _field("unknown_schedule", "distill.schedule", "linear"),
    _field("section_is_a_number", "distill", 3),
    _field("section_is_null", "distill", None),
    _field("seed_too_large", "seed", 2**31),
    _field("run_name_is_a_path", "name", "../elsewhere", "stated form"),
    _field("output_with_nul", "output", "runs/\0", "stated form"),
    _field("no_effects", "effects", []),
    Case("no_name", _remove("name"), "recipe.yaml", "name", "add it"),
    Case("no_bank", _remove("bank"), "recipe.yaml", "bank", "add it"),
    Case("taus_crossed", _crossed_taus, "recipe.yaml", "distill: tau_min", "change one of them"),
    Case(
        "no_step_below_tau_max",
        _no_step_below_tau_max,
        "recipe.yaml",
        "tau_max",
        "use more student.steps",
    ),
    Case("pool_min_above_max", _pool, "recipe.yaml", "cluster.teacher_pool", "change one"),
    Case(
        "group_min_above_max", _group, "recipe.yaml", "cluster.student_group.workers", "change one"
    ),
    _field("no_workers", "cluster.student_group.workers", 0),
    _field("workers_are_text", "cluster.student_group.workers", "1 to 4"),
    _field("workers_are_a_list", "cluster.student_group.workers", [1, 4]),
    _field("least_workers_0", "cluster.student_group.workers.min", 0),
    _field("most_workers_is_float", "cluster.student_group.workers.max", 4.0),
    _field("resized_all_the_time", "cluster.student_group.workers.resize_seconds", 0),
    _field("unknown_range", "cluster.student_group.workers.most", 4, "check its spelling"),
    Case(
        "module_of_no_block",
        _set("student.lora.modules", ["attn.to_z"]),
        "recipe.yaml",
        "student.lora.modules.0",
        "choose from",
    ),
    Case("no_recipe_file", _no_recipe, "recipe.yaml", "no such file", "give a YAML mapping"),
    _whole("recipe_is_a_list", "- name: small\n", "not a mapping"),
    _whole("recipe_is_empty", "", "not a mapping"),
    _whole("recipe_is_binary", b"\xff\xfe\x00\x01", "not UTF-8"),
    _whole("recipe_is_no_yaml", "name: [small\n", "not YAML"),
    _whole("recipe_key_twice", "{good}\nname: other\n", "'name' is given twice"),
    _whole("recipe_alias", "a: &a [1]\nb: [*a, *a]\n", "aliases are not allowed"),
    _whole("recipe_too_deep", "a: " + "[" * 5000, "not YAML"),
    _whole("recipe_python_tag", "name: !!python/object/apply:os.getcwd []\n", "not YAML"),
    _whole("recipe_no_date", "name: 2024-13-45\n", "not YAML"),
    Case("output_is_a_file", _output_is_file, "recipe.yaml", "output", "name a new folder"),
    *(
        Case(f"start_is_{name}", _start_from(inner), "recipe.yaml", "grow.start_from", "another")
        for name, inner in (
            ("own_export", "student"),
            ("in_own_export", "student/comfyui/a.safetensors"),
            ("own_export_in_other_words", "other/../student/"),
        )
    ),
)
