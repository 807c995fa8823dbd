"""Wording: the triggers that the prompts cannot make for themselves.

A student that grows keeps the words it knows its effects by; orthogonal triggers need the text
encoder's opinion, which is asked once and kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.evaluation.orthogonality import most_orthogonal
from pipeline.models.families import family_of
from pipeline.models.fingerprint import fingerprint
from pipeline.models.local import absolute
from pipeline.places import Places
from pipeline.prompting import make_trigger
from pipeline.stages.encode import sha
from pipeline.stages.grow import known_by, start_of
from pipeline.storage import content_key, write_atomic

# Random triggers an effect that the most orthogonal one is chosen from.
CANDIDATES = 32


def worded(recipe: Recipe, bank: Bank, places: Places, ray: Callable[[], None]) -> Bank:
    """The bank with all triggers that are not a function of the effect's own name and the seed."""
    start = start_of(recipe)
    if start is not None:
        bank = known_by(start, bank)
    if recipe.prompts.triggers != "orthogonal":
        return bank
    chosen = _chosen(recipe, bank, places, ray)
    effects = (replace(e, trigger=e.trigger or chosen[e.name]) for e in bank.effects)
    return replace(bank, effects=tuple(effects))


def directions(
    recipe: Recipe,
    bank: Bank,
    prompts: Sequence[str],
    places: Places,
    ray: Callable[[], None],
) -> NDArray[np.float64]:
    """Unit directions ``[n, D]`` of prompts about one of the bank's pictures, asked once."""
    text = fingerprint(recipe.model.path, *family_of(recipe.model.path).text)
    seen = [sha(path) for path in _seen(recipe, bank)]
    key = content_key("directions", text, recipe.model.dtype, seen, list(prompts))
    path = places.cache / "directions" / f"{key}.safetensors"
    if not path.exists():
        found = _encoded(recipe, bank, prompts, ray)
        write_atomic(path, lambda place: save_file({"directions": found}, place))
    return np.asarray(load_file(path)["directions"])


def _encoded(
    recipe: Recipe, bank: Bank, prompts: Sequence[str], ray: Callable[[], None]
) -> NDArray[np.float64]:
    ray()
    import ray as ray_library

    from actors.prompt_tasks import prompt_directions
    from actors.session import device_of

    pool = recipe.cluster.encoder_pool
    task = prompt_directions.options(
        num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, resources=pool.resources
    )
    found = task.remote(
        list(prompts),
        [str(p.resolve()) for p in _seen(recipe, bank)],
        absolute(recipe.model.path),
        device_of(recipe.model, pool.num_gpus),
        recipe.model.dtype,
        pool.threads,
    )
    return np.asarray(ray_library.get(found))


def _seen(recipe: Recipe, bank: Bank) -> list[Path]:
    """The picture that a prompt is encoded with, where the family's encoder looks at any."""
    if not family_of(recipe.model.path).prompts_see_images:
        return []
    pictures = [*bank.photographs, *(path for pair in bank.pairs for path in pair.sources)]
    return pictures[:1]


def _chosen(recipe: Recipe, bank: Bank, places: Places, ray: Callable[[], None]) -> dict[str, str]:
    length = recipe.prompts.trigger_length
    own = [e.trigger for e in bank.effects if e.trigger]
    free = [e.name for e in bank.effects if not e.trigger]
    if not free:
        return {}
    candidates = [
        [make_trigger(name, length, recipe.seed + k) for k in range(CANDIDATES)] for name in free
    ]
    words = [*own, *(word for some in candidates for word in some)]
    found = directions(recipe, bank, words, places, ray)
    sets = found[len(own) :].reshape(len(free), CANDIDATES, -1)
    choice = most_orthogonal(list(sets), found[: len(own)])
    return {name: candidates[i][k] for i, (name, k) in enumerate(zip(free, choice, strict=True))}
