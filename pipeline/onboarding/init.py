"""``collectionlora init``: look through a folder, write its bank and a recipe, say what is left."""

import sys
from pathlib import Path

from pipeline.models.local import local_model
from pipeline.models.lora_formats import transformer_shapes
from pipeline.onboarding.bank_text import bank_text
from pipeline.onboarding.held_out import choose_held_out
from pipeline.onboarding.names import slug
from pipeline.onboarding.recipe_text import RecipeAnswers, recipe_text
from pipeline.onboarding.survey import Survey, survey
from pipeline.problems import InputError, Problem
from pipeline.storage import write_atomic

BANK, RECIPE = "bank.yaml", "recipe.yaml"


def init(folder: Path, base: str | Path | None) -> str:
    """Write ``bank.yaml`` and ``recipe.yaml`` into ``folder``; returns what to say of it.

    base: the model's diffusers folder or address, without which neither LoRAs can be checked nor
    a recipe be whole: asked for on a terminal if it is left out.

    Raises:
        InputError: either file is there already, the base is no model, or nothing was found.
    """
    for name in (BANK, RECIPE):
        if (folder / name).exists():
            remedy = "edit it, or move it away to begin again"
            raise InputError([Problem(str(folder / name), "", None, "exists already", remedy)])
    base = base or _ask_for_base()
    # The recipe keeps the address, which each node fetches for itself.
    if not (local_model(base) / "model_index.json").is_file():
        remedy = "give the diffusers folder, or the hf:// address, of the LoRAs' model"
        raise InputError([Problem("--base", "", str(base), "not a model's folder", remedy)])
    layers = transformer_shapes(base)
    found = survey(folder, layers)
    held_out = [] if found.test else choose_held_out(found.effects, found.photographs)
    name = slug(folder.resolve().name).replace("_", "-") or "effects"
    answers = RecipeAnswers(
        name=name,
        bank=str(folder),
        output=f"runs/{name}",
        base=str(base),
        width=max(shape[1] for name, shape in layers.items() if name.endswith("attn.to_q")),
        general=found.general_file is not None,
    )
    write_atomic(folder / BANK, bank_text(found, held_out).encode())
    write_atomic(folder / RECIPE, recipe_text(answers).encode())
    return _summary(found, answers)


def _ask_for_base() -> str:
    if not sys.stdin.isatty():
        remedy = "give --base with the diffusers folder of the model that the LoRAs are for"
        raise InputError([Problem("--base", "", None, "which model?", remedy)])
    return input("The diffusers folder of the model that these LoRAs are for: ").strip()


def _summary(found: Survey, answers: RecipeAnswers) -> str:
    rows = []
    for effect in found.effects:
        lora = effect.lora or "no LoRA: a teacher is trained from the pairs"
        prompt = f"prompt from {effect.prompt.origin}" if effect.prompt else "PROMPT IS BLANK"
        rows.append(f"  {effect.name}: {lora}; {len(effect.pairs.pairs)} pairs; {prompt}")
    rows += [f"  note: {note}" for note in found.notes]
    bank, recipe = found.folder / BANK, found.folder / RECIPE
    blank = sum(effect.prompt is None for effect in found.effects)
    first = f"fill in {blank} blank prompts in {bank}, then" if blank else "now"
    uri = f"sqlite:///{answers.output}/mlflow.db"
    return "\n".join(
        [
            f"{len(found.effects)} effects in {found.folder}:",
            *rows,
            f"{bank}",
            f"{recipe}",
            f"{first}:",
            f"  collectionlora validate {recipe}",
            f"  collectionlora run {recipe}",
            f"  collectionlora compare --uri {uri} --out {answers.output}/compare",
        ]
    )
