"""Fourier order: frequencies along the last axis, dense products along the others."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda_ops.chunks import accumulate, most_floats
from lambda_ops.recording import (
    differentiable_gradients,
    in_pieces,
    takes_functions,
    takes_plain_gradients,
    without_autocast,
)
from lambda_ops.sizes import Size, numbers


class FourierOrder(torch.autograd.Function):
    """λ_p in frequencies along the last axis, back to its w positions, applied to the queries: a few images at a time.

    query (b, w·rows, h, k); embedding (f, 2·rows·k, 2·u·rows) and values (f, 2·u·rows, b·v) in frequencies, real and
    imaginary parts one after the other; inverse (w, 2·f) -> (b, w·rows, h, v)
    """

    @staticmethod
    def forward(ctx, inverse: Tensor, query: Tensor, values: Tensor, embedding: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, query, values, embedding)
        b, n, h, _ = query.shape
        y = query.new_empty(b, n, h, values.shape[2] // b)
        lambdas = FourierLambdas(inverse, query, values, embedding)
        for images, columns in lambdas.chunks:
            torch.bmm(query[images].flatten(0, 1), lambdas.from_values(columns), out=y[images].flatten(0, 1))
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inverse, *saved = ctx.saved_tensors
        with without_autocast(grad):
            if takes_plain_gradients(grad):
                return None, *differentiable_gradients(partial(_fourier_order, inverse), saved, grad)
            return None, *FourierOrder.gradients((inverse, *saved), grad)

    @staticmethod
    def gradients(saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        inverse, query, values, embedding = saved
        grad = grad.contiguous()
        grad_query, grad_values = torch.empty_like(query), torch.empty_like(values)
        grad_embedding = torch.empty_like(embedding)
        lambdas = FourierLambdas(inverse, query, values, embedding)
        for images, columns in lambdas.chunks:
            q, g = query[images].flatten(0, 1), grad[images].flatten(0, 1)
            position_lambda = lambdas.from_values(columns)
            torch.bmm(g, position_lambda.transpose(1, 2), out=grad_query[images].flatten(0, 1))
            torch.bmm(q.transpose(1, 2), g, out=position_lambda)  # from here on it is its gradient
            spectrum = lambdas.spectrum_gradient(position_lambda)  # (f, 2·rows·k, images·v)
            grad_values[:, :, columns] = torch.bmm(embedding.transpose(1, 2), spectrum)
            accumulate(grad_embedding, images.start == 0, spectrum, values[:, :, columns].transpose(1, 2))
        return grad_query, grad_values, grad_embedding


class FourierLambdas:
    """Position lambdas of a few images at a time, in memory that the next ones overwrite."""

    def __init__(self, inverse: Tensor, query: Tensor, values: Tensor, embedding: Tensor) -> None:
        b, self.n, _, self.k = query.shape
        self.v = values.shape[2] // b
        self.inverse, self.values, self.embedding = inverse, values, embedding
        each = min(b, max(1, most_floats(query) // (self.n * self.k * self.v)))
        images = [slice(start, min(start + each, b)) for start in range(0, b, each)]
        self.chunks = [(some, slice(some.start * self.v, some.stop * self.v)) for some in images]
        self.spectrum = query.new_empty(len(embedding) * embedding.shape[1] * each * self.v)
        self.by_position = query.new_empty(self.n * self.k * each * self.v)
        self.by_image = torch.empty_like(self.by_position) if each > 1 else self.by_position

    def from_values(self, columns: slice) -> Tensor:
        """(images·w·rows, k, v)"""
        values = self.values[:, :, columns]
        spectrum, by_position, by_image = self._views(values.shape[2])
        torch.bmm(self.embedding, values, out=spectrum)
        torch.mm(self.inverse, spectrum.view(self.inverse.shape[1], -1), out=by_position.view(len(self.inverse), -1))
        if self.by_image is not self.by_position:
            by_image.copy_(by_position.permute(2, 0, 1, 3))
        return by_image.flatten(0, 1)

    def spectrum_gradient(self, grad: Tensor) -> Tensor:
        """From the gradient of what `from_values` has given, in its place: (f, 2·rows·k, images·v)"""
        spectrum, by_position, by_image = self._views(len(grad) // self.n * self.v)
        if self.by_image is not self.by_position:
            by_position.copy_(by_image.permute(1, 2, 0, 3))
        torch.mm(
            self.inverse.t(), by_position.view(len(self.inverse), -1), out=spectrum.view(self.inverse.shape[1], -1)
        )
        return spectrum

    def _views(self, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """(f, 2·rows·k, images·v), (w·rows, k, images, v) and (images, w·rows, k, v), of so many images·v."""
        count = self.n * self.k * columns
        spectrum = self.spectrum[: len(self.embedding) * self.embedding.shape[1] * columns]
        return (
            spectrum.view(len(self.embedding), -1, columns),
            self.by_position[:count].view(self.n, self.k, -1, self.v),
            self.by_image[:count].view(-1, self.n, self.k, self.v),
        )


def _fourier_order(inverse: Tensor, query: Tensor, values: Tensor, embedding: Tensor) -> Tensor:
    """`FourierOrder` in one piece, of differentiable operations."""
    b, n, _, k = query.shape
    spectrum = torch.bmm(embedding, values)  # (f, 2·rows·k, b·v)
    position_lambda = torch.mm(inverse, spectrum.reshape(inverse.shape[1], -1)).view(n, k, b, -1)
    return torch.matmul(query, position_lambda.permute(2, 0, 1, 3))


def fourier_output(query: Tensor, value: Tensor, table: Tensor, size: Size) -> Tensor:
    """Position output in frequencies, in float32 at the least: sums over a row overflow in half precision.

    query (b, n, h, k), value (b, n, u, v), table (k, u, *odd sides) -> (b, n, h, v)
    """
    wanted, dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, value, table = query.to(dtype), value.to(dtype), table.to(dtype)
    b, _, u, v = value.shape
    width = size[-1]
    length = fourier_length(width, numbers(table.shape[2:])[-1])
    matrix = _fourier(length, torch.arange(width, device=table.device), table)  # (2·f, width)
    values = torch.matmul(matrix, value.reshape(b, -1, width, u * v).flip(1))  # (b, rows, 2·f, u·v)
    values = values.reshape(*values.shape[:2], -1, 2, u, v).permute(2, 3, 4, 1, 0, 5)  # (f, 2, u, rows, b, v)
    values = values.reshape(len(values), -1, b * v)
    embedding = _fourier_embedding(table, size[:-1], length)
    # every frequency but 0 stands for its negative, too: the length is odd
    weight = matrix.new_full((len(values), 2, 1), 2 / length)
    weight[0] /= 2
    inverse = (matrix * weight.flatten(0, 1)).t()
    query = query.unflatten(1, (-1, width)).transpose(1, 2).flatten(1, 2)  # (b, width·rows, h, k)
    y = in_pieces(FourierOrder, _fourier_order)(inverse, query, values, embedding)
    return y.unflatten(1, (width, -1)).transpose(1, 2).flatten(1, 2).to(wanted)


def _fourier_embedding(table: Tensor, rows: Size, length: int) -> Tensor:
    """(k, u, *scope) -> (f, 2·rows·k, 2·u·rows): lambdas' real and imaginary parts, from those of values."""
    for axis, side in enumerate(rows, start=2):
        table = F.pad(table.movedim(axis, -1), (side - 1 - table.shape[axis] // 2,) * 2).movedim(-1, axis)
    r = numbers(table.shape[2:])[-1]
    # turned round, as E[n, m] goes by m - n, and the kernel of a convolution by n - m
    spectrum = table.flatten(2, -2) if rows else table.unsqueeze(2)
    offsets = r // 2 - torch.arange(r, device=table.device)
    spectrum = spectrum @ _fourier(length, offsets, table).t()  # (k, u, offsets, 2·f)
    real, imaginary = spectrum.movedim(-1, 0).unflatten(0, (-1, 2)).unbind(1)  # (f, k, u, offsets)
    parts = torch.stack([real, -imaginary, imaginary, real], dim=1).flip(-1)
    parts = parts.unflatten(-1, table.shape[2:-1] or (1,)).unflatten(1, (2, 2))  # (f, 2, 2, k, u, *offsets)
    if max(rows, default=1) > 1 and takes_functions():
        return Hankel.apply(parts)
    return _matrices(_hankel_view(parts))


class Hankel(torch.autograd.Function):
    """(f, 2, 2, k, u, *offsets) -> (f, 2·rows·k, 2·u·rows), the entry of rows i and j being that of offset i + j.

    `unfold` makes the same, but its gradient takes 3 to 17 times as long as these additions.
    """

    @staticmethod
    def forward(ctx, parts: Tensor) -> Tensor:
        view = _hankel_view(parts)
        ctx.shape = view.shape
        return _matrices(view)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        axes = (len(ctx.shape) - 5) // 2
        k, values, u = range(2 + axes, 5 + axes)
        grad = grad.reshape(ctx.shape).permute(0, 1, values, k, u, *range(2, 2 + axes), *range(u + 1, u + 1 + axes))
        for axis in reversed(range(axes)):
            i, j = 5 + axis, 5 + 2 * axis  # of grad, and of one row of it
            side = grad.shape[i]
            row = grad.select(i, 0)
            folded = grad.new_zeros(*row.shape[:j], 2 * side - 1, *row.shape[j + 1 :])
            for start in range(side):
                folded.narrow(j, start, side).add_(grad.select(i, start))
            grad = folded
        return grad


def _hankel_view(parts: Tensor) -> Tensor:
    """(f, 2, 2, k, u, *offsets) -> (f, 2, *rows, k, 2, u, *rows)"""
    rows = [count // 2 + 1 for count in parts.shape[5:]]
    for axis, side in enumerate(rows, start=5):
        parts = parts.unfold(axis, side, 1)  # the last axis is j
    axes = range(5, 5 + len(rows))
    return parts.permute(0, 1, *axes, 3, 2, 4, *(axis + len(rows) for axis in axes))


def _matrices(view: Tensor) -> Tensor:
    """(f, 2, *rows, k, 2, u, *rows) -> (f, 2·rows·k, 2·u·rows)"""
    last = (view.dim() - 1) // 2 + 1  # in one step, whose copy is no view
    return view.reshape(len(view), math.prod(view.shape[1:last]), math.prod(view.shape[last:]))


def _fourier(length: int, positions: Tensor, like: Tensor) -> Tensor:
    """(2·f, positions): cosines and sines of every frequency that a real signal of that length has.

    Made on the device: a copy from the host would make a GPU wait, and cannot be recorded in a CUDA graph.
    """
    turns = torch.arange(length // 2 + 1, device=positions.device).unsqueeze(1) * positions % length
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # which MPS has not
    angles = turns.to(wide) * (2 * math.pi / length)
    return torch.stack([angles.cos(), -angles.sin()], dim=1).flatten(0, 1).to(like.dtype)


def fourier_length(width: int, r: int) -> int:
    """Odd, and so long that what is wrapped round stays outside the map."""
    return (width + r // 2) | 1
