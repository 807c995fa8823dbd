"""Captions by a vision-language model (AOP): what is asked, and which answers are taken."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distill.noise import generator
from pipeline.endpoint import Endpoint, Settled, picture_part, text_part
from pipeline.images import open_image

# Raise it when the question changes: answers to the old one are then asked anew.
VERSION = 1
MIN_WORDS, MAX_WORDS = 4, 60
MAX_TOKENS = 300

# The commonest English words: prose of a few words has one of them, noise has none.
_WORD = re.compile(r"\w+")
_ENGLISH = frozenset(
    _WORD.findall(
        "a an and are as at by for from has in into is it its of on or over that the their this to "
        "under with across against all behind like onto through where while"
    )
)
_REFUSAL = re.compile(
    r"\b(as an ai|i (?:can(?:no|')t|am unable|cannot)|i'm (?:sorry|unable)|sorry,)", re.IGNORECASE
)
# Words that every prompt may have, which name no effect.
_COMMON = frozenset(
    _WORD.findall(
        "make turn give apply photo photograph picture image effect style look into with over from "
        "that this like cover colour color show have add"
    )
)
_QUESTION = """\
Here are {count} examples of one visual effect, "{name}": each is a photograph before and after it.
An image editor makes the effect when it is told: "{prompt}".{hint}
Describe what the effect does to a photograph, so that it cannot be mistaken for another effect:
its colours, texture, layout and light, in one English sentence of 10 to 40 words. Name the effect
in it ("{name}", or in your words). Say nothing about what the photographs happen to show. Answer
with the sentence alone."""


@dataclass(frozen=True)
class CaptionRules:
    """What a caption must keep to: one effect's names, and the triggers it may not hold."""

    effect: str
    prompt: str
    triggers: tuple[str, ...]
    language: str


def caption_of(answer: str, rules: CaptionRules) -> str:
    """The caption in an answer, without its wrapping.

    Raises:
        ValueError: what is wrong with it, as the model is told.
    """
    text = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL)
    text = re.sub(r"^\s*```\w*|```\s*$", " ", text.strip())
    text = re.sub(r"^\s*(caption|description)\s*:", " ", text, flags=re.IGNORECASE)
    text = " ".join(text.split()).strip("\"'“”").strip()
    problem = caption_problem(text, rules)
    if problem is not None:
        raise ValueError(problem)
    return text


def caption_problem(caption: str, rules: CaptionRules) -> str | None:
    """Why a caption cannot be used, or None: length, language, triggers, effect named."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", caption.lower())
    if len(words) < MIN_WORDS:
        return f"it has {len(words)} words, at least {MIN_WORDS} are needed"
    if len(words) > MAX_WORDS:
        return f"it has {len(words)} words, at most {MAX_WORDS} are allowed"
    if not caption.isprintable():
        return "it holds characters that are no text"
    if any(trigger and trigger in caption for trigger in rules.triggers):
        return "it holds an effect's trigger word"
    if re.search(r"[<>{}]", caption):
        return "it holds markup, not a plain sentence"
    if _REFUSAL.search(caption):
        return "it speaks of you, not of the effect"
    if rules.language == "en":
        latin = sum(word.isascii() for word in words) / len(words)
        if latin < 0.8 or not _ENGLISH & set(words):
            return "it is not an English sentence"
    named = naming_words(rules.effect, rules.prompt)
    if named and not any(_alike(word, name) for word in words for name in named):
        return f"it does not name the effect ({', '.join(sorted(named)[:6])})"
    return None


def naming_words(effect: str, prompt: str) -> set[str]:
    """The words that tell an effect: those of its name, and the rarer ones of its prompt."""
    words = set(effect.lower().split("_")) | set(re.findall(r"[^\W\d_]{4,}", prompt.lower()))
    return {word for word in words if len(word) > 2 and word not in _COMMON}


def caption_row(
    key: str,
    rules: CaptionRules,
    description: str,
    pairs: Sequence[tuple[Sequence[Path], Path]],
    seed: int,
) -> dict[str, Any]:
    """A question as it travels through Ray Data: plain values only."""
    pictures = [[[str(p) for p in sources], str(target)] for sources, target in pairs]
    return {
        "key": key,
        "rules": json.dumps(vars(rules)),
        "description": description,
        "pairs": json.dumps(pictures),
        "seed": seed,
    }


def ask_caption(endpoint: Endpoint, row: Mapping[str, Any]) -> Settled[str]:
    """Ask for one effect's caption: its pairs before and after, its name and teacher prompt."""
    data = json.loads(row["rules"])
    rules = CaptionRules(**{**data, "triggers": tuple(data["triggers"])})
    pairs = json.loads(row["pairs"])
    hint = f' Its maker says: "{row["description"]}".' if row["description"] else ""
    question = _QUESTION.format(
        count=len(pairs), name=rules.effect.replace("_", " "), prompt=rules.prompt, hint=hint
    )
    parts: list[dict[str, Any]] = []
    for i, (sources, target) in enumerate(pairs, 1):
        for path in sources:
            parts += [text_part(f"Example {i}, before:"), picture_part(open_image(path))]
        parts += [text_part(f"Example {i}, after:"), picture_part(open_image(target))]
    messages = [{"role": "user", "content": [*parts, text_part(question)]}]
    seed = int(row["seed"])
    return endpoint.settle(messages, lambda text: caption_of(text, rules), MAX_TOKENS, seed)


def drawn(count: int, of: int, seed: int, effect: str) -> list[int]:
    """Which pairs of an effect are shown: ``count`` random ones, a function of (seed, effect)."""
    rng = generator(seed, "caption pairs", effect)
    return sorted(int(i) for i in rng.permutation(of)[:count])


def _alike(word: str, name: str) -> bool:
    """Whether a word is another's form: ``snowy`` and ``snow``, ``mirrored`` and ``mirror``."""
    short, long = sorted((word, name), key=len)
    stem = short[:-1] if len(short) > 4 else short
    return len(stem) > 2 and long.startswith(stem)
