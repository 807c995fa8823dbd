"""FSDP2 over the student group: base, adapters, gradients and moments cut over its workers.

Each worker computes whole batches of its own, as without sharding; what it holds of a tensor is
its rows of the first dimension, gathered a block at a time for the forward and the backward. The
group's mean gradient arrives reduced, so a sharded trainer has no all-reduce of its own.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from pipeline.models.precision import precision_of

# ``read(name, first row, row after the last)`` gives these rows of a parameter of the base.
ReadRows = Callable[[str, int, int], Tensor]


def shard_transformer(transformer: nn.Module, device: torch.device, read: ReadRows | None) -> None:
    """Shard a transformer with its adapters over the process group, in place.

    The adapters are whole, alike in every process. The base is on the meta device: each process
    reads its own rows, and none ever holds more of the base than these. Without ``read`` the base
    stays whole in every process, as a quantised one must.

    transformer: diffusers', whose blocks are in its ``ModuleList`` s.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    dtype = precision_of(transformer)
    base = {p for name, p in transformer.named_parameters() if ".lora_" not in name}
    kept = base if read is None else set()
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        # Masters are gathered at the base's precision; their gradients are averaged in fp32.
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in _blocks(transformer):
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=kept)
    fully_shard(transformer, mesh=mesh, mp_policy=policy, ignored_params=kept)
    if read is None:
        return
    for module_name, module in transformer.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                assert isinstance(parameter, DTensor)
                rows = _own_rows(parameter)
                own_name = f"{module_name}.{name}".removeprefix(".")
                values = read(own_name, *rows).to(device, parameter.dtype)
                filled = nn.Parameter(_with_rows(parameter, values), requires_grad=False)
                setattr(module, name, filled)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of the group's, gathered; every worker must ask. Others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor is this worker's, laid out (and on the device) as ``like``.

    A tensor that is sharded already is this worker's part.
    """
    if isinstance(value, DTensor):
        return value
    if not isinstance(like, DTensor):
        return value.to(like.device)
    first, last = _own_rows(like)
    return _with_rows(like, value[first:last].to(like.device))


def _blocks(transformer: nn.Module) -> Iterable[nn.Module]:
    for child in transformer.children():
        if isinstance(child, nn.ModuleList):
            yield from child


def _own_rows(tensor: DTensor) -> tuple[int, int]:
    (placement,) = tensor.placements
    assert placement == Shard(0), placement
    # As torch.chunk cuts: equal chunks rounded up, so that the last may be short or empty.
    count, mesh = tensor.shape[0], tensor.device_mesh
    chunk = -(-count // mesh.size())
    first = min(count, chunk * mesh.get_local_rank())
    return first, min(count, first + chunk)


def _with_rows(like: DTensor, rows: Tensor) -> DTensor:
    return DTensor.from_local(
        rows.contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
