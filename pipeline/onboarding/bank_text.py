"""The bank as text: short, with a comment where a person may want to know or must decide."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.onboarding.scalar import scalar
from pipeline.onboarding.survey import FoundEffect, Survey

BLANK = "BLANK: write what this effect's LoRA was trained with"
_HEAD = """\
# The effects of {folder}, found by `collectionlora init`. Change whatever is wrong.
#   name      what the effect is called: a-z, 0-9 and _
#   prompt    what its LoRA was trained with: its teacher is prompted so
#   adapter   its LoRA, in any layout; without one a teacher is trained from the pairs
#   pairs     a folder of pictures before and after (1_source.png and 1_target.png)
#   category  a word of your own, by which reports can be read
#   weight    how often it is drawn in training; 2 is twice as often
# Also: description (what it looks like; the student is prompted with it), trigger, caption.
"""


def bank_text(found: Survey, held_out: Sequence[Path]) -> str:
    """bank.yaml. Paths are relative to the folder; what a person must fill in says BLANK."""
    lines = [_HEAD.format(folder=found.folder.resolve().name), "effects:\n"]
    lines += [_entry(found, effect) for effect in found.effects]
    if found.pairs_file is not None:
        lines.append(f"pairs: {scalar(found.relative(found.pairs_file))}\n")
    lines.append(
        "\n# Instructions of all kinds on unlabelled pictures: they keep the student general.\n"
    )
    if found.general_file is not None:
        lines.append(f"general: {scalar(found.relative(found.general_file))}\n")
    else:
        lines.append(
            '# general: general.jsonl   # {"image": "c.png", "prompt": "make it brighter"}\n'
        )
    lines.append("\n# Unlabelled pictures: more sources for the teachers' targets.\n")
    if found.photographs is not None:
        lines.append(f"photographs: {scalar(found.relative(found.photographs))}\n")
    else:
        lines.append("# photographs: photographs\n")
    lines.append(_test(found, held_out))
    return "".join(lines)


def _entry(found: Survey, effect: FoundEffect) -> str:
    prompt = effect.prompt
    rows = [f"  - name: {scalar(effect.name)}"]
    if prompt is None:
        rows.append(f"    prompt:   # {BLANK}")
    else:
        rows.append(f"    prompt: {scalar(prompt.text)}   # from {prompt.origin}")
    if effect.adapter is not None:
        rows.append(f"    adapter: {scalar(found.relative(effect.adapter))}   # {effect.lora}")
    if effect.pairs_folder is not None:
        count = len(effect.pairs.pairs)
        rows.append(f"    pairs: {scalar(found.relative(effect.pairs_folder))}   # {count} pairs")
    rows += ["    category: general", "    weight: 1.0"]
    return "\n".join(rows) + "\n"


def _test(found: Survey, held_out: Sequence[Path]) -> str:
    head = "\n# Held-out pictures, which the student is judged on"
    if found.test is not None:
        return f"{head}.\ntest: {scalar(found.relative(found.test))}\n"
    if not held_out:
        return f"{head}.\ntest:   # BLANK: name a folder of pictures that nothing is trained on\n"
    pictures = "".join(f"  - {scalar(found.relative(path))}\n" for path in held_out)
    return (
        f"{head}. There was no folder of them, so these were set\n"
        "# apart: whatever is the same picture is left out of the training.\n"
        f"test:\n{pictures}"
    )
