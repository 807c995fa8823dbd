"""Whether a LoRA fits a transformer."""

import json
import math
from pathlib import Path

import torch

from pipeline.models.families import FAMILIES, family_of
from pipeline.models.local import local_model
from pipeline.models.lora.report import shortened
from pipeline.models.lora.types import LoraFile, Shapes
from pipeline.models.safetensors_files import AGAIN
from pipeline.problems import InputError, Problem


def check_lora(file: LoraFile, shapes: Shapes) -> list[str]:
    """What keeps a LoRA from fitting a transformer; see :func:`lora_problems`."""
    return [f"{p.field}: {p.what}; {p.remedy}" for p in lora_problems(file, shapes)]


def lora_problems(file: LoraFile, shapes: Shapes | None) -> list[Problem]:
    """Unknown modules, wrong widths, ranks that differ, weights that are no finite numbers.

    ``shapes`` are the linear layers' (out, in), as from :func:`transformer_shapes`; None checks
    the LoRA by itself.
    """
    problems: list[Problem] = []

    def report(place: str, value: object, what: str, remedy: str) -> None:
        problems.append(Problem(str(file.path), place, value, what, remedy))

    for name, m in file.modules.items():
        (rank, width_in), (width_out, rank_up) = m.down.shape, m.up.shape
        if shapes is not None and name not in shapes:
            report(name, None, "the model has no such linear layer", "use a LoRA for this model")
        elif shapes is not None and (width_out, width_in) != shapes[name]:
            what = f"the model's layer is {shapes[name]} wide (out, in)"
            report(name, (width_out, width_in), what, "use a LoRA for this model")
        if rank != rank_up:
            what = f"lora_A has rank {rank}, lora_B has rank {rank_up}"
            report(name, None, what, AGAIN)
        for part, tensor in (("lora_A", m.down), ("lora_B", m.up)):
            if not torch.isfinite(tensor).all():
                place = f"{name}.{part}.weight"
                report(place, None, "NaN or infinite weights", "train or download it again")
        if m.alpha is not None and not (math.isfinite(m.alpha) and m.alpha > 0):
            what = "alpha must be a finite number above 0"
            report(f"{name}.alpha", m.alpha, what, "give the alpha that it was trained with")
    return shortened(problems)


def linear_shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of a model, by module path, with or without adapters on it."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, m in model.named_modules():
        # peft moves a layer to ``base_layer`` and puts the adapters' own layers beside it.
        if isinstance(m, torch.nn.Linear) and ".lora_" not in name:
            shapes[name.removesuffix(".base_layer")] = (m.out_features, m.in_features)
    return shapes


def transformer_shapes(folder: str | Path) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of the transformer of a diffusers folder, by module path.

    From ``transformer/config.json`` alone: no weights are read and no memory is taken.

    Raises:
        InputError (a ValueError): no such config, or not one of a known family's transformer.
    """
    path = local_model(folder) / "transformer" / "config.json"

    def refused(place: str, value: object, what: str) -> InputError:
        remedy = f"give a diffusers folder of one of {', '.join(FAMILIES)}"
        return InputError([Problem(str(path), place, value, what, remedy)])

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refused("", None, f"cannot be read as JSON ({error})") from None
    found = config.get("_class_name") if isinstance(config, dict) else None
    try:
        known = [family_of(folder).transformer]
    except ValueError:
        known = [family.transformer for family in FAMILIES.values()]
    if found not in known:
        raise refused("_class_name", found, f"not one of {', '.join(known)}")
    # Layers are built one by one, on no device: a wrong count must not take all day.
    for kind in ("num_layers", "num_single_layers"):
        layers = config.get(kind, 1)
        if not isinstance(layers, int) or not 1 <= layers <= 1000:
            raise refused(kind, layers, "must be a whole number from 1 to 1000")
    # Here, because importing diffusers takes seconds that a reader of LoRA files need not wait.
    import diffusers

    try:
        with torch.device("meta"):
            model = getattr(diffusers, found).from_config(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise refused("", None, f"not a transformer's config ({error})") from None
    return linear_shapes(model)
