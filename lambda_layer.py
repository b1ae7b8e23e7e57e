"""Lambda layers (I. Bello, "LambdaNetworks", ICLR 2021): long-range interactions without attention.

This file and the folder `lambda_ops`, PyTorch alone. `LambdaLayer` takes maps, `LambdaLayer1d` sequences, `3d` volumes.

    layer = LambdaLayer(64, input_size=32)              # global context
    layer = LambdaLayer(64, scope=7, intra_depth=4)     # lambda convolution, for inputs of any size
    y = layer(x)                                        # (b, 64, H, W) -> (b, 64, H, W)

Sizes, in comments and names throughout:
    b batch        n query positions   m context positions   d channels
    k key depth    v value depth       h heads               u intra-depth
    r scope: side of a local context
"""

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambda_ops.linear import products
from lambda_ops.modules import is_plain
from lambda_ops.position import absolute_output, relative_output
from lambda_ops.recording import takes_any_operation
from lambda_ops.rule import Way
from lambda_ops.sizes import Size, are_symbols, numbers, pinned

# to a trace, such as torchvision's create_feature_extractor makes, each function so marked is one step, since what it
# does depends on the input's size
torch.fx.wrap("products")
torch.fx.wrap("relative_output")
torch.fx.wrap("absolute_output")
torch.fx.wrap("pinned")


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

    Args:
        dim: d, channels of the input.
        dim_out: channels of the output, a multiple of `heads`; None: as many as of the input.
        input_size: lengths, or one for all axes, of the largest map that a global context takes: a relative one takes
            smaller maps too, by the middle of its table, an absolute one that size alone. Not needed with a scope.
        key_depth: k, channels of a query and a key.
        heads: h, queries of a position, which share its lambda; v = dim_out / h.
        intra_depth: u, keys and values of a position.
        scope: r, odd side of the window that λ_p sums up, zero outside the map; None: the whole map, as for λ_c.
        position: "relative", "absolute", which takes no scope, or "none": the kind of E above.
        content: whether there is λ_c; False leaves out `to_keys`.
        embedding: what `make_embedding` has made with the same settings, to be shared by several layers; None: an own.
        position_bias: add a learnt b[k] to every λ_p[n, k, v], as code does that makes λ_p by a 3-D convolution with
            a bias. The paper has none. It starts at zero, and is added to λ_c, since both are the same for every n.
        device, dtype: of the parameters.

    Raises:
        ValueError: the arguments contradict each other, or the input does not fit them.

    Channels-last input is viewed, not copied; the output is channels-last in memory. The cheapest of several ways
    computes the position output, by measured costs: `lambda_ops` has them all.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim_out = dim if dim_out is None else dim_out
        counts = {"dim": dim, "dim_out": dim_out, "key_depth": key_depth, "heads": heads, "intra_depth": intra_depth}
        for name, count in counts.items():
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
        self.to_queries = nn.Linear(dim, h * k, bias=False, **factory)
        self.to_keys = nn.Linear(dim, k * u, bias=False, **factory) if content else None
        self.to_values = nn.Linear(dim, v * u, bias=False, **factory)
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[self.axes - 1]
        self.norm_queries, self.norm_values = norm(h * k, **factory), norm(v * u, **factory)

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
            self.embedding = nn.Parameter(torch.empty(shape, **factory)) if embedding is None else embedding
        self.position_bias = nn.Parameter(torch.empty(key_depth, **factory)) if position_bias else None
        self._initialise()
        if self.embedding is not None and embedding is None:
            nn.init.normal_(self.embedding)

    @classmethod
    def make_embedding(
        cls,
        *,
        input_size: int | Sequence[int] | None = None,
        key_depth: int = 16,
        intra_depth: int = 1,
        scope: int | None = None,
        position: str = "relative",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Parameter:
        """An embedding ~ N(0, 1) for several layers to share: pass it to each as `embedding`."""
        shape = cls._embedding_shape(input_size, key_depth, intra_depth, scope, position)
        return nn.Parameter(torch.randn(shape, device=device, dtype=dtype))

    @classmethod
    def _as_size(cls, given: int | Sequence[int], name: str = "input_size") -> Size:
        """One length for each axis; what is given for it is refused by the name that the caller knows."""
        lengths: Any = given
        with suppress(TypeError):  # where it is not one for all
            lengths = (operator.index(lengths),) * cls.axes
        try:
            size = tuple(map(operator.index, lengths))
        except TypeError:  # no whole numbers
            size = ()
        if len(size) != cls.axes or min(size) < 1:
            raise ValueError(f"{name} is {given!r}; it must be {cls.axes} positive whole number(s), or one for all")
        return size

    @classmethod
    def _embedding_shape(
        cls, input_size: int | Sequence[int] | None, key_depth: int, intra_depth: int, scope: int | None, position: str
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
        """The paper's initialisation, of a shared embedding too."""
        self._initialise()
        if self.embedding is not None:
            nn.init.normal_(self.embedding)

    def _initialise(self) -> None:
        nn.init.normal_(self.to_queries.weight, std=(self.dim * self.key_depth) ** -0.5)
        if self.to_keys is not None:
            nn.init.normal_(self.to_keys.weight, std=self.dim**-0.5)
        nn.init.normal_(self.to_values.weight, std=self.dim**-0.5)
        for norm in (self.norm_queries, self.norm_values):
            if hasattr(norm, "reset_parameters"):  # which an identity has not
                norm.reset_parameters()
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)

    def forward(self, x: Tensor) -> Tensor:
        size = _checked_size(x, self.dim, self.axes, self.position, None if self.scope else self.input_size)
        last = self.axes + 1  # the axis, counted from the front, as ONNX has it
        x = pinned(x, size).movedim(1, last)  # (b, *size, d), a view of a channels-last input
        query, value, key = self._project(x)
        query = _by_position(self._normalised(self.norm_queries, query), self.heads, self.key_depth)
        # the output channels of to_values are (v, u); v last, because whole rows of v are copied into windows
        value = _by_position(self._normalised(self.norm_values, value), self.value_depth, self.intra_depth)
        value = value.transpose(2, 3).contiguous()
        outputs = []  # each (b, n, h, v)
        if key is not None:
            key = _by_position(key, self.key_depth, self.intra_depth)
            outputs.append(content_output(query, key, value, self.position_bias))
        if self.embedding is not None:
            position_output = relative_output if self.position == "relative" else absolute_output
            outputs.append(position_output(query, value, self.embedding, size, self._way))
        y = outputs[0] if len(outputs) == 1 else _added(*outputs)
        return y.flatten(2).unflatten(1, size).movedim(last, 1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(b, *size, d) -> queries, values and keys, (b, *size, …) each."""
        layers = [layer for layer in (self.to_queries, self.to_values, self.to_keys) if layer is not None]
        if all(is_plain(layer, nn.Linear) and layer.bias is None for layer in layers):
            parts = products(x, [layer.weight for layer in layers])
        else:
            parts = [layer(x) for layer in layers]
        return parts[0], parts[1], parts[2] if self.to_keys is not None else None

    def _normalised(self, norm: nn.Module, x: Tensor) -> Tensor:
        """(b, *size, c) -> (b, *size, c), by a norm that is given a map (b, c, *size), channels last."""
        if self.axes == 1 and is_plain(norm, nn.BatchNorm1d):  # a third of the time that it takes over a strided map
            return norm(x.flatten(0, 1)).view_as(x)
        # under autocast some norms give float32 (frozen ones; on CUDA group and layer norms): the other may not
        return norm(x.movedim(self.axes + 1, 1)).movedim(1, self.axes + 1).to(x.dtype)

    @torch.no_grad()
    def resize_embedding(self, new_size: int | Sequence[int]) -> None:
        """Interpolate a global embedding linearly to another input size.

        The parameter stays the same object, so an optimizer that has it trains it on, and layers that share it still
        do: call it for each of them. What an optimizer keeps of the parameter has the old shape; let go of it by
        `optimizer.state.pop(layer.embedding, None)`. `resnet_lambda.resize` does all of that for a whole network.

        Raises:
            ValueError: the layer has no global embedding, and takes any size as it is; or no such size is possible.
        """
        if self.embedding is None or self.input_size is None or self.scope is not None:
            raise ValueError("resize_embedding needs a global position embedding; this layer takes any size as it is")
        new_size = self._as_size(new_size, "new_size")
        # a layer that shares it may have been there; its shape does not tell, since (4, 6) and (6, 4) are 24 positions
        old_size = getattr(self.embedding, "map_size", self.input_size)
        if old_size != new_size:
            resized = resized_embedding(self.embedding, old_size, new_size, self.position)
            # not by `.data`, after which autograd refuses gradients of the new shape while a graph of the old one lives
            self.embedding.set_(resized)  # type: ignore[call-overload]
            self.embedding.map_size, self.embedding.grad = new_size, None  # type: ignore[attr-defined]
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


def resized_embedding(embedding: Tensor, old_size: Size, new_size: Size, position: str) -> Tensor:
    """A global embedding interpolated from one input size to another.

    relative (k, u, *(2·old − 1)) -> (k, u, *(2·new − 1)); absolute (n, n, k, u) -> (n', n', k, u)
    """
    if position == "relative":
        return _interpolate(embedding, tuple(2 * length - 1 for length in new_size))
    new = embedding.permute(2, 3, 0, 1)  # (k, u, n, m): first m is resized, then n
    for _ in range(2):
        new = _interpolate(new.unflatten(3, old_size), new_size).flatten(3).transpose(2, 3)
    return new.permute(2, 3, 0, 1).contiguous()


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
    return one.add_(other) if takes_any_operation() and not torch.is_grad_enabled() else one + other


@torch.fx.wrap
def _checked_size(x: Tensor, dim: int, axes: int, position: str, limits: Size | None) -> Size:
    """The lengths of the spatial axes of an input that has `dim` channels and fits a global embedding's `limits`."""
    if x.dim() != axes + 2 or x.shape[1] != dim or 0 in x.shape[2:]:
        raise ValueError(f"input has shape {tuple(x.shape)}; it must be (batch, {dim}, {axes} length(s)), none 0")
    size = numbers(x.shape[2:])
    if limits is None or position == "none":
        return size
    if are_symbols(size):
        raise ValueError("a program for inputs of any size needs a local context: give a scope, or export for one size")
    if size == limits:
        return size
    covers = f"position embedding covers {limits} at most"
    if position == "absolute":
        covers = f"absolute position embedding needs {limits}"
    elif all(length <= limit for length, limit in zip(size, limits, strict=True)):
        return size
    mend = f"call resize_embedding({size}) first, on the layer itself and not on a trace of it"
    raise ValueError(f"input has size {size}; this layer's {covers}: {mend}")


@torch.fx.wrap
def _by_position(x: Tensor, *depths: int) -> Tensor:
    """(b, *size, c) -> (b, n, *depths), contiguous."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), *depths).contiguous()


@torch.fx.wrap
def content_output(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """q·λ_c with λ_c = Σ_mu softmax_m(key)·value [+ bias 1ᵀ], one for all queries.

    query (b, n, h, k), key (b, m, k, u), value (b, m, u, v), bias (k) -> (b, n, h, v)
    """
    b, n, h, _ = query.shape
    key = key.softmax(dim=1).to(value.dtype).transpose(2, 3).flatten(1, 2)  # (b, m·u, k)
    content_lambda = torch.bmm(key.transpose(1, 2), value.flatten(1, 2))  # (b, k, v)
    if bias is not None:
        content_lambda = content_lambda + bias.to(content_lambda.dtype).unsqueeze(1)
    return torch.bmm(query.flatten(1, 2), content_lambda).view(b, n, h, value.shape[3])
