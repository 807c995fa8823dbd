"""Tensors that may be cut over a group by rows (DTensor): gathered, and put back.

Nothing shards a trainer yet; plain tensors pass through.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def whole(tensor: Tensor) -> Tensor:
    """A tensor of the group's, gathered; every worker must ask. Others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor is this worker's, laid out (and on the device) as ``like``."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    first, last = _own_rows(like)
    return _with_rows(like, value[first:last].to(like.device))


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
