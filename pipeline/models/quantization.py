"""A base of 8 bits a weight, through diffusers' torchao backend.

Weight-only: 8-bit weights with one scale a row, brought to the base's precision to be multiplied.
peft has a layer of its own for such weights (``TorchaoLoraLinear``), so adapters go on as ever;
gradients pass through the layer to them, and nothing asks for the weight's own.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

Quantize = Literal["int8", "float8"]
KINDS: tuple[Quantize, ...] = get_args(Quantize)


def quantization_config(kind: Quantize, keep: Sequence[str]) -> Any:
    """diffusers' configuration of a kind; the layers named in ``keep`` are left as they are.

    Raises:
        ValueError: torchao is not installed.
    """
    from diffusers import TorchAoConfig
    from diffusers.utils import is_torchao_available

    if not is_torchao_available():
        raise ValueError(
            f"model.quantize {kind} needs torchao: pip install 'collectionlora[quantize]'"
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    chosen = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    return TorchAoConfig(chosen, modules_to_not_convert=list(keep))
