"""Which operations may be used: PyTorch's own alone where what is done is written down, or transformed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


def is_recorded() -> bool:
    """Whether operations are written down: by the compiler, or by `torch.jit.trace`, which can write no Python."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, jvp, …) or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def takes_any_operation() -> bool:
    """Whether nothing is written down or transformed: functions of our own and changes in place serve as well."""
    return not is_recorded() and not is_transformed()


def takes_functions() -> bool:
    """Whether autograd functions of our own and recomputation serve: the compiler looks into both, but no transform."""
    return torch.compiler.is_compiling() or takes_any_operation()


def in_pieces(fast: type[torch.autograd.Function], plain: Callable) -> Callable:
    """The order of work that goes piece by piece, or the same in one piece where that takes operations of our own."""
    if takes_any_operation():
        return fast.apply
    return lambda constant, *tensors: recomputed(partial(plain, constant))(*tensors)


def recomputed(order: Callable) -> Callable:
    """`order` whose backward pass computes the lambdas (b, n, k, v) again instead of keeping them."""
    if not takes_functions():
        return order

    def recomputed(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        return checkpoint(order, query, value, embedding, use_reentrant=False, preserve_rng_state=False)

    return recomputed


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast off for the device of `x`; the meta device has none."""
    # `torch.amp.is_autocast_available` would break the graph of PyTorch 2.6's compiler
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def takes_plain_gradients(grad: Tensor) -> bool:
    """Whether a backward pass is itself differentiated, or done for many `grad` at once (`is_grads_batched`)."""
    return torch.is_grad_enabled() or is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)


def differentiable_gradients(function: Callable, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `function`, by PyTorch's operations alone; None for what is frozen."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        y = function(*inputs)
    gradients = iter(torch.autograd.grad(y, wanted, grad, create_graph=twice))
    return tuple(next(gradients) if tensor.requires_grad else None for tensor in inputs)
