"""Lambda layers (I. Bello, "LambdaNetworks", ICLR 2021): long-range interactions without attention.

One file, PyTorch alone. `LambdaLayer` takes maps, `LambdaLayer1d` sequences, `LambdaLayer3d` volumes.

    layer = LambdaLayer(64, input_size=32)              # global context
    layer = LambdaLayer(64, scope=7, intra_depth=4)     # lambda convolution, for inputs of any size
    y = layer(x)                                        # (b, 64, H, W) -> (b, 64, H, W)

Sizes, in comments and names throughout:
    b batch        n query positions   m context positions   d channels
    k key depth    v value depth       h heads               u intra-depth
    r scope: side of a local context
    t positions of a tile    c positions of a tile's context    B tiles of the whole batch
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial, reduce
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, register_flop_formula

Size = tuple[int, ...]  # one entry per spatial axis


class Way(NamedTuple):
    """How the position output is computed: "attention" or "lambda" (with a tile), "convolution", "fourier" or "fft"."""

    name: str
    tile: Size = ()


class LambdaLayer(nn.Module):
    """(b, dim, H, W) -> (b, dim_out, H, W): every position's query is applied to lambdas of its context.

        y[n, h] = (λ_c + λ_p[n])ᵀ q[n, h], the heads concatenated
        λ_c     = Σ_m Σ_u softmax_m(K)[m, :, u] V[m, :, u]ᵀ        content, one for all the queries
        λ_p[n]  = Σ_m Σ_u E[n, m, :, u] V[m, :, u]ᵀ [+ b 1ᵀ]       position; b (k) with `position_bias`

    paper  here                               shape
    X      x                                  b, dim, H, W; inside b, n, dim
    Q      norm_queries(to_queries(x))        b, n, h, k
    K      to_keys(x), softmax over m         b, m, k, u
    V      norm_values(to_values(x))          b, m, v, u     v = dim_out / heads; b, m, u, v from there on
    E      embedding, position="relative"     k, u, 2H-1, 2W-1; with a scope k, u, r, r: E[n, m] by m - n
                      position="absolute"     n, m, k, u
                      position="none"         none: λ_c alone

    A local scope takes inputs of any size, zero outside the map; content stays global. A global relative
    context takes inputs up to `input_size` (a smaller one uses the middle of the table), an absolute one that
    size alone; `resize_embedding` makes another. `content=False` leaves λ_c and `to_keys` out. Channels-last
    input is viewed, not copied; the output is channels-last in memory. To share an embedding, give the same
    `make_embedding(...)` to several layers. `position_bias` is the bias of the 3-D convolution by which other
    code makes λ_p: b[k] is added to λ_p[n, k, v] for every n and v. The paper has none. It is off by default,
    starts at zero, and is added to λ_c, since both are the same for every n.

    Cost of the position output per image, forward. `choose_way` picks, from measured costs.

    way                    multiplications        floats held, beside input and output
    lambda order           n·c·u·k·v + n·h·k·v    t·c·u·k embedding, n/t·c·u·v windows, n·k·v lambdas
    attention order        n·c·u·h·(k + v)        t·c·u·k embedding, n/t·c·u·v windows, a piece of n·h·c·u
    convolution            n·r²·u·k·v + n·h·k·v   n·k·v lambdas
    fourier, f = (W+r/2)/2 4f·H²·u·k·v + 2f·n·k·v 4f·H²·u·k embedding, 4f·H·k·v and n·k·v lambdas
    fft, N = (H + r/2)²    N·k·v·(log N + u)      about 4·N·k·v

    The first two are dense products between the t positions of a tile and the c positions of its context:
    the whole map (t = c = n) or, for a local scope, small tiles with a halo: t = 4·4, c = 10·10 for r = 7.
    Fourier order goes to frequencies along the map's last axis alone, both ways by a dense product with a
    Fourier matrix, and sums over the other axes as dense products, too, one for each of f frequencies.
    Attention order does fewer multiplications where h(k + v) < kv, and wins on the CPU with small maps and
    narrow scopes; Fourier order with maps of 16 and 32, the FFT with larger ones and wide scopes.

    The batch goes through in chunks that stay in cache, so that the products' intermediates exist for one
    chunk at a time. For the backward pass queries, values and embedding are kept, and all else is computed
    again (in attention order k/(4k + 3v) of the whole work): neither λ_p (b, n, k, v) nor attention
    (b, n, h, m) is ever kept.

    Differs from the paper: relative embeddings for a global context are a table over offsets, as in its
    experiments, not n·m·k·u free numbers (those are position="absolute"); batch norms run over batch and
    positions per channel; there is no context other than the input itself.
    """

    axes = 2

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        input_size: int | Sequence[int] | None = None,
        key_depth: int = 16,
        heads: int = 4,
        intra_depth: int = 1,
        scope: int | None = None,
        position: str = "relative",
        content: bool = True,
        embedding: nn.Parameter | None = None,
        position_bias: bool = False,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        for name, count in {
            "dim": dim,
            "dim_out": dim_out,
            "key_depth": key_depth,
            "heads": heads,
            "intra_depth": intra_depth,
        }.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1")
        if dim_out % heads:
            raise ValueError(f"heads ({heads}) must divide dim_out ({dim_out})")
        if position not in ("relative", "absolute", "none"):
            raise ValueError(f'position is {position!r}; it must be "relative", "absolute" or "none"')
        if position == "none" and not content:
            raise ValueError('content=False with position="none" leaves nothing to compute; keep one of them')
        if position_bias and not content:
            raise ValueError("position_bias=True needs content=True; it is added to the content lambda")
        self.dim, self.dim_out = dim, dim_out
        self.key_depth, self.value_depth = key_depth, dim_out // heads
        self.heads, self.intra_depth = heads, intra_depth
        self.scope, self.position, self.content = scope, position, content
        self._way: Way | None = None  # forces a way of computing, for tests, benchmarks and export

        h, k, v, u = heads, key_depth, self.value_depth, intra_depth
        self.to_queries = nn.Linear(dim, h * k, bias=False)
        self.to_keys = nn.Linear(dim, k * u, bias=False) if content else None
        self.to_values = nn.Linear(dim, v * u, bias=False)
        self.norm_queries = nn.BatchNorm1d(h * k)
        self.norm_values = nn.BatchNorm1d(v * u)

        if position == "none":
            _refuse_needless(scope=scope, embedding=embedding, position_bias=position_bias or None)
            self.input_size, self.embedding = None, None
        else:
            self.input_size = None if input_size is None else self._as_size(input_size)
            shape = self._embedding_shape(input_size, key_depth, intra_depth, scope, position)
            if embedding is not None and not isinstance(embedding, nn.Parameter):
                raise ValueError(f"embedding is a {type(embedding).__name__}; it must come from make_embedding")
            if embedding is not None and tuple(embedding.shape) != shape:
                raise ValueError(f"embedding has shape {tuple(embedding.shape)}; this layer needs {shape}")
            self.embedding = nn.Parameter(torch.empty(shape)) if embedding is None else embedding
        self._shares_embedding = embedding is not None
        self.position_bias = nn.Parameter(torch.empty(key_depth)) if position_bias else None
        self.reset_parameters()

    @classmethod
    def make_embedding(
        cls,
        *,
        input_size: int | Sequence[int] | None = None,
        key_depth: int = 16,
        intra_depth: int = 1,
        scope: int | None = None,
        position: str = "relative",
    ) -> nn.Parameter:
        """An embedding ~ N(0, 1) for several layers to share: pass it to each as `embedding`."""
        shape = cls._embedding_shape(input_size, key_depth, intra_depth, scope, position)
        return nn.Parameter(torch.randn(shape))

    @classmethod
    def _as_size(cls, size: int | Sequence[int]) -> Size:
        size = (size,) * cls.axes if isinstance(size, int) else tuple(size)
        if len(size) != cls.axes or min(size) < 1:
            raise ValueError(f"input_size is {size}; it must be {cls.axes} positive length(s), or one for all")
        return size

    @classmethod
    def _embedding_shape(
        cls,
        input_size: int | Sequence[int] | None,
        key_depth: int,
        intra_depth: int,
        scope: int | None,
        position: str,
    ) -> Size:
        if scope is not None:
            if scope < 1 or scope % 2 == 0:
                raise ValueError(f"scope is {scope}; it must be odd and positive, or None for a global context")
            if position != "relative":
                raise ValueError(f'scope={scope} needs position="relative", not {position!r}')
            return (key_depth, intra_depth, *(scope,) * cls.axes)
        if input_size is None:
            raise ValueError("input_size is missing; a global position context needs it (or give a scope)")
        size = cls._as_size(input_size)
        if position == "absolute":
            return (math.prod(size), math.prod(size), key_depth, intra_depth)
        return (key_depth, intra_depth, *(2 * length - 1 for length in size))

    def reset_parameters(self) -> None:
        """The paper's initialisation; a shared embedding was drawn where it was made and is left alone."""
        nn.init.normal_(self.to_queries.weight, std=(self.dim * self.key_depth) ** -0.5)
        if self.to_keys is not None:
            nn.init.normal_(self.to_keys.weight, std=self.dim**-0.5)
        nn.init.normal_(self.to_values.weight, std=self.dim**-0.5)
        self.norm_queries.reset_parameters()
        self.norm_values.reset_parameters()
        if self.embedding is not None and not self._shares_embedding:
            nn.init.normal_(self.embedding)
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)

    def forward(self, x: Tensor) -> Tensor:
        size = _checked_size(x, self.dim, self.axes, self.position, None if self.scope else self.input_size)
        x = x.flatten(2).transpose(1, 2)  # (b, n, d), a view of a channels-last input
        b, n = x.shape[0], x.shape[1]
        query, value, key = self._project(x)
        query = self.norm_queries(query.flatten(0, 1)).view(b, n, self.heads, self.key_depth)
        # the output channels of to_values are (v, u); v last, because whole rows of v are copied into windows
        value = self.norm_values(value.flatten(0, 1)).view(b, n, self.value_depth, self.intra_depth)
        value = value.transpose(2, 3).contiguous()
        outputs = []  # each (b, n, h, v)
        if key is not None:
            outputs.append(self._content(query, key.view(b, n, self.key_depth, self.intra_depth), value))
        if self.embedding is not None:
            position_output = relative_output if self.position == "relative" else absolute_output
            outputs.append(position_output(query, value, self.embedding, size, self._way))
        y = outputs[0] if len(outputs) == 1 else _added(*outputs)
        return y.flatten(2).unflatten(1, size).movedim(-1, 1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(b, n, d) -> queries, values and keys by one product: 6 to 27 % less time than by three."""
        layers = [layer for layer in (self.to_queries, self.to_values, self.to_keys) if layer is not None]
        projected = linear(x, torch.cat([layer.weight for layer in layers]))
        parts = projected.split([layer.out_features for layer in layers], dim=2)
        # contiguous: batch norm takes twice as long over a slice
        return parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous() if self.content else None

    def _content(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return content_output(query, key, value, self.position_bias)

    @torch.no_grad()
    def resize_embedding(self, new_size: int | Sequence[int]) -> None:
        """Interpolate a global embedding linearly to another input size; share a shared one anew."""
        if self.embedding is None or self.scope is not None:
            raise ValueError("resize_embedding needs a global position embedding; this layer takes any size as it is")
        new_size = self._as_size(new_size)
        old = self.embedding
        if self.position == "relative":
            new = _interpolate(old, tuple(2 * length - 1 for length in new_size))
        else:
            new = old.permute(2, 3, 0, 1)  # (k, u, n, m): first m is resized, then n
            for _ in range(2):
                new = _interpolate(new.unflatten(3, self.input_size), new_size).flatten(3).transpose(2, 3)
            new = new.permute(2, 3, 0, 1)
        self.embedding = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
        self.input_size = new_size

    def extra_repr(self) -> str:
        context = f"scope={self.scope}" if self.scope else f"input_size={self.input_size}"
        return (
            f"{self.dim}, {self.dim_out}, {context}, key_depth={self.key_depth}, heads={self.heads}, "
            f"intra_depth={self.intra_depth}, position={self.position!r}, content={self.content}"
            + (", position_bias=True" if self.position_bias is not None else "")
        )


class LambdaLayer1d(LambdaLayer):
    """`LambdaLayer` for sequences: (b, dim, L) -> (b, dim_out, L)."""

    axes = 1


class LambdaLayer3d(LambdaLayer):
    """`LambdaLayer` for volumes: (b, dim, D, H, W) -> (b, dim_out, D, H, W)."""

    axes = 3


def _refuse_needless(**arguments: object) -> None:
    for name, given in arguments.items():
        if given is not None:
            raise ValueError(f'{name} is given, but position="none" has no position embedding')


def _interpolate(table: Tensor, size: Size) -> Tensor:
    """(..., *old size) -> (..., *size), linearly, ends on ends."""
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    leading = table.shape[: -len(size)]
    table = table.reshape(1, -1, *table.shape[-len(size) :])
    return F.interpolate(table, size, mode=mode, align_corners=True).view(*leading, *size)


def _added(one: Tensor, other: Tensor) -> Tensor:
    """one + other; in place only without gradients, since autograd makes two copies for a view that is changed."""
    return one + other if torch.is_grad_enabled() or _is_recorded() else one.add_(other)


# ------------------------------------------------------------------------------------------------------------
# The projections' product


@torch.fx.wrap
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias as `F.linear` has it, (…, c) and (o, c) -> (…, o), by the faster of the CPU's libraries.

    MKL, which `F.linear` calls, reaches 57 to 90 GFLOP/s per core on an AMD CPU, and oneDNN 79 to 103.
    """
    # rows: without gradients, `F.linear` of a strided x multiplies image by image, and copies the weights for each
    rows = x.reshape(-1, x.shape[-1])
    y = _onednn_product(rows, weight, bias) if _takes_onednn(x, weight) else F.linear(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN_LINEAR is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not _is_recorded()  # the compiler chooses among the libraries itself
    )


def _is_recorded() -> bool:
    """Whether operations are written down: by the compiler, or by `torch.jit.trace`, which can write no Python."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


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


# ------------------------------------------------------------------------------------------------------------
# Content and position outputs. `fx.wrap`: a trace, such as torchvision's create_feature_extractor makes, has each
# function so marked as one step, since what they do depends on the input's size.


@torch.fx.wrap
def _checked_size(x: Tensor, dim: int, axes: int, position: str, limits: Size | None) -> Size:
    """The lengths of the spatial axes of an input that has `dim` channels and fits a global embedding's `limits`."""
    if x.dim() != axes + 2 or x.shape[1] != dim or 0 in x.shape:
        raise ValueError(f"input has shape {tuple(x.shape)}; it must be (batch, {dim}, {axes} length(s)), none 0")
    size = _shape(x)[2:]
    if limits is None or position == "none" or size == limits:
        return size
    covers = f"position embedding covers {limits} at most"
    if position == "absolute":
        covers = f"absolute position embedding needs {limits}"
    elif all(length <= limit for length, limit in zip(size, limits, strict=True)):
        return size
    raise ValueError(f"input has size {size}; this layer's {covers}: call resize_embedding({size}) first")


def _shape(x: Tensor) -> Size:
    """The shape in numbers, for which `torch.jit.trace` has tensors: by numbers the way is chosen."""
    return tuple(map(int, x.shape)) if torch.jit.is_tracing() else tuple(x.shape)


@torch.fx.wrap
def content_output(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """q·λ_c with λ_c = Σ_mu softmax_m(key)·value [+ bias 1ᵀ], one for all queries.

    query (b, n, h, k), key (b, m, k, u), value (b, m, u, v), bias (k) -> (b, n, h, v)
    """
    b, n, h, k = query.shape
    key = key.softmax(dim=1).to(value.dtype).transpose(2, 3).reshape(b, -1, k)  # (b, m·u, k)
    content_lambda = torch.bmm(key.transpose(1, 2), value.flatten(1, 2))  # (b, k, v)
    if bias is not None:
        content_lambda = content_lambda + bias.to(content_lambda.dtype).unsqueeze(1)
    return torch.bmm(query.reshape(b, n * h, k), content_lambda).reshape(b, n, h, -1)


@torch.fx.wrap
def relative_output(query: Tensor, value: Tensor, table: Tensor, size: Size, way: Way | None = None) -> Tensor:
    """Position output with E[n, m] = table[:, :, m - n + centre], zero outside the table.

    query (b, n, h, k), value (b, n, u, v), table (k, u, *odd sides) -> (b, n, h, v)
    """
    table = _middle(table, size).to(query.dtype)
    scope = _shape(table)[2:]
    way = way or _way_for(query, value, size, scope)
    if way.name == "fourier":
        with torch.autocast(query.device.type, enabled=False):
            return _fourier_output(query, value, table, size)
    if way.name in MAP_LAMBDAS:
        order = partial(_map_order, MAP_LAMBDAS[way.name], size)
        per_image = math.prod(size) * query.shape[3] * value.shape[3]
        return _in_chunks(_recomputed(order), query, value, table, per_image)
    tiling = Tiling(size, tuple(map(min, way.tile, size)), scope)
    return _tiled_output(way.name, tiling, query, value, tiling.expand(table))


@torch.fx.wrap
def absolute_output(query: Tensor, value: Tensor, embedding: Tensor, size: Size, way: Way | None = None) -> Tensor:
    """Position output with one embedding for every pair of positions.

    query (b, n, h, k), value (b, m, u, v), embedding (n, m, k, u) -> (b, n, h, v)
    """
    scope = tuple(2 * length - 1 for length in size)
    way = way or _way_for(query, value, size, scope, only_whole=True)
    expanded = embedding.to(query.dtype).transpose(2, 3).flatten(1, 2)  # (n, m·u, k)
    return _tiled_output(way.name, Tiling(size, size, scope), query, value, expanded)


def _way_for(query: Tensor, value: Tensor, size: Size, scope: Size, only_whole: bool = False) -> Way:
    """The rule's choice for queries (b, n, h, k) and values (b, n, u, v); a trace is for use, in forward passes."""
    (_, _, h, k), (_, _, u, v) = _shape(query), _shape(value)
    backward = torch.is_grad_enabled() and not torch.jit.is_tracing()
    return choose_way(size, scope, h, k, v, u, device=query.device.type, backward=backward, only_whole=only_whole)


def _middle(table: Tensor, size: Size) -> Tensor:
    """Drop the offsets that no two positions of the input have: at most 2·length - 1 per axis are left."""
    for axis, length in enumerate(size, start=2):
        excess = max(0, table.shape[axis] - (2 * length - 1)) // 2
        table = table.narrow(axis, excess, table.shape[axis] - 2 * excess)
    return table


# ------------------------------------------------------------------------------------------------------------
# Tiles: dense products between the positions of a tile and the positions of its context


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
        """(b, n, h, k) -> (B, t, h, k) for B = b·tiles; a view where one tile is the map."""
        axes = len(self.size)
        ends = tuple((0, n * t - s) for s, t, n in zip(self.size, self.tile, self.blocks(), strict=True))
        grid = _pad(x.unflatten(1, self.size), ends)
        for axis in reversed(range(axes)):
            grid = grid.unflatten(1 + axis, (self.blocks()[axis], self.tile[axis]))
        grid = grid.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), -2, -1)
        return grid.reshape(-1, math.prod(self.tile), *x.shape[2:])

    def ungroup(self, x: Tensor) -> Tensor:
        """The inverse of `group`."""
        axes = len(self.size)
        x = x.unflatten(1, self.tile).unflatten(0, (-1, *self.blocks()))  # (b, *blocks, *tile, h, k)
        x = x.permute(0, *(i for axis in range(1, axes + 1) for i in (axis, axes + axis)), -2, -1)
        for axis, length in enumerate(self.size, start=1):
            x = x.flatten(axis, axis + 1).narrow(axis, 0, length)
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


