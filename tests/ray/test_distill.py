"""Ray adds nothing to the numbers: actors, restarts and resumes leave the student's bits alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.rollout_worker import rollout_worker
from actors.session import ray_session
from actors.student_worker import student_trainer
from pipeline.bank import load_bank
from pipeline.config import Recipe
from pipeline.controller import run
from pipeline.distill.single_process import distill_in_one_process
from pipeline.distill.start import start_weights
from pipeline.distill.update import FAKE, STUDENT
from pipeline.models.lora_formats import read_lora
from pipeline.places import Places
from pipeline.plan import round_slots
from pipeline.prompting import make_prompts
from pipeline.stages.distill import History, arguments_of
from pipeline.stages.encode import collect
from pipeline.stages.student import run_key_of, student_file, student_weights
from pipeline.stages.targets import plan_targets
from pipeline.stages.warm_start import warm_start
from pipeline.storage import sha256_file
from pipeline.types import Manifest
from tests.tiny_run import recipe_in, share_caches, write_tiny_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bank(tmp_path_factory.mktemp("bank"))


def manifest_of(recipe: Recipe) -> Manifest:
    loaded = load_bank(recipe.bank)
    prompts = make_prompts(loaded.effects, recipe.prompts, recipe.seed)
    collection, _ = collect(recipe, loaded, prompts)
    return plan_targets(recipe, collection, Places(Path(recipe.output)).teachers)[0]


def distilled(recipe: Recipe) -> Path:
    """Distil (in the test session's Ray) and return the student's file."""
    run(recipe, load_bank(recipe.bank), until="distill")
    return student_file(Places(Path(recipe.output)), run_key_of(recipe, manifest_of(recipe)))


def test_three_teacher_actors_and_one_process_give_the_same_student(bank: Path) -> None:
    shas = {}
    for output, actors in (("one", 1), ("three", 3)):
        share_caches(bank, output)
        # Three that hold a share of a GPU (of which the machine may have none) and do not use it.
        size = f"min: {actors}, max: {actors}, num_cpus: 0.5, num_gpus: {0.1 * (actors > 1)}"
        pool = f"cluster.teacher_pool={{{size}}}"
        recipe = recipe_in(bank, output, pool, "model.device=cpu")
        with ray_session(recipe.cluster):
            shas[output] = sha256_file(distilled(recipe))
    assert shas["one"] == shas["three"]

    recipe = recipe_in(bank, "one", "model.device=cpu")
    student, teachers = arguments_of(
        recipe,
        manifest_of(recipe),
        [bank / "first/cache/encodings", bank / "first/cache/targets"],
        "x",
    )
    trainer, worker = student_trainer(student), rollout_worker(teachers)
    distill_in_one_process(trainer, worker, range(recipe.distill.rounds))
    assert len({round_slots(student.plan, r)[0].bucket for r in range(recipe.distill.rounds)}) > 1
    assert trainer.average is not None
    with_ray = student_weights(
        student_file(Places(bank / "one"), run_key_of(recipe, manifest_of(recipe)))
    )
    assert all((with_ray[key] == value).all() for key, value in trainer.average.items())


def test_lag_is_exact_and_equals_the_reference(bank: Path) -> None:
    share_caches(bank, "lagged")
    recipe = recipe_in(bank, "lagged", lag=1)
    file = distilled(recipe)
    lags = [row["policy_lag"] for row in History(bank / "lagged" / "history.jsonl").load()]
    assert lags == [0, 1, 1, 1, 1, 1]
    student, teachers = arguments_of(
        recipe,
        manifest_of(recipe),
        [bank / "first/cache/encodings", bank / "first/cache/targets"],
        "x",
    )
    trainer, worker = student_trainer(student), rollout_worker(teachers)
    distill_in_one_process(trainer, worker, range(recipe.distill.rounds), lag=1)
    assert trainer.average is not None
    with_ray = student_weights(file)
    assert all((with_ray[key] == value).all() for key, value in trainer.average.items())


def test_a_warm_start_is_where_student_and_fake_score_begin(bank: Path) -> None:
    share_caches(bank, "warm")
    warm = {"steps": 3, "batch": 2, "learning_rate": 1e-2}
    recipe = recipe_in(bank, "warm", warm_start=warm, rounds=2)
    file, places = distilled(recipe), Places(bank / "warm")
    manifest = manifest_of(recipe)
    start = warm_start(recipe, manifest, places.starts, places.stores)
    assert start is not None
    student, teachers = arguments_of(recipe, manifest, places.stores, "x", start)
    trainer, worker = student_trainer(student), rollout_worker(teachers)
    weights = start_weights(read_lora(start).modules, 1.0)
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)
    for name in (STUDENT, FAKE):
        state = trainer.adapters.state(name)
        assert state.keys() == weights.keys()
        assert all((state[key] == value).all() for key, value in weights.items())
    distill_in_one_process(trainer, worker, range(recipe.distill.rounds))
    assert trainer.average is not None
    with_ray = student_weights(file)
    assert all((with_ray[key] == value).all() for key, value in trainer.average.items())


def test_two_workers_see_their_own_slots_and_agree_sharded_or_not(bank: Path) -> None:
    files = []
    for output, shard in (("pair", "false"), ("sharded", "true")):
        share_caches(bank, output)
        group = f"cluster.student_group={{workers: 2, shard: {shard}}}"
        recipe = recipe_in(bank, output, group, gradient_checkpointing=True)
        files.append(distilled(recipe))
        assert len(History(bank / output / "history.jsonl").load()) == recipe.distill.rounds
    whole, sharded = map(student_weights, files)
    assert whole.keys() == sharded.keys()
    assert all((sharded[key] - value).abs().max() < 1e-5 for key, value in whole.items())
    assert max(value.abs().max() for key, value in whole.items() if "lora_B" in key) > 1e-3


@pytest.mark.slow
def test_terminated_half_way_and_run_again_gives_the_same_student(bank: Path) -> None:
    """A real SIGTERM to a real driver process; the second run goes on from the checkpoint."""
    for output in ("whole", "cut"):
        share_caches(bank, output)
    whole = distilled(recipe_in(bank, "whole", rounds=60))
    recipe = recipe_in(bank, "cut", rounds=60)
    history = History(bank / "cut" / "history.jsonl")
    command = [sys.executable, "-m", "pipeline", "distill", str(bank / "cut.yaml")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(history.load()) < 6 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    done = len(history.load())
    file = student_file(Places(bank / "cut"), run_key_of(recipe, manifest_of(recipe)))
    assert first.returncode == 143, errors[-2000:]
    assert 6 <= done < 60
    assert not file.exists()
    subprocess.run(command, env=environment, check=True, timeout=200)
    assert sha256_file(file) == sha256_file(whole)
