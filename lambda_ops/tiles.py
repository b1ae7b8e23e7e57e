"""Tiles: the positions of a map in pieces of one size, each with the positions of its context."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lambda_ops.sizes import Size


class Tiling(NamedTuple):
    """Cuts the positions into tiles; all the tiles share one dense embedding (t, c·u, k).

    Along an axis, a tile shorter than the map has a context wider than itself by (scope - 1), zero-padded at
    the borders; a tile as long as the map has the map itself as its context.
    """

    size: Size
    tile: Size
    scope: Size

    def halo(self) -> Size:
        return tuple(0 if t >= s else r // 2 for s, t, r in zip(*self, strict=True))

    def context(self) -> Size:
        return tuple(t + 2 * halo for t, halo in zip(self.tile, self.halo(), strict=True))

    def whole(self) -> bool:
        return self.tile == self.size

    def blocks(self) -> Size:
        return tuple(-(-s // t) for s, t in zip(self.size, self.tile, strict=True))

    def expand(self, table: Tensor) -> Tensor:
        """(k, u, *scope) -> (t, c·u, k): the embedding of every pair, zero outside the scope.

        Whole rows of k are gathered: 2 to 7 times as fast, backward too, as building Toeplitz matrices.
        """
        k = len(table)
        rows = F.pad(table.flatten(2).permute(2, 1, 0).flatten(1), (0, 0, 0, 1))  # (offsets + a zero, u·k)
        pairs = self._offsets(table.device)  # (t, c)
        return rows.index_select(0, pairs.flatten()).view(pairs.shape[0], -1, k)

    def _offsets(self, device: torch.device) -> Tensor:
        """Row of the flattened table for each pair (t, c); the row after the last where out of scope."""
        pairs = torch.zeros(1, 1, dtype=torch.long, device=device)
        inside = torch.ones(1, 1, dtype=torch.bool, device=device)
        for t, r, c, halo in zip(self.tile, self.scope, self.context(), self.halo(), strict=True):
            to = torch.arange(c, device=device) - halo
            offset = to - torch.arange(t, device=device).unsqueeze(1) + r // 2
            shape = len(pairs) * t, pairs.shape[1] * c
            pairs = (pairs[:, None, :, None] * r + offset[:, None]).view(shape)
            inside = (inside[:, None, :, None] & ((offset >= 0) & (offset < r))[:, None]).view(shape)
        return pairs.masked_fill(~inside, math.prod(self.scope))

    def group(self, x: Tensor) -> Tensor:
        """(b, n, h, k) -> (B, t, h, k) for B = b·tiles; the same where one tile is the map."""
        if self.whole():
            return x
        axes = len(self.size)
        ends = tuple((0, n * t - s) for s, t, n in zip(self.size, self.tile, self.blocks(), strict=True))
        grid = _pad(x.unflatten(1, self.size), ends)
        for axis in reversed(range(axes)):
            grid = grid.unflatten(1 + axis, (self.blocks()[axis], self.tile[axis]))
        # axes counted from the front, as ONNX has them
        grid = grid.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1, 2 * axes + 2)
        return grid.reshape(-1, math.prod(self.tile), *x.shape[2:])

    def ungroup(self, x: Tensor) -> Tensor:
        """The inverse of `group`."""
        if self.whole():
            return x
        axes = len(self.size)
        x = x.unflatten(1, self.tile).unflatten(0, (-1, *self.blocks()))  # (b, *blocks, *tile, h, k)
        x = x.permute(0, *(i for axis in range(1, axes + 1) for i in (axis, axes + axis)), 2 * axes + 1, 2 * axes + 2)
        for axis, length in enumerate(self.size, start=1):
            x = x.flatten(axis, axis + 1)
            if x.shape[axis] > length:
                x = x.narrow(axis, 0, length)
        return x.flatten(1, axes)

    def windows(self, value: Tensor) -> Tensor:
        """(b, m, u, v) -> (B, c·u, v): the context of every tile."""
        if self.whole():
            return value.flatten(1, 2)
        axes = len(self.size)
        x = _pad(value.unflatten(1, self.size), self._margins())
        for axis, (c, t) in enumerate(zip(self.context(), self.tile, strict=True), start=1):
            x = x.unfold(axis, c, t)
        blocks, context = range(1, axes + 1), range(axes + 3, 2 * axes + 3)
        x = x.permute(0, *blocks, *context, axes + 1, axes + 2)
        return x.reshape(-1, math.prod(self.context()) * value.shape[2], value.shape[3])

    def fold(self, grad: Tensor, u: int) -> Tensor:
        """The transpose of `windows`: (B, c·u, v) -> (b, m, u, v), summed where windows overlap.

        One addition for each tile length in a context, over all the tiles at once: 3 to 17 times as fast as
        PyTorch's `unfold_backward`.
        """
        if self.whole():
            return grad.unflatten(1, (-1, u))
        axes, v = len(self.size), grad.shape[-1]
        x = grad.reshape(-1, *self.blocks(), *self.context(), u * v)
        for axis in reversed(range(axes)):
            n, c, t = self.blocks()[axis], self.context()[axis], self.tile[axis]
            # (b, tiles of the axes before and of this one, their contexts, context of this one, ...)
            x = x.movedim(1 + axis, 1 + 2 * axis)
            steps = -(-c // t)
            folded = x.new_zeros(*x.shape[: 1 + 2 * axis], n + steps - 1, t, *x.shape[3 + 2 * axis :])
            for step in range(steps):
                piece = x.narrow(2 + 2 * axis, step * t, min(t, c - step * t))
                covered = folded.narrow(1 + 2 * axis, step, n).narrow(2 + 2 * axis, 0, piece.shape[2 + 2 * axis])
                covered.add_(piece)
            x = folded.flatten(1 + 2 * axis, 2 + 2 * axis)
        for axis, (length, (before, _)) in enumerate(zip(self.size, self._margins(), strict=True), start=1):
            x = x.narrow(axis, before, length)
        return x.flatten(1, axes).unflatten(2, (u, v))

    def _margins(self) -> tuple[tuple[int, int], ...]:
        return tuple(
            (halo, halo + n * t - s)
            for s, t, n, halo in zip(self.size, self.tile, self.blocks(), self.halo(), strict=True)
        )


def _pad(x: Tensor, margins: tuple[tuple[int, int], ...]) -> Tensor:
    """Zero-pad the spatial axes of (b, *size, ·, ·)."""
    if not any(map(any, margins)):
        return x
    return F.pad(x, [0, 0, 0, 0, *(side for margin in reversed(margins) for side in margin)])
