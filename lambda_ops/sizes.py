"""Lengths of the spatial axes."""

import torch
from torch import Tensor

Size = tuple[int, ...]  # one entry per spatial axis


def lengths(x: Tensor) -> Size:
    """The shape in numbers, for which `torch.jit.trace` has tensors: by numbers the way is chosen."""
    return tuple(map(int, x.shape)) if torch.jit.is_tracing() else tuple(x.shape)
