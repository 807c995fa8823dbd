"""The bench's rows: forwards, a student update, a rollout, adapters changing places."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.distill.bench.flops import forward_flops, training_flops
from pipeline.distill.bench.measure import timed
from pipeline.distill.bench.model import (
    Size,
    plan_of,
    random_collection,
    random_conditions,
    random_editor,
    random_rollout,
    update_of,
)
from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.sampler import euler_sample, guided_velocity
from pipeline.distill.schedule import student_sigmas
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.models.adapters import BASE, Adapters, TeacherCache
from pipeline.models.editor import concatenate
from pipeline.models.qwen_image_edit import QwenImageEditor

EFFECTS = 2
# The layers of a block, by the endings of their names: the published recipe's.
MODULES = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"attn.add_{name}_proj" for name in ("q", "k", "v")),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
    "img_mod.1",
    "txt_mod.1",
)
Row = dict[str, Any]


@dataclass
class Bench:
    """What all rows share. ``peak``: the matrix products' FLOP/s of this machine."""

    size: Size
    device: torch.device
    peak: float
    repeats: int

    def editor(self, quantize: bool = False) -> QwenImageEditor:
        """A fresh base with checkpointing on, its blocks in float8 if asked for."""
        editor = random_editor(self.size, self.device)
        if quantize:
            from torchao.quantization import Float8WeightOnlyConfig, quantize_

            blocks = "transformer_blocks."
            quantize_(
                editor.transformer,
                Float8WeightOnlyConfig(),
                lambda module, name: isinstance(module, torch.nn.Linear) and blocks in name,
            )
        editor.transformer.enable_gradient_checkpointing()
        return editor

    def adapters(self, editor: QwenImageEditor, *names: str, masters: bool = True) -> Adapters:
        adapters = Adapters(editor.transformer)
        for seed, name in enumerate(names):
            rank = self.size.rank
            adapters.add(name, rank, float(rank), MODULES, seed, masters)
        return adapters

    def flops(self, editor: QwenImageEditor) -> tuple[int, int]:
        """Of one sample: a forward of the base, and of an adapter beside it."""
        pictures, words = 2 * self.size.tokens, self.size.words
        base = forward_flops(editor.transformer, pictures, words)
        return base, forward_flops(editor.transformer, pictures, words, self.size.rank) - base

    def time(self, work: Callable[[], object], warmup: int = 1) -> Row:
        timing = timed(work, self.device, self.repeats, warmup)
        return {"seconds": timing.seconds, "peak_gib": timing.peak_gib}


@dataclass
class Forwards:
    """Forwards, and forwards with backwards, of one model with a student adapter."""

    bench: Bench
    editor: QwenImageEditor
    adapters: Adapters

    @classmethod
    def of(cls, bench: Bench) -> "Forwards":
        editor = bench.editor()
        adapters = bench.adapters(editor, STUDENT)
        adapters.train_only(STUDENT)
        return cls(bench, editor, adapters)

    def work(self, batch: int, train: bool, adapter: str = BASE) -> Callable[[], None]:
        """One forward of the base under an adapter; or one of the student with its backward."""
        bench, device = self.bench, self.bench.device
        conditions = random_conditions(bench.size, batch, device)
        x = torch.randn(batch, bench.size.tokens, bench.size.config["in_channels"], device=device)
        t = torch.full((batch,), 0.7, device=device)

        def forward() -> None:
            with torch.no_grad(), self.adapters.use(adapter):
                self.editor.velocity(x, t, conditions)

        def both() -> None:
            with self.adapters.use(STUDENT):
                loss = self.editor.velocity(x, t, conditions).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
            for parameter in self.adapters.parameters(STUDENT):
                parameter.grad = None

        return both if train else forward

    def row(self, batch: int, train: bool, warmup: int = 1) -> Row:
        """Seconds, TFLOP/s and MFU; with checkpointing also what the hardware did."""
        bench = self.bench
        row: Row = {"batch": batch} | bench.time(self.work(batch, train), warmup)
        base, adapter = bench.flops(self.editor)
        useful = batch * (training_flops(base, adapter) if train else base)
        row |= {
            "tflops": useful / row["seconds"] / 1e12,
            "mfu": useful / row["seconds"] / bench.peak,
        }
        if train:
            done = useful + batch * (base + adapter)
            row["hardware_utilisation"] = done / row["seconds"] / bench.peak
        return row

    def published(self) -> Row:
        """A student update as the published code does it, on one model: 77 forwards' time.

        Five fake steps of eight student forwards and one update; then the student's seven and one
        update, the fake score's one, the teacher's two; target simulation's update, one and two;
        trajectory anchoring's update. Student and fake score run under their adapters, the
        teachers as if theirs were merged. The optimizers' time is left out.
        """
        forward, teacher = self.work(1, False, STUDENT), self.work(1, False)
        update = self.work(1, train=True)

        def a_round() -> None:
            for _ in range(5):
                for _ in range(8):
                    forward()
                update()
            for own, guided in ((7 + 1, 2), (1, 2), (0, 0)):
                for _ in range(own):
                    forward()
                for _ in range(guided):
                    teacher()
                update()

        for work in (forward, teacher, update):
            work()
        # Once: it repeats its own forwards enough, and they are warm.
        return replace(self.bench, repeats=1).time(a_round, warmup=0)


