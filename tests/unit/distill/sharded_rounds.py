"""Rounds of a student group of two processes, sharded by FSDP2."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed
from diffusers import QwenImageTransformer2DModel
from torch.distributed.tensor import DTensor

from pipeline.distill.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.distill.dealing import Dealing
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.distill.watch import Pair, Watch
from pipeline.models.adapters import Adapters
from pipeline.models.loading import BaseRows, empty_transformer
from pipeline.models.sharding import shard_transformer, whole
from tests.unit.distill import halves
from tests.unit.distill.group import go_on
from tests.unit.distill.halves import HASH, PLAN, Collection
from tests.unit.tiny import MODULES, tiny_editor

WORKERS, WHOLE, UNEVEN = 2, Dealing(2, 2), Dealing(3, 2)
# A bound below the gradients' norms, so that clipping is by the whole group's; two forwards a loss.
SETTINGS = replace(halves.SETTINGS, grad_clip=5e-3, micro_batch=2)


def look(trainer: StudentTrainer) -> dict[str, float]:
    """A look at the student on each effect's last sample, and that its weights are put back."""
    pairs = [Pair(e.name, e.samples[-1]) for e in trainer.manifest.effects]
    before = trainer.policy()
    found = Watch(trainer, pairs).look().metrics
    after = trainer.policy()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    return found


def sharded_trainer(
    collection: Collection,
    base: Path,
    dtype: torch.dtype = torch.float32,
    dealing: Dealing = WHOLE,
) -> StudentTrainer:
    """As the student worker builds it, checkpointing too: no process ever has the base whole."""
    editor = tiny_editor()
    editor.transformer = empty_transformer(QwenImageTransformer2DModel, base, dtype)
    editor.transformer.enable_gradient_checkpointing()
    adapters = Adapters(editor.transformer)
    for seed, name in enumerate((STUDENT, FAKE)):
        adapters.add(name, 4, 4.0, MODULES, seed, device="cpu")
    shard_transformer(editor.transformer, editor.device, BaseRows(base))
    return StudentTrainer(
        editor,
        adapters,
        collection.store,
        collection.manifest,
        PLAN,
        SETTINGS,
        lambda _: None,
        dealing=dealing,
        sharded=True,
    )


def in_two_processes(folder: Path, base: Path, one: Path) -> None:
    """Three rounds, saved to ``two``; a fourth from the checkpoint ``one``, to ``two_more``.

    Two rounds of three logical ranks, saved to ``uneven``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.distill.sharded_rounds"])
    processes = [
        context.Process(target=_process, args=(rank, folder, base, one)) for rank in range(WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * WORKERS


def _process(rank: int, folder: Path, base: Path, one: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), WORKERS)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    collection = Collection(folder / f"collection{rank}")
    seen: dict[str, object] = {}

    worker, trainer = collection.worker(), sharded_trainer(collection, base)
    transformer = trainer.editor.transformer
    seen["parameters"] = {
        name: [p.numel(), p.to_local().numel() if isinstance(p, DTensor) else -1]
        for name, p in transformer.named_parameters()
    }
    seen["metrics"] = go_on(worker, trainer, rank, range(3))
    _save(folder / "two", trainer, 3, rank)
    # After a look the root's own rows are still gathered: FSDP2 gives them up after a backward.
    seen["look"] = look(trainer)
    wholes = {
        name: whole(p).sum().item()
        for name, p in transformer.named_parameters()
        if ".lora_" not in name
    }
    seen["base"] = wholes

    resumed = sharded_trainer(collection, base)
    load_checkpoint(one, resumed, HASH)
    go_on(worker, resumed, rank, range(3, 4))
    _save(folder / "two_more", resumed, 4, rank)

    uneven = sharded_trainer(collection, base, dealing=UNEVEN)
    seen["uneven"] = go_on(worker, uneven, rank, range(2))
    _save(folder / "uneven", uneven, 2, rank)

    # At half precision the masters are still fp32.
    half = sharded_trainer(collection, base, torch.bfloat16)
    half.settings = replace(half.settings, ema=0.0)
    seen["half"] = go_on(worker, half, rank, range(1))
    dtypes = {str(v.dtype) for name in (STUDENT, FAKE) for v in half.adapters.state(name).values()}
    seen["half_masters"] = sorted(dtypes)
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _save(folder: Path, trainer: StudentTrainer, round_index: int, rank: int) -> None:
    progress = Progress(round_index, HASH, [trainer.policy()])
    save_checkpoint(folder, trainer, progress, write=rank == 0)
    torch.distributed.barrier()
