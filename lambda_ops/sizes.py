"""Lengths of the spatial axes."""

from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, ...]  # one entry per spatial axis


def numbers(lengths: Sequence[int]) -> Size:
    """Lengths as plain numbers, by which the way is chosen: a trace has tensors for them, and the compiler symbols.

    The compiler makes a graph for each size, then. What exports a program keeps its symbols; see `are_symbols`.
    """
    if torch.jit.is_tracing():
        return tuple(map(int, lengths))
    if torch.compiler.is_dynamo_compiling():
        return tuple(len(range(length)) for length in lengths)  # a range takes the number, where int() keeps the symbol
    return tuple(lengths)


def are_symbols(size: Size) -> bool:
    """Whether a length is left open, as in a program that is exported for inputs of any size."""
    return any(isinstance(length, torch.SymInt) for length in size)


def pinned(x: Tensor, size: Size) -> Tensor:
    """x (b, c, *size); a trace of this refuses an input of another size, as what follows is for this one alone."""
    if torch.jit.is_tracing():
        for axis, length in enumerate(size, start=2):
            (x,) = x.split([length], axis)  # all of it; a split into other lengths is an error
    return x
