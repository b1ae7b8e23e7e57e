"""Work in pieces whose intermediates stay in cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from lambda_ops.recording import is_recorded

# the most floats that a piece's largest intermediate may have
# on the CPU, 4 MiB: on two cores 2**18 takes up to 5 % less time while they work together swiftly, and 10 to 25 % more
# in minutes in which short operations on both cores take longer
CACHED = 2**20
DEVICE_CHUNK = 2**26  # elsewhere, only to bound the memory: 256 MiB in float32


def most_floats(x: Tensor) -> int:
    """How large an intermediate may be on the device of `x`."""
    return CACHED if x.device.type == "cpu" else DEVICE_CHUNK


def in_chunks(order: Callable, query: Tensor, value: Tensor, embedding: Tensor, per_image: int) -> Tensor:
    """The batch in pieces whose largest intermediate (`per_image` floats per image) stays in cache."""
    chunk = max(1, most_floats(query) // per_image)
    if is_recorded() or chunk >= len(query):
        return order(query, value, embedding)
    chunks = zip(query.split(chunk), value.split(chunk), strict=True)
    return torch.cat([order(queries, values, embedding) for queries, values in chunks])


def accumulate(total: Tensor, first: bool, left: Tensor, right: Tensor) -> None:
    """total += left·right; the first time, whatever total holds is overwritten."""
    if total.stride(2) != 1:
        total, left, right = total.transpose(1, 2), right.transpose(1, 2), left.transpose(1, 2)
    torch.baddbmm(total, left, right, beta=0 if first else 1, out=total)
