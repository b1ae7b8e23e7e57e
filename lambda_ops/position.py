"""Position outputs: queries applied to the position lambdas of relative and of absolute embeddings."""

import torch
from torch import Tensor

from lambda_ops.fourier import fourier_output
from lambda_ops.maps import MAP_LAMBDAS, map_output
from lambda_ops.orders import tiled_output
from lambda_ops.recording import is_recorded, without_autocast
from lambda_ops.rule import Way, choose_way
from lambda_ops.sizes import Size, are_symbols, numbers
from lambda_ops.tiles import Tiling


def relative_output(query: Tensor, value: Tensor, table: Tensor, size: Size, way: Way | None = None) -> Tensor:
    """Position output with E[n, m] = table[:, :, m - n + centre], zero outside the table.

    query (b, n, h, k), value (b, n, u, v), table (k, u, *odd sides) -> (b, n, h, v)
    """
    table = table.to(query.dtype)
    if are_symbols(size):  # the one way that is the same for all sizes
        return map_output("convolution", query, value, table, size)
    table = _middle(table, size)
    scope = numbers(table.shape[2:])
    way = _way_of_none(query, size) or way or _way_for(query, value, size, scope)
    if way.name == "fourier":
        with without_autocast(query):
            return fourier_output(query, value, table, size)
    if way.name in MAP_LAMBDAS:
        return map_output(way.name, query, value, table, size)
    tiling = Tiling(size, tuple(map(min, way.tile, size)), scope)
    return tiled_output(way.name, tiling, query, value, tiling.expand(table))


def absolute_output(query: Tensor, value: Tensor, embedding: Tensor, size: Size, way: Way | None = None) -> Tensor:
    """Position output with one embedding for every pair of positions.

    query (b, n, h, k), value (b, m, u, v), embedding (n, m, k, u) -> (b, n, h, v)
    """
    scope = tuple(2 * length - 1 for length in size)
    way = _way_of_none(query, size) or way or _way_for(query, value, size, scope, only_whole=True)
    expanded = embedding.to(query.dtype).transpose(2, 3).flatten(1, 2)  # (n, m·u, k)
    return tiled_output(way.name, Tiling(size, size, scope), query, value, expanded)


def _way_of_none(query: Tensor, size: Size) -> Way | None:
    """For an empty batch, a way of PyTorch's own operations, which take it; gradients are nought, and not missing.

    By tiles of one position, whose expanded embedding is as large as the table, however large the map.
    """
    # the compiler makes a graph of its own for it; an export shall be for any batch
    looks = torch.compiler.is_dynamo_compiling() or not is_recorded()
    return Way("lambda", (1,) * len(size)) if looks and len(query) == 0 else None


def _way_for(query: Tensor, value: Tensor, size: Size, scope: Size, only_whole: bool = False) -> Way:
    """The rule's choice for queries (b, n, h, k) and values (b, n, u, v); a trace is for use, in forward passes."""
    (h, k), (u, v) = numbers(query.shape[2:]), numbers(value.shape[2:])
    backward = torch.is_grad_enabled() and not torch.jit.is_tracing()
    way = choose_way(size, scope, h, k, v, u, device=query.device.type, backward=backward, only_whole=only_whole)
    if is_recorded() and torch.onnx.is_in_onnx_export() and not only_whole:
        # neither exporter writes an FFT, and the older one, which traces, no windows
        return Way("convolution") if way.name == "fft" or torch.jit.is_tracing() else way
    return way


def _middle(table: Tensor, size: Size) -> Tensor:
    """Drop the offsets that no two positions of the input have: at most 2·length - 1 per axis are left."""
    for axis, length in enumerate(size, start=2):
        excess = max(0, table.shape[axis] - (2 * length - 1)) // 2
        table = table.narrow(axis, excess, table.shape[axis] - 2 * excess)
    return table
