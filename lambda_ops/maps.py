"""Lambdas of whole maps, by convolution and by FFT."""

import math
from collections.abc import Callable
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda_ops.chunks import in_chunks
from lambda_ops.recording import recomputed
from lambda_ops.sizes import Size, numbers


def map_output(name: str, query: Tensor, value: Tensor, table: Tensor, size: Size) -> Tensor:
    """Position output by "convolution" or by "fft".

    query (b, n, h, k), value (b, n, u, v), table (k, u, *odd sides) -> (b, n, h, v)
    """
    order = recomputed(partial(_map_order, MAP_LAMBDAS[name], size))
    return in_chunks(order, query, value, table, math.prod(size) * query.shape[3] * value.shape[3])


def _map_order(map_lambda: Callable, size: Size, query: Tensor, value: Tensor, table: Tensor) -> Tensor:
    b, n, h, k = query.shape
    # shapes of all that follows start at b, from which the older exporter to ONNX sees that it is open
    value = value.permute(0, 3, 2, 1).reshape(b, value.shape[3], value.shape[2], *size)
    position_lambda = map_lambda(value, table)  # (b, v, k, *size)
    # a copy even of one image, which reshape would view: products of other strides are done one by one
    position_lambda = position_lambda.flatten(3).permute(0, 3, 2, 1).clone(memory_format=torch.contiguous_format)
    position_lambda = position_lambda.view(b * n, k, -1)
    return torch.bmm(query.reshape(b * n, h, k), position_lambda).reshape(b, n, h, -1)


def _convolution_lambda(value: Tensor, table: Tensor) -> Tensor:
    """The values' v is folded into the batch: (b, v, u, *size), (k, u, *scope) -> (b, v, k, *size)."""
    convolution = (F.conv1d, F.conv2d, F.conv3d)[table.dim() - 3]
    padding = tuple(r // 2 for r in table.shape[2:])
    y = convolution(value.reshape(-1, *value.shape[2:]), table, padding=padding)
    return y.view(*value.shape[:2], *y.shape[1:])


def _fft_lambda(value: Tensor, table: Tensor) -> Tensor:
    """The same in frequencies, in float32 at the least: sums over a map overflow in half precision.

    Axis by axis, so that no transform runs over rows that are padding or about to be cut off.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    axes = table.dim() - 2
    scope, size = numbers(table.shape[2:]), numbers(value.shape[3:])
    padded = [fft_length(s + r // 2) for s, r in zip(size, scope, strict=True)]
    values = _frequencies(value.to(dtype), padded)  # (b, v, u, *f)
    kernels = _frequencies(table.to(dtype).flip(tuple(range(-axes, 0))), padded)  # (k, u, *f)
    products = (values[:, :, None, i] * kernels[:, i] for i in range(table.shape[1]))
    x = reduce(torch.add, products)  # (b, v, k, *f)
    for axis in range(-axes, -1):
        x = torch.fft.ifft(x, dim=axis).narrow(axis, scope[axis] // 2, size[axis])
    return torch.fft.irfft(x, padded[-1]).narrow(-1, scope[-1] // 2, size[-1]).to(value.dtype)


def _frequencies(x: Tensor, padded: list[int]) -> Tensor:
    x = torch.fft.rfft(x, padded[-1])
    for axis in range(-len(padded), -1):
        margin = [0, 0] * (-1 - axis) + [0, padded[axis] - x.shape[axis]]
        x = torch.fft.fft(F.pad(x, margin), dim=axis)  # padding by fft itself takes 4 times as long
    return x


MAP_LAMBDAS = {"convolution": _convolution_lambda, "fft": _fft_lambda}


def fft_length(length: int) -> int:
    """The next multiple of 4 with no prime factor above 5: 75 takes a quarter longer than 80."""
    length = -(-length // 4) * 4
    rest = length
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return length if rest == 1 else fft_length(length + 4)
