"""AOP, asymmetric orthogonal prompting (paper section 3.3): triggers and captions.

The teacher is prompted as it was trained; the student with ``[trigger, caption]``. A trigger is
a word that no language has, unique to its effect, so that effects whose prompts share words get
directions of their own.
"""

import string
from dataclasses import dataclass

from pipeline.bank import Effect
from pipeline.config import PromptSettings
from pipeline.distill.noise import generator

ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class EffectPrompts:
    """One effect's prompts; ``trigger`` is empty where the recipe has triggers off."""

    effect: str
    trigger: str
    caption: str
    teacher: str

    @property
    def student(self) -> str:
        """What the student and the fake score are prompted with."""
        return f"{self.trigger} {self.caption}".strip()


def compose(first: str, second: str) -> str:
    """One instruction for two effects in turn (method.md, "Composition"): nothing is trained."""
    return f"{first}, then {second}"


def make_trigger(effect: str, length: int, seed: int) -> str:
    """``<effect_Xy12Ab34>``: a function of (effect, seed) alone, so it survives bank changes."""
    rng = generator(seed, "trigger", effect)
    tail = "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), length))
    return f"<{effect}_{tail}>"


def make_prompts(
    effects: tuple[Effect, ...], settings: PromptSettings, seed: int
) -> list[EffectPrompts]:
    """Triggers and offline captions for all effects, in order.

    The caption is the bank's own if it gives one, else the description, else the teacher prompt.
    With triggers off the student is prompted as the teacher is: the ablation without AOP.
    """
    made = []
    for effect in effects:
        if settings.triggers == "none":
            made.append(EffectPrompts(effect.name, "", effect.prompt, effect.prompt))
            continue
        trigger = effect.trigger or make_trigger(effect.name, settings.trigger_length, seed)
        caption = effect.caption or effect.description or effect.prompt
        made.append(EffectPrompts(effect.name, trigger, caption, effect.prompt))
    return made
