"""A round costs the same at fifty effects as at five: the batch alone says what is computed."""

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from pipeline.config import LoraSettings
from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import content_hash, write_lora
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.tensor_store import TensorStore, write_part
from pipeline.types import EffectEntry, Manifest, Sample
from tests.unit.distill.halves import PLAN, SETTINGS
from tests.unit.tiny import seeded, tiny_lora

BASE = Path(__file__).parents[3] / "pipeline" / "miniature" / "base"
TOKENS, CHANNELS, WORDS, PROMPT = 64, 80, 16, 64
SHAPES = ((1, 8, 8), (1, 8, 8))
ROUNDS, WARM = 30, 3


def many_effects(
    folder: Path, editor: QwenImageEditor, effects: int
) -> tuple[TensorStore, Manifest]:
    """Effects of random pictures, each with a random teacher of rank 8, and general rows."""
    tensors = {"null": seeded((2, PROMPT), 0)}

    def sample(name: str, seed: int, taught: bool) -> Sample:
        tensors[f"{name} words"] = seeded((WORDS, PROMPT), seed)
        tensors[f"{name} source"] = seeded((TOKENS, CHANNELS), seed + 1)
        words, target = f"{name} words", f"{name} target" if taught else None
        if target is not None:
            tensors[target] = seeded((TOKENS, CHANNELS), seed + 2)
        return Sample((f"{name} source",), words, words, "null", target, SHAPES)

    entries = []
    for e in range(effects):
        path = folder / f"{e}.safetensors"
        lora = tiny_lora(editor, dict.fromkeys(LoraSettings(rank=8, alpha=8).modules, 8), {}, e)
        write_lora(path, lora, {})
        taught = sample(f"effect {e}", 10 * e, True)
        entries.append(EffectEntry(f"effect {e}", str(path), content_hash(path), 1.0, (taught,)))
    general = (sample("general", 10_000, False),)
    write_part(folder / "store", list(tensors.items()))
    return TensorStore([folder / "store"]), Manifest(tuple(entries), general)


def both_halves(folder: Path, effects: int) -> tuple[RolloutWorker, StudentTrainer]:
    """Rollout and update of the bench's shape, each with a base of its own."""
    plan = replace(
        PLAN,
        batch=16,
        p_switch=0.8,
        fake_updates=3,
        student_steps=4,
        ta_fm_batch=16,
        effect_weights=(1.0,) * effects,
        samples=(1,) * effects,
        general=1,
    )
    settings = replace(SETTINGS, rounds=ROUNDS)
    first, second = (
        load_editor(str(BASE), ["transformer"], "cpu", torch.float32, None) for _ in range(2)
    )
    assert isinstance(first, QwenImageEditor)
    modules = LoraSettings(rank=64, alpha=64).modules
    store, manifest = many_effects(folder, first, effects)
    adapters = Adapters(first.transformer)
    adapters.add(STUDENT, 64, 64.0, modules, seed=0)
    teachers = TeacherCache(adapters, 64)
    worker = RolloutWorker(first, adapters, teachers, store, manifest, plan, 1.0)
    # All are resident from the first round on: what is timed is the round, not their loading.
    teachers.ensure({e.adapter_hash: Path(e.adapter) for e in manifest.effects})
    adapters = Adapters(second.transformer)
    for name in (STUDENT, FAKE):
        adapters.add(name, 64, 64.0, modules, seed=0)
    trainer = StudentTrainer(
        second, adapters, store, manifest, plan, settings, lambda gradients: None
    )
    return worker, trainer


@pytest.mark.slow
def test_a_round_at_fifty_effects_costs_what_it_costs_at_five(tmp_path: Path) -> None:
    """CPU time, which other work on the machine disturbs least; the two take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    halves = {n: both_halves(tmp_path / str(n), n) for n in (5, 50)}
    seconds: dict[int, list[float]] = {n: [] for n in halves}
    try:
        for r in range(ROUNDS):
            for n, (worker, trainer) in halves.items():
                worker.load_policy(trainer.policy())
                start = time.process_time()
                trainer.update(worker.roll(r, 0, r), r, 0)
                seconds[n].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    five, fifty = (median(seconds[n][WARM:]) for n in (5, 50))
    print(f"a round at 5 effects {five:.3f} s, at 50 {fifty:.3f} s: {fifty / five:.3f}")
    assert fifty <= 1.05 * five
