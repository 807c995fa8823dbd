"""Student checkpoints: adapters, optimizers, average and recent policies, in safetensors.

No pickle: AdamW's moments are tensors and its step is a number. Together with the round this is
all the state there is, for noise and plans are functions of (seed, round).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.problems import InputError, Problem
from pipeline.storage import atomic_folder, folder_is_whole

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next round, and what it was made with.

    policies: the live weights of versions ``round - lag .. round``, oldest first: at lag > 0 a
    resumed run must roll out under policies older than its student.
    """

    round: int
    recipe_hash: str
    policies: list[dict[str, Tensor]]


def save_checkpoint(folder: Path, trainer: StudentTrainer, progress: Progress) -> None:
    """Write a checkpoint folder, whole or not at all."""
    with atomic_folder(folder) as new:
        for name in (STUDENT, FAKE):
            _save(new / f"{name}.safetensors", trainer.adapters.state(name))
        for name, optimizer in _optimizers(trainer).items():
            _save(new / f"{name}_optimizer.safetensors", _moments(trainer, name, optimizer))
        if trainer.average is not None:
            _save(new / "average.safetensors", trainer.average)
        for age, policy in enumerate(reversed(progress.policies)):
            _save(new / f"policy_{age}.safetensors", policy)
        state = {
            "round": progress.round,
            "recipe_hash": progress.recipe_hash,
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
                "exp_avg": moments[f"{key}.exp_avg"].to(parameter.device),
                "exp_avg_sq": moments[f"{key}.exp_avg_sq"].to(parameter.device),
            }
    if trainer.average is not None:
        trainer.average = load_file(folder / "average.safetensors")
    ages = range(state["policies"] - 1, -1, -1)
    policies = [load_file(folder / f"policy_{age}.safetensors") for age in ages]
    return Progress(state["round"], recipe_hash, policies)


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


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