def _tiled_output(name: str, tiling: Tiling, query: Tensor, value: Tensor, expanded: Tensor) -> Tensor:
    tiles, (_, c, k), v = math.prod(tiling.blocks()), expanded.shape, value.shape[3]
    if name == "attention":
        # windows may be 8 times as large as what is to stay in cache: they are read but once
        order: Callable = partial(_order(AttentionOrder, _attention_order), tiling)
        return _in_chunks(order, query, value, expanded, -(-tiles * c * v // 8))
    order = _recomputed(partial(_lambda_order, tiling))
    return _in_chunks(order, query, value, expanded, tiles * len(expanded) * k * v)


class AttentionOrder(torch.autograd.Function):
    """a = query·E, then a·value: in pieces of a that stay in cache, each computed again for the gradients."""

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
        return tiling.ungroup(y)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        tiling, saved = ctx.tiling, ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward
            return None, *_differentiable_gradients(partial(_attention_order, tiling), saved, grad)
        query, value, expanded = saved
        queries, windows = tiling.group(query), tiling.windows(value)  # (B, t, h, k), (B, c·u, v)
        grad = tiling.group(grad).contiguous()  # (B, t, h, v)
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
            _accumulate(grad_windows[blocks], tile.start == 0, by_tile.transpose(1, 2), g)
            by_tile.copy_(pieces.product(g, w.transpose(1, 2)))  # now its gradient
            grad_queries[blocks, tile] = pieces.product(attention, e).unflatten(1, (h, -1)).permute(2, 0, 1, 3)
            _accumulate(grad_expanded[tile], blocks.start == 0, attention.transpose(1, 2), q)
        return None, tiling.ungroup(grad_queries), tiling.fold(grad_windows, value.shape[2]), grad_expanded


def _transposed_like(x: Tensor) -> Tensor:
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _accumulate(total: Tensor, first: bool, left: Tensor, right: Tensor) -> None:
    """total += left·right; the first time, whatever total holds is overwritten."""
    if total.stride(2) != 1:
        total, left, right = total.transpose(1, 2), right.transpose(1, 2), left.transpose(1, 2)
    torch.baddbmm(total, left, right, beta=0 if first else 1, out=total)


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
        most = max(1, (CACHED if queries.device.type == "cpu" else DEVICE_CHUNK) // width)
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
    return tiling.ungroup(y.unflatten(1, (t, h)))


def _order(fast: type[torch.autograd.Function], plain: Callable) -> Callable:
    """The order of work that goes piece by piece, or, where operations are recorded, the same in one piece."""
    if not _is_recorded():
        return fast.apply
    return lambda constant, *tensors: _recomputed(partial(plain, constant))(*tensors)


def _differentiable_gradients(function: Callable, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `function` that can themselves be differentiated; None for what is frozen."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return tuple(next(gradients) if tensor.requires_grad else None for tensor in inputs)


def _lambda_order(tiling: Tiling, query: Tensor, value: Tensor, expanded: Tensor) -> Tensor:
    queries, windows = tiling.group(query), tiling.windows(value)  # (B, t, h, k), (B, c·u, v)
    _, t, _, k = queries.shape
    position_lambda = torch.matmul(expanded.transpose(1, 2).flatten(0, 1), windows)  # (B, t·k, v)
    y = torch.bmm(queries.flatten(0, 1), position_lambda.reshape(-1, k, windows.shape[2]))  # (B·t, h, v)
    return tiling.ungroup(y.unflatten(0, (-1, t)))


# ------------------------------------------------------------------------------------------------------------
# Lambdas of whole maps: convolution and FFT


def _map_order(map_lambda: Callable, size: Size, query: Tensor, value: Tensor, table: Tensor) -> Tensor:
    b, n, h, k = query.shape
    position_lambda = map_lambda(value.permute(0, 3, 2, 1).unflatten(3, size), table)  # (b, v, k, *size)
    # a copy even of one image, which reshape would view: products of other strides are done one by one
    position_lambda = position_lambda.flatten(3).permute(0, 3, 2, 1).clone(memory_format=torch.contiguous_format)
    position_lambda = position_lambda.view(b * n, k, -1)
    return torch.bmm(query.reshape(b * n, h, k), position_lambda).reshape(b, n, h, -1)


def _convolution_lambda(value: Tensor, table: Tensor) -> Tensor:
    """The values' v is folded into the batch: (b, v, u, *size), (k, u, *scope) -> (b, v, k, *size)."""
    convolution = (F.conv1d, F.conv2d, F.conv3d)[table.dim() - 3]
    padding = tuple(r // 2 for r in table.shape[2:])
    return convolution(value.flatten(0, 1), table, padding=padding).unflatten(0, value.shape[:2])


def _fft_lambda(value: Tensor, table: Tensor) -> Tensor:
    """The same in frequencies, in float32 at the least: sums over a map overflow in half precision.

    Axis by axis, so that no transform runs over rows that are padding or about to be cut off.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    axes = table.dim() - 2
    scope, size = _shape(table)[2:], _shape(value)[3:]
    padded = [_fft_length(s + r // 2) for s, r in zip(size, scope, strict=True)]
    values = _frequencies(value.to(dtype), padded)  # (b, v, u, *f)
    kernels = _frequencies(table.to(dtype).flip(tuple(range(-axes, 0))), padded)  # (k, u, *f)
    products = [values[:, :, None, i] * kernels[:, i] for i in range(table.shape[1])]
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


def _fft_length(length: int) -> int:
    """The next multiple of 4 with no prime factor above 5: 75 takes a quarter longer than 80."""
    length = -(-length // 4) * 4
    rest = length
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return length if rest == 1 else _fft_length(length + 4)


# ------------------------------------------------------------------------------------------------------------
# Fourier order: frequencies along the last axis, dense products along the others


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
        if torch.is_grad_enabled():  # double backward
            return None, *_differentiable_gradients(partial(_fourier_order, inverse), saved, grad)
        with torch.autocast(grad.device.type, enabled=False):
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
            _accumulate(grad_embedding, images.start == 0, spectrum, values[:, :, columns].transpose(1, 2))
        return grad_query, grad_values, grad_embedding


class FourierLambdas:
    """Position lambdas of a few images at a time, in memory that the next ones overwrite."""

    def __init__(self, inverse: Tensor, query: Tensor, values: Tensor, embedding: Tensor) -> None:
        b, self.n, _, self.k = query.shape
        self.v = values.shape[2] // b
        self.inverse, self.values, self.embedding = inverse, values, embedding
        most = CACHED if query.device.type == "cpu" else DEVICE_CHUNK
        each = min(b, max(1, most // (self.n * self.k * self.v)))
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


def _fourier_output(query: Tensor, value: Tensor, table: Tensor, size: Size) -> Tensor:
    """`relative_output` in float32 at the least: sums over a row overflow in half precision."""
    wanted, dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, value, table = query.to(dtype), value.to(dtype), table.to(dtype)
    b, _, u, v = value.shape
    width = size[-1]
    length = _fourier_length(width, _shape(table)[-1])
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
    y = _order(FourierOrder, _fourier_order)(inverse, query, values, embedding)
    return y.unflatten(1, (width, -1)).transpose(1, 2).flatten(1, 2).to(wanted)


def _fourier_embedding(table: Tensor, rows: Size, length: int) -> Tensor:
    """(k, u, *scope) -> (f, 2·rows·k, 2·u·rows): lambdas' real and imaginary parts, from those of values."""
    for axis, side in enumerate(rows, start=2):
        table = F.pad(table.movedim(axis, -1), (side - 1 - table.shape[axis] // 2,) * 2).movedim(-1, axis)
    r = _shape(table)[-1]
    # turned round, as E[n, m] goes by m - n, and the kernel of a convolution by n - m
    spectrum = table.flatten(2, -2) if rows else table.unsqueeze(2)
    offsets = r // 2 - torch.arange(r, device=table.device)
    spectrum = spectrum @ _fourier(length, offsets, table).t()  # (k, u, offsets, 2·f)
    real, imaginary = spectrum.movedim(-1, 0).unflatten(0, (-1, 2)).unbind(1)  # (f, k, u, offsets)
    parts = torch.stack([real, -imaginary, imaginary, real], dim=1).flip(-1)
    parts = parts.unflatten(-1, table.shape[2:-1] or (1,)).unflatten(1, (2, 2))  # (f, 2, 2, k, u, *offsets)
    return _matrices(_hankel_view(parts)) if torch.jit.is_tracing() else Hankel.apply(parts)


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
    return view.flatten(1, (view.dim() - 1) // 2).flatten(2)


def _fourier(length: int, positions: Tensor, like: Tensor) -> Tensor:
    """(2·f, positions): cosines and sines of every frequency that a real signal of that length has.

    Made on the device: a copy from the host would make a GPU wait, and cannot be recorded in a CUDA graph.
    """
    turns = torch.arange(length // 2 + 1, device=positions.device).unsqueeze(1) * positions % length
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # which MPS has not
    angles = turns.to(wide) * (2 * math.pi / length)
    return torch.stack([angles.cos(), -angles.sin()], dim=1).flatten(0, 1).to(like.dtype)


def _fourier_length(width: int, r: int) -> int:
    """Odd, and so long that what is wrapped round stays outside the map."""
    return (width + r // 2) | 1


# ------------------------------------------------------------------------------------------------------------
# Chunks of the batch

# the most floats that a chunk's largest intermediate may have
# on the CPU, 4 MiB: on two cores 2**18 takes up to 5 % less time while they work together swiftly, and 10 to 25 % more
# in minutes in which short operations on both cores take longer
CACHED = 2**20
DEVICE_CHUNK = 2**26  # elsewhere, only to bound the memory: 256 MiB in float32


def _in_chunks(order: Callable, query: Tensor, value: Tensor, embedding: Tensor, per_image: int) -> Tensor:
    """The batch in pieces whose largest intermediate (`per_image` floats per image) stays in cache."""
    most = CACHED if query.device.type == "cpu" else DEVICE_CHUNK
    chunk = max(1, most // per_image)
    if _is_recorded() or chunk >= len(query):
        return order(query, value, embedding)
    chunks = zip(query.split(chunk), value.split(chunk), strict=True)
    return torch.cat([order(queries, values, embedding) for queries, values in chunks])


def _recomputed(order: Callable) -> Callable:
    """`order` whose backward pass computes the lambdas (b, n, k, v) again instead of keeping them."""
    if torch.jit.is_tracing():
        return order

    def recomputed(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        return checkpoint(order, query, value, embedding, use_reentrant=False, preserve_rng_state=False)

    return recomputed


# ------------------------------------------------------------------------------------------------------------
# The rule


class Costs(NamedTuple):
    """Nanoseconds per unit of work."""

    product: float  # one multiplication and addition of the forward pass, in either order
    attention: float  # one entry of the attention (t, h·B, c·u): written and read in each pass
    position_lambda: float  # one entry of λ_p (b, n, k, v)
    window: float  # one entry of the windows (B, c·u, v)
    embedding: float  # one entry of the expanded embedding, (t, c·u, k) or (f, 2·rows·k, 2·u·rows)
    tile: float
    transform: float  # one entry of (v, k, *f), padding included
    frequency_product: float  # likewise, for each of u
    convolution_product: float
    fourier_product: float  # one multiplication and addition of the forward pass in frequencies
    fourier_lambda: float  # one entry of λ_p (b, n, k, v)


# cpu: fitted to timings from 8×8 to 64×64, d 64 to 512, of two AVX-512 cores (Zen 4), float32, PyTorch 2.15, and then
# shifted by hand. `fit_costs.py` on the committed timings: above 1.1 times the fastest forced way for 1 of 32 shapes
# (forward alone: 3); costs fitted to these very timings are so for 2 (5).
# cuda: not measured; from an H100's data sheet (50 TFLOP/s in float32, 3 TB/s), four passes over every entry.
COSTS = {  # (device, whether a backward pass follows)
    ("cpu", True): Costs(0.053, 1.4, 6.8, 3.6, 1.5, 250, 2.3, 3.9, 0.77, 0.07, 3.0),
    ("cpu", False): Costs(0.0108, 0.284, 1.26, 0.218, 0.362, 0, 0.6, 1.0, 0.0113, 0.0212, 1.13),
    ("cuda", True): Costs(1.4e-4, 0.01, 0.01, 0.01, 0.01, 0, 0.01, 0.02, 1e-3, 2e-4, 0.02),
    ("cuda", False): Costs(5e-5, 0.003, 0.003, 0.003, 0.003, 0, 0.003, 0.007, 3e-4, 5e-5, 0.006),
}
NOMINAL_BATCH = 8  # images that share the expanding of the embedding: the way shall not depend on the batch
MOST_EXPANDED = 2**24  # floats of the expanded embedding: 64 MiB, and as much again for its gradient


@torch.compiler.assume_constant_result
def choose_way(
    size: Size,
    scope: Size,
    h: int,
    k: int,
    v: int,
    u: int,
    *,
    device: str = "cpu",
    backward: bool = True,
    only_whole: bool = False,
) -> Way:
    """The cheapest way by `cost`, among those whose expanded embedding is not too large."""
    return _cheapest(size, scope, h, k, v, u, device, backward, only_whole)


@lru_cache
def _cheapest(
    size: Size, scope: Size, h: int, k: int, v: int, u: int, device: str, backward: bool, only_whole: bool
) -> Way:
    tiles = [size] if only_whole else list(product(*({min(s, t) for t in (1, 2, 4, 8, s)} for s in size)))
    ways = [Way(name, tile) for name in ("attention", "lambda") for tile in sorted(tiles)]
    if not only_whole:
        ways = [way for way in [*ways, Way("fourier")] if _expanded(way, size, scope, k, u) <= MOST_EXPANDED]
        ways += [Way("convolution"), Way("fft")]
    costs = COSTS.get((device, backward), COSTS["cuda", backward])
    return min(ways, key=lambda way: cost(way, size, scope, h, k, v, u, costs))


def _expanded(way: Way, size: Size, scope: Size, k: int, u: int) -> int:
    """Entries of the expanded embedding."""
    if way.name == "fourier":
        frequencies = _fourier_length(size[-1], scope[-1]) // 2 + 1
        return frequencies * 4 * math.prod(size[:-1]) ** 2 * k * u
    return math.prod(way.tile) * math.prod(Tiling(size, way.tile, scope).context()) * k * u


def cost(way: Way, size: Size, scope: Size, h: int, k: int, v: int, u: int, costs: Costs) -> float:
    """Nanoseconds for forward, or forward and backward, of one image, projections and norms left out.

    Linear in the costs, by which `fit_costs.py` finds them.
    """
    position_lambda = costs.position_lambda * math.prod(size) * k * v
    if way.name == "convolution":
        return costs.convolution_product * math.prod(size) * math.prod(scope) * u * k * v + position_lambda
    if way.name == "fft":
        count = math.prod(_fft_length(s + r // 2) for s, r in zip(size, scope, strict=True))
        return count * k * v * (costs.transform + costs.frequency_product * u) + position_lambda
    expanded = _expanded(way, size, scope, k, u)
    expanding = costs.embedding * expanded / NOMINAL_BATCH
    if way.name == "fourier":
        frequencies = _fourier_length(size[-1], scope[-1]) // 2 + 1
        products = expanded * v + 2 * frequencies * math.prod(size) * k * v
        return costs.fourier_product * products + costs.fourier_lambda * math.prod(size) * k * v + expanding
    tiling = Tiling(size, way.tile, scope)
    t, c, tiles = math.prod(way.tile), math.prod(tiling.context()) * u, math.prod(tiling.blocks())
    if way.name == "attention":
        ordered = t * c * h * (costs.product * (k + v) + costs.attention)
    else:
        ordered = t * k * v * (costs.product * c + costs.position_lambda)
    cut = costs.window * c * v + costs.tile if tiles > 1 else 0  # one tile needs no copy
    return tiles * (ordered + cut) + expanding
