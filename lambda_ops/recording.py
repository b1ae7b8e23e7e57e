"""Which operations may be used: Python's own are left out where a compiler or a trace writes down what is done."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def is_recorded() -> bool:
    """Whether operations are written down: by the compiler, or by `torch.jit.trace`, which can write no Python."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def in_pieces(fast: type[torch.autograd.Function], plain: Callable) -> Callable:
    """The order of work that goes piece by piece, or, where operations are recorded, the same in one piece."""
    if not is_recorded():
        return fast.apply
    return lambda constant, *tensors: recomputed(partial(plain, constant))(*tensors)


def recomputed(order: Callable) -> Callable:
    """`order` whose backward pass computes the lambdas (b, n, k, v) again instead of keeping them."""
    if torch.jit.is_tracing():
        return order

    def recomputed(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        return checkpoint(order, query, value, embedding, use_reentrant=False, preserve_rng_state=False)

    return recomputed


def differentiable_gradients(function: Callable, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `function` that can themselves be differentiated; None for what is frozen."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return tuple(next(gradients) if tensor.requires_grad else None for tensor in inputs)
