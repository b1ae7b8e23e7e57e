"""The projections' product."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from lambda_ops.modules import is_dense
from lambda_ops.recording import takes_any_operation


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias as `F.linear` has it, (…, c) and (o, c) -> (…, o), by the faster of the CPU's libraries.

    MKL, which `F.linear` calls, reaches 57 to 90 GFLOP/s per core on an AMD CPU, and oneDNN 79 to 103.
    """
    # rows: without gradients, `F.linear` of a strided x multiplies image by image, and copies the weights for each
    rows = x.reshape(-1, x.shape[-1])
    y = _onednn_product(rows, weight, bias) if _takes_onednn(x, weight) else F.linear(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def products(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x with each of the weights, by one product: 6 to 27 % less time for the three of a lambda layer."""
    if len({weight.dtype for weight in weights}) > 1:  # which cat would make one of
        return [linear(x, weight) for weight in weights]
    parts = linear(x, torch.cat(list(weights))).split([len(weight) for weight in weights], dim=-1)
    return [part.contiguous() for part in parts]  # batch norm takes twice as long over a slice


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN_LINEAR is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and is_dense(x)
        and is_dense(weight)
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and takes_any_operation()  # the compiler chooses among the libraries itself
    )


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled():
        return OneDNNProduct.apply(x, weight, bias)
    return ONEDNN_LINEAR(x, weight, bias, "none", [], "")  # in a backward pass, too: 0.2 ms less than by `apply`


class OneDNNProduct(torch.autograd.Function):
    """x·weightᵀ + bias, (m, c), (o, c) and (o) -> (m, o).

    Without `setup_context`, for which `apply` reads the signature of `forward` each time: 3 to 5 % of a training step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = _onednn_product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = grad.t() @ x if ctx.needs_input_grad[1] else None  # here MKL is as fast
        return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


def _find_onednn_linear() -> Any:
    """The operator that PyTorch's compiler calls for a linear layer on the CPU; None where this build has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is not None and operator not in flop_registry:  # it is there after a reload of this file
        register_flop_formula(operator)(lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0])
    return operator


ONEDNN_LINEAR = _find_onednn_linear()
