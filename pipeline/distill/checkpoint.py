"""Student checkpoints: adapters, optimizers, average and recent policies, in safetensors.

No pickle: AdamW's moments are tensors and its step is a number. Together with the round this is
all the state there is, for noise and plans are functions of (seed, round). Tensors are saved
whole: what a sharded group wrote, one process resumes, and the reverse.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.distill.names import STATE_FILE
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.models.sharding import own_part, whole
from pipeline.problems import InputError, Problem
from pipeline.storage import atomic_folder, folder_is_whole


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next round, and what it was made with.

    policies: the live weights of versions ``round - lag .. round``, oldest first: at lag > 0 a
    resumed run must roll out under policies older than its student. score: the validation score of
    the student that is saved, if somebody looked; lower is better.
    """

    round: int
    recipe_hash: str
    policies: list[dict[str, Tensor]]
    score: float | None = None


def save_checkpoint(
    folder: Path, trainer: StudentTrainer, progress: Progress, write: bool = True
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Every worker of a sharded group calls it, for gathering takes all; one of them writes. Gathered
    are the tensors of one file at a time.
    """
    with ExitStack() as stack:
        new = stack.enter_context(atomic_folder(folder)) if write else None

        def save(name: str, tensors: dict[str, Tensor]) -> None:
            gathered: dict[str, Tensor] = {}
            for key, value in tensors.items():
                tensor = whole(value.detach())
                if write:
                    gathered[key] = tensor.cpu().contiguous()
            if new is not None:
                save_file(gathered, new / f"{name}.safetensors")

        for name in (STUDENT, FAKE):
            save(name, trainer.adapters.state(name))
        for name, optimizer in _optimizers(trainer).items():
            save(f"{name}_optimizer", _moments(trainer, name, optimizer))
        if trainer.average is not None:
            save("average", trainer.average)
        if new is None:
            return
        for age, policy in enumerate(reversed(progress.policies)):
            save(f"policy_{age}", policy)
        state = {
            "round": progress.round,
            "recipe_hash": progress.recipe_hash,
            "score": progress.score,
            "policies": len(progress.policies),
            "optimizer_steps": {
                name: int(_steps(optimizer)) for name, optimizer in _optimizers(trainer).items()
            },
        }
        (new / STATE_FILE).write_text(json.dumps(state, indent=2))


def load_checkpoint(folder: Path, trainer: StudentTrainer, recipe_hash: str) -> Progress:
    """Put a checkpoint into a trainer, in place.

    Raises:
        InputError: the folder is damaged, or belongs to another recipe.
    """
    if not folder_is_whole(folder, contents=True):
        remedy = "delete it: the run goes on from the one before"
        raise InputError([Problem(str(folder), "", None, "damaged checkpoint", remedy)])
    state = json.loads((folder / STATE_FILE).read_text())
    if state["recipe_hash"] != recipe_hash:
        remedy = "use another output folder, or the recipe that began this run"
        raise InputError(
            [Problem(str(folder), "recipe_hash", state["recipe_hash"], "another recipe", remedy)]
        )
    for name, optimizer in _optimizers(trainer).items():
        trainer.adapters.replace(name, load_file(folder / f"{name}.safetensors"))
        moments = load_file(folder / f"{name}_optimizer.safetensors")
        steps = state["optimizer_steps"][name]
        for key, parameter in trainer.adapters.state(name).items():
            if f"{key}.exp_avg" not in moments:
                continue  # never had a gradient
            optimizer.state[parameter] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": own_part(moments[f"{key}.exp_avg"], parameter),
                "exp_avg_sq": own_part(moments[f"{key}.exp_avg_sq"], parameter),
            }
    if trainer.average is not None:
        saved, live = load_file(folder / "average.safetensors"), trainer.adapters.state(STUDENT)
        trainer.average = {key: own_part(value, live[key]) for key, value in saved.items()}
    ages = range(state["policies"] - 1, -1, -1)
    policies = [load_file(folder / f"policy_{age}.safetensors") for age in ages]
    return Progress(state["round"], recipe_hash, policies, state.get("score"))


def load_student(folder: Path) -> dict[str, Tensor]:
    """The weights to evaluate and export: the average where there is one, else the student."""
    average = folder / "average.safetensors"
    chosen = average if average.exists() else folder / f"{STUDENT}.safetensors"
    weights: dict[str, Tensor] = load_file(chosen)
    return weights


def _optimizers(trainer: StudentTrainer) -> dict[str, torch.optim.AdamW]:
    return {STUDENT: trainer.student_optimizer, FAKE: trainer.fake_optimizer}


def _steps(optimizer: torch.optim.AdamW) -> float:
    return max((float(s["step"]) for s in optimizer.state.values()), default=0.0)


def _moments(trainer: StudentTrainer, name: str, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{key}.{moment}": optimizer.state[parameter][moment]
        for key, parameter in trainer.adapters.state(name).items()
        if parameter in optimizer.state
        for moment in ("exp_avg", "exp_avg_sq")
    }
