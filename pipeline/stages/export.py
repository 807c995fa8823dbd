"""Export: one folder that stock diffusers loads and runs, with no code of this project."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pipeline.config import LoraSettings, ModelSettings, StudentSettings
from pipeline.editing.student_export import EFFECTS_FILE, REVISION
from pipeline.models.families import FLUX_KONTEXT, Family, family_of
from pipeline.models.local import HUB, hub_name
from pipeline.models.lora_formats import WEIGHTS_FILE, Layout, LoraModule, write_lora
from pipeline.prompting import EffectPrompts
from pipeline.storage import atomic_folder

# In a folder of its own: stock diffusers looks for weights among all files beside each other.
COMFYUI_FILE = "comfyui/collectionlora.safetensors"


def export_student(
    weights: Mapping[str, Tensor],
    lora: LoraSettings,
    student: StudentSettings,
    prompts: Sequence[EffectPrompts],
    model: ModelSettings,
    recipe_hash: str,
    folder: Path,
    scores_markdown: str | None = None,
) -> Path:
    """Write the student's folder, whole or not at all; the same student gives the same bytes.

    weights: ``<module>.lora_A`` ``[r, in]`` and ``<module>.lora_B`` ``[out, r]``, as
    ``Adapters.state`` gives them; scores_markdown: a table for the model card.

    Raises:
        ValueError: there are no weights.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=student.shift, stochastic_sampling=True)
    schedule = {"steps": student.steps, "shift": student.shift}
    effects = [{"effect": p.effect, "trigger": p.trigger, "prompt": p.student} for p in prompts]
    metadata = {
        "recipe_hash": recipe_hash,
        "effects": json.dumps(effects, ensure_ascii=False),
        "schedule": json.dumps(schedule | {"stochastic_sampling": True}),
    }
    with atomic_folder(folder) as new:
        write_student_lora(new / WEIGHTS_FILE, weights, lora, metadata)
        flux = family_of(model.path) is FLUX_KONTEXT
        write_student_lora(new / COMFYUI_FILE, weights, lora, metadata, "comfyui", flux)
        scheduler.save_pretrained(new / "scheduler")
        text = json.dumps(schedule | {"effects": effects}, indent=2, ensure_ascii=False)
        (new / EFFECTS_FILE).write_text(text + "\n", encoding="utf-8")
        card = model_card(lora, student, prompts, model, recipe_hash, scores_markdown)
        (new / "README.md").write_text(card, encoding="utf-8")
    return folder


def write_student_lora(
    path: Path,
    weights: Mapping[str, Tensor],
    lora: LoraSettings,
    metadata: Mapping[str, str] | None = None,
    layout: Layout = "diffusers",
    flux: bool = False,
) -> None:
    """The student's weights as a LoRA file, with what ``metadata`` says; ``write_lora``'s rest."""
    modules = {
        key.removesuffix(".lora_A"): LoraModule(
            down.detach(), weights[f"{key.removesuffix('.lora_A')}.lora_B"].detach(), lora.alpha
        )
        for key, down in weights.items()
        if key.endswith(".lora_A")
    }
    write_lora(path, modules, metadata or {}, layout, flux)


def model_card(
    lora: LoraSettings,
    student: StudentSettings,
    prompts: Sequence[EffectPrompts],
    model: ModelSettings,
    recipe_hash: str,
    scores_markdown: str | None,
) -> str:
    """The README of the export: what it is, its effects, and code that runs it."""
    rows = "\n".join(
        f"| {_cell(p.effect)} | {_code(p.trigger)} | {_cell(p.student)} |" for p in prompts
    )
    example = repr(prompts[0].student if prompts else "an instruction")
    family = family_of(model.path)
    base, revision = _base_and_revision(model.path)
    how, given, place = _base_in_code(model.path)
    scores = f"\n## Scores\n\n{scores_markdown.strip()}\n" if scores_markdown else ""
    # Of the folder models/edit the Hub would take the name for one of its own models.
    named = f"./{base}" if base == model.path and hub_name(base) else base
    front = f"{REVISION}: {json.dumps(revision)}\n" if revision else ""
    return f"""---
base_model: {json.dumps(named)}
{front}library_name: diffusers
pipeline_tag: image-to-image
tags: [lora, distillation, image-editing]
---
# {len(prompts)} effects in one LoRA, {student.steps} steps

A LoRA of rank {lora.rank} (alpha {lora.alpha:g}) for an image-editing model. It was distilled
from one teacher LoRA an effect by CollectionLoRA (arXiv 2605.25378): name an effect in the
prompt, sample {student.steps} steps, without classifier-free guidance.

- Base model: `{base}`{f", revision `{revision}`" if revision else ""}
- Recipe: `{recipe_hash}`
- Scheduler: `FlowMatchEulerDiscreteScheduler`, shift {student.shift:g}, stochastic sampling;
  another scheduler gives other, worse pictures.

## Use

{how}:

```python
{given}import torch
from diffusers import FlowMatchEulerDiscreteScheduler, {family.pipeline}
from PIL import Image

photograph = Image.open("photograph.jpg").convert("RGB")
pipeline = {family.pipeline}.from_pretrained(
    {place}, torch_dtype=torch.{model.dtype}
)
pipeline.load_lora_weights(".", weight_name="{WEIGHTS_FILE}")
pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("scheduler")
image = pipeline(
    {_stock_arguments(family)},
    prompt={example},
    num_inference_steps={student.steps},
).images[0]
image.save("edited.png")
```

In ComfyUI load `{COMFYUI_FILE}`, the same LoRA in its keys (it does not read the scale of the
other file): {student.steps} steps, CFG 1, shift {student.shift:g}, and a sampler that draws fresh
noise at each step, as `lcm` does.

## Effects

Also in `{EFFECTS_FILE}`. The prompt is the trigger, then a caption.

| effect | trigger | prompt |
|---|---|---|
{rows}
{scores}"""


def _base_and_revision(path: str) -> tuple[str, str]:
    """What a base is called, and its revision: of the Hub alone, else empty."""
    if not path.startswith(HUB):
        return path, ""
    name, _, revision = path.removeprefix(HUB).partition("@")
    return name, revision


def _base_in_code(path: str) -> tuple[str, str, str]:
    """How the card says to run its code, the code's first lines, and what it calls the base."""
    base, revision = _base_and_revision(path)
    if path.startswith(HUB) or Path(path).is_absolute():
        at = f", revision={revision!r}" if revision else ""
        return "Run in this folder", "", f"{base!r}{at}"
    # Where it lies from here is another path on each machine, so the reader has to say it.
    why = (
        "Diffusers reads no bucket: put the path of a copy."
        if "://" in path
        else "Relative to where the run was started: put your own path."
    )
    how = "Run in this folder, with the base model's path on your machine as `BASE`"
    return how, f"# {why}\nBASE = {base!r}\n\n", "BASE"


def _stock_arguments(family: Family) -> str:
    """How the stock pipeline takes the picture, and that it edits without guidance of its own."""
    if family.guidance is None:
        return "image=[photograph],\n    true_cfg_scale=1.0"
    # Without a size this pipeline makes squares; it keeps the aspect ratio of what it is given.
    size = "width=photograph.width,\n    height=photograph.height"
    return f"image=photograph,\n    {size},\n    guidance_scale={family.guidance}"


def _cell(text: str) -> str:
    """Text within a Markdown table: no bars, no line ends, no tags."""
    words = " ".join(text.split())
    return words.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""
