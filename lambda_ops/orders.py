"""Dense products between the positions of a tile and those of its context: queries first, or lambdas first."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lambda_ops.chunks import accumulate, in_chunks, most_floats
from lambda_ops.recording import differentiable_gradients, in_pieces, recomputed, takes_plain_gradients
from lambda_ops.tiles import Tiling


def tiled_output(name: str, tiling: Tiling, query: Tensor, value: Tensor, expanded: Tensor) -> Tensor:
    """Position output in "attention" or "lambda" order.

    query (b, n, h, k), value (b, m, u, v), expanded embedding (t, c·u, k) -> (b, n, h, v)
    """
    tiles, (_, c, k), v = math.prod(tiling.blocks()), expanded.shape, value.shape[3]
    if name == "attention":
        # windows may be 8 times as large as what is to stay in cache: they are read but once
        order: Callable = partial(in_pieces(AttentionOrder, _attention_order), tiling)
        return in_chunks(_ungrouped(order, tiling), query, value, expanded, -(-tiles * c * v // 8))
    order = recomputed(partial(_lambda_order, tiling))
    return in_chunks(_ungrouped(order, tiling), query, value, expanded, tiles * len(expanded) * k * v)


def _ungrouped(order: Callable, tiling: Tiling) -> Callable:
    """An order of work whose result is by position, (b, n, h, v), where it is by tile."""
    return lambda query, value, expanded: tiling.ungroup(order(query, value, expanded))


class AttentionOrder(torch.autograd.Function):
    """a = query·E, then a·value: in pieces of a that stay in cache, each computed again for the gradients.

    query (b, n, h, k), value (b, m, u, v), expanded embedding (t, c·u, k) -> (B, t, h, v). The result is left in tiles,
    since a view made in here could not be changed in place out there.
    """

    @staticmethod
    def forward(ctx, tiling: Tiling, query: Tensor, value: Tensor, expanded: Tensor) -> Tensor:
        ctx.tiling = tiling
        ctx.save_for_backward(query, value, expanded)
        queries, windows = tiling.group(query), tiling.windows(value)  # (B, t, h, k), (B, c·u, v)
        y = query.new_empty(*queries.shape[:3], value.shape[3])
        pieces = Pieces(queries, windows)
        for tile, blocks in pieces:
            attention = pieces.attention(_by_position(queries[blocks, tile]), expanded[tile])
            pieces.product_into(y[blocks, tile], _by_tile(attention, queries.shape[2]), windows[blocks])
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        tiling, saved = ctx.tiling, ctx.saved_tensors
        if takes_plain_gradients(grad):
            return None, *differentiable_gradients(partial(_attention_order, tiling), saved, grad)
        query, value, expanded = saved
        queries, windows = tiling.group(query), tiling.windows(value)  # (B, t, h, k), (B, c·u, v)
        grad = grad.contiguous()  # (B, t, h, v)
        grad_queries = torch.empty_like(queries)
        grad_windows, grad_expanded = torch.empty_like(windows), torch.empty_like(expanded)
        if tiling.whole():  # MKL adds to tall matrices (c·u, v) at half the speed that it has for their transposes
            grad_windows, grad_expanded = _transposed_like(windows), _transposed_like(expanded)
        pieces, h = Pieces(queries, windows), queries.shape[2]
        for tile, blocks in pieces:
            q, e, w = _by_position(queries[blocks, tile]), expanded[tile], windows[blocks]
            g = grad[blocks, tile].flatten(1, 2)  # (B, t·h, v)
            attention = pieces.attention(q, e)  # (t, h·B, c·u)
            by_tile = _by_tile(attention, h)
            accumulate(grad_windows[blocks], tile.start == 0, by_tile.transpose(1, 2), g)
            by_tile.copy_(pieces.product(g, w.transpose(1, 2)))  # now its gradient
            grad_queries[blocks, tile] = pieces.product(attention, e).unflatten(1, (h, -1)).permute(2, 0, 1, 3)
            accumulate(grad_expanded[tile], blocks.start == 0, attention.transpose(1, 2), q)
        return None, tiling.ungroup(grad_queries), tiling.fold(grad_windows, value.shape[2]), grad_expanded


def _transposed_like(x: Tensor) -> Tensor:
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _by_position(queries: Tensor) -> Tensor:
    """(B, t, h, k) -> (t, h·B, k)"""
    return queries.permute(1, 2, 0, 3).flatten(1, 2)


def _by_tile(attention: Tensor, h: int) -> Tensor:
    """A view of (t, h·B, c·u) as (B, t·h, c·u)."""
    return attention.unflatten(1, (h, -1)).flatten(0, 1).transpose(0, 1)


class Pieces:
    """Pairs (positions of the tile, tiles) whose attention (t, h·B, c·u) stays in cache, and that cache."""

    def __init__(self, queries: Tensor, windows: Tensor) -> None:
        tiles, t, h, _ = queries.shape
        width = h * windows.shape[1]
        most = max(1, most_floats(queries) // width)
        # as many tiles as positions, if there are: products with few rows run at a third of the speed
        tiles_each = min(tiles, math.isqrt(most))
        t_each = min(t, most // tiles_each)
        tiles_each = min(tiles, most // t_each)
        self.pieces = [(tile, some) for tile in _slices(t, t_each) for some in _slices(tiles, tiles_each)]
        width = max(width, h * windows.shape[2], h * queries.shape[3])
        self.buffers = queries.new_empty(2, t_each * tiles_each * width)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return iter(self.pieces)

    def attention(self, queries: Tensor, expanded: Tensor) -> Tensor:
        """(t, h·B, k) x (t, c·u, k) -> (t, h·B, c·u), which the next call overwrites."""
        return self._product(self.buffers[0], queries, expanded.transpose(1, 2))

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """left·right, which the next call overwrites."""
        return self._product(self.buffers[1], left, right)

    def product_into(self, whole: Tensor, left: Tensor, right: Tensor) -> None:
        """Write left·right, (i, j, l), to `whole`, which has more axes for the same."""
        if whole.is_contiguous():
            torch.bmm(left, right, out=whole.view(left.shape[0], left.shape[1], right.shape[2]))
        else:
            whole.copy_(self.product(left, right).view(whole.shape))

    @staticmethod
    def _product(buffer: Tensor, left: Tensor, right: Tensor) -> Tensor:
        # contiguous: into strided memory, PyTorch makes the products of a batch one by one
        shape = left.shape[0], left.shape[1], right.shape[2]
        return torch.bmm(left, right, out=buffer[: math.prod(shape)].view(shape))


def _slices(length: int, most: int) -> list[slice]:
    """Nearly equal pieces, none longer than `most`."""
    step = -(-length // -(-length // most))
    return [slice(start, start + step) for start in range(0, length, step)]


def _attention_order(tiling: Tiling, query: Tensor, value: Tensor, expanded: Tensor) -> Tensor:
    """`AttentionOrder` in one piece, of differentiable operations."""
    queries, windows = tiling.group(query), tiling.windows(value)  # (B, t, h, k), (B, c·u, v)
    t, h = queries.shape[1:3]
    attention = torch.bmm(_by_position(queries), expanded.transpose(1, 2))  # (t, h·B, c·u)
    y = torch.bmm(_by_tile(attention, h), windows)  # (B, t·h, v)
    return y.unflatten(1, (t, h))


def _lambda_order(tiling: Tiling, query: Tensor, value: Tensor, expanded: Tensor) -> Tensor:
    queries, windows = tiling.group(query), tiling.windows(value)  # (B, t, h, k), (B, c·u, v)
    _, t, _, k = queries.shape
    position_lambda = torch.matmul(expanded.transpose(1, 2).flatten(0, 1), windows)  # (B, t·k, v)
    y = torch.bmm(queries.flatten(0, 1), position_lambda.reshape(-1, k, windows.shape[2]))  # (B·t, h, v)
    return y.unflatten(0, (-1, t))