def student_update(bench: Bench, quantize: bool = False) -> Row:
    """The student process as it runs: fake updates, then BS + TS + TA-FM, optimizers included."""
    with tempfile.TemporaryDirectory() as folder:
        editor = bench.editor(quantize)
        store, manifest = random_collection(bench.size, editor.transformer, Path(folder), 1)
        plan = plan_of(bench.size, 1)
        trainer = StudentTrainer(
            editor,
            bench.adapters(editor, STUDENT, FAKE),
            store,
            manifest,
            plan,
            update_of(),
            lambda gradients: None,
        )
        rounds = iter(range(1000))
        metrics: list[dict[str, float]] = []

        def update() -> None:
            r = next(rounds)
            metrics.append(trainer.update(random_rollout(bench.size, plan, r), r, 0))

        row = bench.time(update)
    row["forwards"] = metrics[-1]["forwards_student_group"]
    row["finite"] = all(torch.isfinite(torch.tensor(list(m.values()))).all() for m in metrics)
    return row


class TeacherProcess:
    """A teacher actor's half: base, policy and teachers; two adapters on disk."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, editor = bench, bench.editor()
        self.adapters = bench.adapters(editor, STUDENT, masters=False)
        store, self.manifest = random_collection(bench.size, editor.transformer, folder, EFFECTS)
        self.worker = RolloutWorker(
            editor,
            self.adapters,
            TeacherCache(self.adapters, EFFECTS),
            store,
            self.manifest,
            plan_of(bench.size, EFFECTS),
            guidance=5.0,
        )

    def rollout(self) -> Row:
        """A round's rollout: the trajectory, target simulation, guided scores on both."""
        rounds = iter(range(1000))
        # Both teachers resident before the clock starts.
        self.worker.teachers.ensure(self._wanted(0, 1))
        row = self.bench.time(lambda: self.worker.roll(next(rounds), 0, 0))
        row["forwards"] = float(self.worker.roll(0, 0, 0).teacher_forwards[0])
        return row

    def target(self) -> Row:
        """A teacher's multi-step output with guidance: two steps timed, the rest the same."""
        bench, device = self.bench, self.bench.device
        key = self.manifest.effects[0].adapter_hash
        self.worker.teachers.ensure(self._wanted(0))
        conditions = random_conditions(bench.size, 1, device)
        both = concatenate(conditions, conditions)
        noise = torch.randn(1, bench.size.tokens, bench.size.config["in_channels"], device=device)

        def pair(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            v = self.worker.editor.velocity(torch.cat([x, x]), torch.cat([t, t]), both)
            cond, uncond = v.chunk(2)
            return cond, uncond

        sigmas = [*student_sigmas(2, 3.0), 0.0]

        @torch.no_grad()
        def two_steps() -> None:
            with self.adapters.use(key, key):
                euler_sample(guided_velocity(pair, 5.0), noise, sigmas)

        row = bench.time(two_steps)
        return row | {"seconds_a_target": row["seconds"] * bench.size.target_steps / 2}

    def switches(self) -> Row:
        """A teacher injected; brought from the host into a slot; chosen among the resident."""
        cache = TeacherCache(self.adapters, resident=1)
        injection = timed(
            lambda: cache.ensure(self._wanted(0)), self.bench.device, repeats=1, warmup=0
        )
        turn = [0]

        def switch() -> None:
            turn[0] = 1 - turn[0]
            cache.ensure(self._wanted(turn[0]))

        # The first two bring the files to the host.
        from_host = timed(switch, self.bench.device, repeats=5, warmup=2)
        assert cache.injections == 1
        keys = [effect.adapter_hash for effect in self.manifest.effects]

        def choose() -> None:
            for key in keys:
                with self.adapters.use(key):
                    pass

        resident = timed(choose, self.bench.device, repeats=5, warmup=1)
        return {
            "seconds_injected_with_its_file_read": injection.seconds,
            "seconds_from_host": from_host.seconds,
            "seconds_resident": resident.seconds / len(keys),
        }

    def _wanted(self, *effects: int) -> dict[str, Path]:
        chosen = [self.manifest.effects[i] for i in effects]
        return {effect.adapter_hash: Path(effect.adapter) for effect in chosen}
