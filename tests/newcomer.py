"""A new user's folder: five LoRAs in four layouts, with pairs named in four ways."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from pipeline.miniature import photographs
from pipeline.miniature.bank import KEPT_TEACHERS
from pipeline.miniature.effects import KNOWN, true_samples
from pipeline.miniature.pictures import to_image
from pipeline.models.lora_formats import LoraModule, read_lora, write_lora

BASE = Path("pipeline/miniature/base")
EFFECTS = ("circle_mask", "cyanotype", "mirror_halves", "snow", "sunset")
# Whose prompt is written nowhere, so that the user has to.
BLANK = "mirror_halves"
SIDE = 64
# How each effect's pairs are called: (source, target), given a number.
PAIRS = {
    "circle_mask": ("circle_mask/pairs/{}_source.png", "circle_mask/pairs/{}_target.png"),
    "cyanotype": ("cyanotype/{}.png", "cyanotype/{}_edited.png"),
    "mirror_halves": ("mirror-halves-dataset/in_{}.png", "mirror-halves-dataset/out_{}.png"),
    "snow": ("snow_pairs/{}_source.png", "snow_pairs/{}_target.png"),
    "sunset": ("sunset/before/{}.png", "sunset/after/{}.png"),
}


def write_newcomer(folder: Path, pairs: int = 8, unlabelled: int = 10) -> Path:
    """Write it; ``unlabelled``: photographs without an edit. Returns ``folder``."""
    for name in EFFECTS:
        crops = photographs.crops("train", pairs, SIDE, 0)
        for number, (_, source) in enumerate(crops):
            target = true_samples(name, source, 1, number)[0]
            for place, picture in zip(PAIRS[name], (source, target), strict=True):
                path = folder / place.format(f"{number:03d}")
                path.parent.mkdir(parents=True, exist_ok=True)
                to_image(picture).save(path)
    for number, (_, picture) in enumerate(photographs.crops("train", unlabelled, SIDE, 1)):
        (folder / "photos").mkdir(exist_ok=True)
        to_image(picture).save(folder / "photos" / f"{number:03d}.png")
    _write_loras(folder)
    return folder


def modules_of(effect: str) -> dict[str, LoraModule]:
    """The kept teacher of an effect."""
    return read_lora(KEPT_TEACHERS / f"{effect}.safetensors", None).modules


def _write_loras(folder: Path) -> None:
    # diffusers, its prompt in a text beside it; an earlier checkpoint lies there, too.
    shutil.copy(KEPT_TEACHERS / "snow.safetensors", folder / "snow.safetensors")
    shutil.copy(KEPT_TEACHERS / "snow.safetensors", folder / "snow-000100.safetensors")
    (folder / "snow.txt").write_text(KNOWN["snow"].prompt)
    # ComfyUI, its prompt in the metadata.
    said = {"modelspec.trigger_phrase": KNOWN["sunset"].prompt}
    write_lora(
        folder / "qwen_edit_sunset-lora_v2.safetensors", modules_of("sunset"), said, "comfyui"
    )
    # Kohya, its prompt in the counts of the captions' parts.
    counts = json.dumps({"8_cyanotype": {KNOWN["cyanotype"].prompt: 8}})
    _write_kohya(folder / "cyanotype_kohya.safetensors", modules_of("cyanotype"), counts)
    # peft, its prompt as the captions of the pairs.
    write_lora(folder / "circle_mask" / "peft", modules_of("circle_mask"), {}, "peft")
    for target in (folder / "circle_mask" / "pairs").glob("*_target.png"):
        target.with_suffix(".txt").write_text(KNOWN["circle_mask"].prompt)
    write_lora(folder / "mirror_halves.safetensors", modules_of("mirror_halves"), {}, "comfyui")


def _write_kohya(path: Path, modules: dict[str, LoraModule], counts: str) -> None:
    tensors = {}
    for name, module in modules.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = module.down.contiguous()
        tensors[f"{stem}.lora_up.weight"] = module.up.contiguous()
        tensors[f"{stem}.alpha"] = module.down.new_tensor(module.scale * module.rank)
    save_file(tensors, path, metadata={"ss_tag_frequency": counts})
