"""What a LoRA was trained with, where its files say so: metadata, a text beside it, captions."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_TEXT = 2000
# Keys under which trainers and people keep it, best first.
METADATA_KEYS = (
    "teacher_prompt",
    "prompt",
    "instance_prompt",
    "ss_instance_prompt",
    "modelspec.trigger_phrase",
    "trigger_word",
    "trigger_words",
    "activation_text",
)
TAG_COUNTS = "ss_tag_frequency"


@dataclass(frozen=True)
class FoundPrompt:
    """A teacher prompt and where it was found."""

    text: str
    origin: str


def prompt_of(
    lora: Path | None, metadata: Mapping[str, str], targets: Sequence[Path]
) -> FoundPrompt | None:
    """The teacher prompt, from the likeliest of the places where it may be.

    A text beside the LoRA (``snow.txt``) is a person's word and comes first, then the file's
    metadata, then the captions beside the pairs' ``targets`` if at least half of them agree.
    """
    if lora is not None:
        beside = lora.with_suffix(".txt")
        if text := _text(beside):
            return FoundPrompt(text, beside.name)
        for key in METADATA_KEYS:
            if text := _clean(metadata.get(key, "")):
                return FoundPrompt(text, f"the LoRA's metadata ({key})")
        if text := _common_tags(metadata.get(TAG_COUNTS, "")):
            return FoundPrompt(text, f"the LoRA's metadata ({TAG_COUNTS})")
    captions = Counter(text for path in targets if (text := _text(path.with_suffix(".txt"))))
    if captions:
        text, count = captions.most_common(1)[0]
        if 2 * count >= len(targets):
            return FoundPrompt(text, f"the captions of {count} of {len(targets)} pairs")
    return None


def _common_tags(counts: str) -> str:
    """The caption that all pictures share, from Kohya's counts of its parts between commas."""
    try:
        folders = json.loads(counts)
        tags: Counter[str] = Counter()
        for each in folders.values():
            tags.update({str(tag): int(count) for tag, count in each.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""
    most = max(tags.values(), default=0)
    shared = [tag.strip() for tag, count in tags.items() if count == most]
    return _clean(", ".join(shared)) if most > 1 or len(tags) == 1 else ""


def _text(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > 4 * MAX_TEXT:
            return ""
        return _clean(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return ""


def _clean(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT and line.isprintable() else ""
