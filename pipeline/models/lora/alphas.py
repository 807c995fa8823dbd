"""Alphas that a file keeps outside of its tensors: diffusers' metadata, peft's config."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.models.safetensors_files import AGAIN
from pipeline.problems import InputError, Problem

METADATA_KEY = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
_UNSUPPORTED = ("use_dora", "use_rslora", "use_qalora")


def declared_alphas(path: Path, metadata: Mapping[str, str]) -> Callable[[str], float | None]:
    """The alpha of a module as diffusers' metadata in the file or peft's config beside it says.

    peft reads the names in ``alpha_pattern`` as regular expressions. A file from outside does not
    get to run one here: a name may start with ``^`` and escape its dots, and is a name otherwise.

    Raises:
        InputError: settings that cannot be read, or of another kind of adapter.
    """
    config: Any = {}
    source = path
    patterns: dict[str, float] = {}
    try:
        if METADATA_KEY in metadata:
            recorded = json.loads(metadata[METADATA_KEY])
            config = {k.removeprefix("transformer."): v for k, v in recorded.items()}
        elif path.name == ADAPTER_FILE and (beside := path.with_name(CONFIG_FILE)).is_file():
            source = beside
            config = json.loads(beside.read_text(encoding="utf-8"))
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            patterns[_name_of(source, pattern)] = float(value)
        alpha = None if config.get("lora_alpha") is None else float(config["lora_alpha"])
        other = [k for k in _UNSUPPORTED if config.get(k)]
    except InputError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        what = f"LoRA settings cannot be read ({error})"
        raise InputError([Problem(str(source), "lora_alpha", None, what, AGAIN)]) from None
    if other:
        what = "LoRA variants are not supported"
        remedy = "train the adapter as a plain LoRA"
        raise InputError([Problem(str(source), other[0], True, what, remedy)])

    def declared(module: str) -> float | None:
        for pattern, value in patterns.items():
            if pattern.startswith("^"):
                if module == pattern[1:]:
                    return value
            elif module == pattern or module.endswith("." + pattern):
                return value
        return alpha

    return declared


def agreed_alpha(tensor: float | None, declared: float | None) -> float | None:
    """The alpha of a module, which tensors and settings may both give.

    Raises:
        ValueError: they differ.
    """
    if tensor is None or declared is None:
        return declared if tensor is None else tensor
    # Tensors may be saved in half precision.
    if not math.isclose(tensor, declared, rel_tol=2**-8) and not math.isnan(tensor):
        raise ValueError(f"{tensor:g} in the tensors, {declared:g} in the settings")
    return tensor


def _name_of(source: Path, pattern: str) -> str:
    name = pattern.replace("\\.", ".").removesuffix("$")
    if not re.fullmatch(r"\^?[\w.\-]+", name):
        what = "a regular expression as a module's name"
        remedy = "save the adapter with whole module paths in alpha_pattern"
        raise InputError([Problem(str(source), "alpha_pattern", pattern, what, remedy)])
    return name
