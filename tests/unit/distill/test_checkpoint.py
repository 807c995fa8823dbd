"""Checkpoints: a resumed run has the bits of one that was never stopped."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.distill.checkpoint import (
    STATE_FILE,
    Progress,
    load_checkpoint,
    load_student,
    save_checkpoint,
)
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.problems import InputError
from tests.unit.distill.halves import HASH, SETTINGS, Collection, go_on


def _rebuilt(collection: Collection, folder: Path) -> tuple[StudentTrainer, Progress]:
    trainer = collection.trainer()
    return trainer, load_checkpoint(folder, trainer, HASH)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_resumed_run_has_the_same_bits(collection: Collection, tmp_path: Path, lag: int) -> None:
    through = collection.trainer()
    policies = deque([through.policy()], maxlen=lag + 1)
    worker = collection.worker()
    go_on(worker, through, range(2), policies)
    save_checkpoint(tmp_path / "at2", through, Progress(2, HASH, list(policies)))
    last = go_on(worker, through, range(2, 4), policies)

    resumed, progress = _rebuilt(collection, tmp_path / "at2")
    assert progress.round == 2
    assert len(progress.policies) == lag + 1
    again = deque(progress.policies, maxlen=lag + 1)
    repeated = go_on(collection.worker(), resumed, range(2, 4), again)
    assert repeated == last
    for name in (STUDENT, FAKE):
        ours = resumed.adapters.state(name)
        for key, value in through.adapters.state(name).items():
            assert torch.equal(ours[key], value), (name, key)
    assert through.average is not None
    assert resumed.average is not None
    assert all(torch.equal(resumed.average[k], v) for k, v in through.average.items())
    # The whole of the state: both write the same checkpoint.
    for trainer, kept, name in ((through, policies, "a"), (resumed, again, "b")):
        save_checkpoint(tmp_path / name, trainer, Progress(4, HASH, list(kept)))
    files = {p.name for p in (tmp_path / "a").glob("*.safetensors")}
    assert {"student.safetensors", "fake_optimizer.safetensors", "average.safetensors"} <= files
    for name in files | {STATE_FILE}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_checkpoint_before_the_first_round_resumes(
    collection: Collection, tmp_path: Path
) -> None:
    trainer = collection.trainer()
    save_checkpoint(tmp_path / "at0", trainer, Progress(0, HASH, [trainer.policy()]))
    resumed, progress = _rebuilt(collection, tmp_path / "at0")
    start = deque([trainer.policy()], maxlen=1)
    assert go_on(collection.worker(), trainer, range(1), start) == go_on(
        collection.worker(), resumed, range(1), deque(progress.policies, maxlen=1)
    )


def test_a_damaged_or_foreign_checkpoint_is_refused(collection: Collection, tmp_path: Path) -> None:
    trainer = collection.trainer()
    folder = tmp_path / "at0"
    save_checkpoint(folder, trainer, Progress(0, HASH, [trainer.policy()]))
    with pytest.raises(InputError, match="another recipe"):
        load_checkpoint(folder, collection.trainer(), "f" * 12)
    file = folder / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged checkpoint"):
        load_checkpoint(folder, collection.trainer(), HASH)


def test_what_is_evaluated_is_the_average_where_there_is_one(
    collection: Collection, tmp_path: Path
) -> None:
    for ema in (0.9, 0.0):
        trainer = collection.trainer(settings=replace(SETTINGS, ema=ema))
        go_on(collection.worker(), trainer, range(2), deque([trainer.policy()], maxlen=1))
        save_checkpoint(tmp_path / str(ema), trainer, Progress(2, HASH, [trainer.policy()]))
        expected = trainer.policy() if trainer.average is None else trainer.average
        found = load_student(tmp_path / str(ema))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], v) for k, v in expected.items())
