"""Lambda layers of other packages become ours: same weights, same outputs in training and in evaluation mode.

    replace_lambda_layers(model)        # all that a network has, in place; prints and returns what it replaced
    layer = from_timm(their_layer)      # one; from_lambda_networks, from_d_li14 and from_leaderj1001 likewise

A layer is known by the names, types and shapes of its parts: none of the packages is needed. Replace before the
optimizer is made, since the parameters are new ones. Hooks do not come along.

Sizes, as in `lambda_layer.py`:
    d channels    k key depth    v value depth    h heads    u intra-depth    r scope    H, W sides of the map
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lambda_layer import LambdaLayer
from resnet_lambda import PooledLambdaLayer


def replace_lambda_layers(model: nn.Module, *, verbose: bool = True) -> dict[str, nn.Module]:
    """Put our layer in place of every lambda layer of timm, lambda-networks, d-li14 and leaderj1001.

    A layer that stands in several places is still one afterwards. Where anything is refused, nothing is changed.

    Args:
        model: any network; changed in place.
        verbose: print a line for each replaced layer.

    Returns:
        What now stands in the model, by its name there; empty where no such layer was found.

    Raises:
        ValueError: the model is itself such a layer, or has one that cannot be converted; with the name and the reason.
    """
    replaced: dict[str, nn.Module] = {}
    converted: dict[nn.Module, nn.Module] = {}
    lines = []
    for name, module in model.named_modules(remove_duplicate=False):
        source = next((source for source in SOURCES if source.made(module)), None)
        if source is None:
            continue
        if module is model:
            raise ValueError(
                f"the model is itself a lambda layer, which cannot be replaced in place: {source.function}"
            )
        if module not in converted:
            try:
                converted[module] = source.convert(module)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        replaced[name] = converted[module]
        lines.append(f"{name}: {source.name} -> {_in_one_line(converted[module])}")
    for name, layer in replaced.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer)
    if verbose:
        print(*lines or ["no lambda layer found of " + ", ".join(source.name for source in SOURCES)], sep="\n")
    return replaced


def from_timm(layer: nn.Module) -> nn.Module:
    """Our layer for a `timm.layers.lambda_layer.LambdaLayer`; if strided, in an `nn.Sequential` with its 2×2 pool.

    A bias of the queries or values (`qkv_bias`) is subtracted from the running mean of the norm that follows, where
    alone it shows; one of the keys is dropped, since the softmax over positions does not see it.

    Raises:
        ValueError: the layer is none of timm's, or a norm in it was replaced.
    """
    return TIMM.convert(layer)


def from_lambda_networks(layer: nn.Module) -> nn.Module:
    """Our layer for a `lambda_networks.LambdaLayer` (lucidrains), with `n` or `r`.

    Raises:
        ValueError: the layer is none of that package's, or a norm in it was replaced.
    """
    return LAMBDA_NETWORKS.convert(layer)


def from_d_li14(layer: nn.Module) -> nn.Module:
    """Our layer for the one of d-li14's `lambda.pytorch`: `LambdaLayer`, or `PooledLambdaLayer` if strided.

    Raises:
        ValueError: the layer is none of d-li14's, or a norm in it was replaced.
    """
    return D_LI14.convert(layer)


def from_leaderj1001(layer: nn.Module) -> nn.Module:
    """Our layer for leaderj1001's `LambdaConv`; without a local context (m = 0), one of scope 1.

    Raises:
        ValueError: the layer is none of leaderj1001's, a norm in it was replaced, or it has m > 0 and u > 1: then it is
            another function.
    """
    return LEADERJ1001.convert(layer)


class Projection(NamedTuple):
    """A 1×1 convolution as a matrix."""

    weight: Tensor  # (o, d)
    bias: Tensor | None  # (o)


class Parts(NamedTuple):
    """A layer of theirs, its embedding in our order."""

    projections: list[Projection]  # of queries (h·k, d), keys (k·u, d) and values (v·u, d)
    norm_queries: nn.Module
    norm_values: nn.Module
    embedding: Tensor  # (k, u, r, r), or (k, u, 2H-1, 2W-1) for a global context
    is_local: bool
    position_bias: Tensor | None = None  # (k)
    u_first: bool = False  # keys and values, and their norm, count (u, k) and (u, v), not (k, u) and (v, u)


class Source(NamedTuple):
    """Whose layer it is, and how it is recognised and taken apart."""

    name: str
    function: str
    holds: frozenset[str]  # names of its parts; a Conv3d, whose name differs, counts by its type
    position: frozenset[str]  # one of these beside
    parts: Callable[[Any], Parts]

    def made(self, layer: nn.Module) -> bool:
        held = _held(layer)
        return self.holds < held and held - self.holds in [{name} for name in self.position]

    def convert(self, layer: nn.Module) -> nn.Module:
        if not self.made(layer):
            raise ValueError(
                f"{self.function} takes a layer of {', '.join(sorted(self.holds))} and "
                f"{' or '.join(sorted(self.position))}; {type(layer).__name__} holds {', '.join(sorted(_held(layer)))}"
            )
        pools = [child for child in layer.children() if isinstance(child, nn.AvgPool2d)]
        with torch.enable_grad():  # so that a part of a parameter says whether that is trained
            return _assembled(self.parts(layer), pools, layer.training)


def _held(layer: nn.Module) -> set[str]:
    """Names of the parameters and of the modules that do something; pools are looked at apart."""
    held = {name for name, _ in layer.named_parameters(recurse=False)}
    for name, child in layer.named_children():
        if not isinstance(child, (nn.AvgPool2d, nn.Identity, nn.Softmax)):
            held.add("Conv3d" if isinstance(child, nn.Conv3d) else name)
    return held


def _in_one_line(layer: nn.Module) -> str:
    modules = layer if isinstance(layer, nn.Sequential) else [layer]
    return ", ".join(f"{type(module).__name__}({module.extra_repr()})" for module in modules)


# ------------------------------------------------------------------------------------------------------------
# What each of them is made of


def _timm_parts(layer: Any) -> Parts:
    if layer.pos_emb is None:
        table, bias = _window(layer, value_axis=-1)
    else:
        table, bias = layer.pos_emb.permute(2, 0, 1).unsqueeze(1), None
    projections = _split(layer.qkv, layer.norm_q, layer.norm_v)
    return Parts(projections, layer.norm_q, layer.norm_v, table, layer.pos_emb is None, bias)


def _lambda_networks_parts(layer: Any) -> Parts:
    is_local = not hasattr(layer, "rel_pos_emb")
    table, bias = _window(layer, value_axis=2) if is_local else (layer.rel_pos_emb.permute(2, 3, 0, 1), None)
    projections = [_projection(layer.to_q), _projection(layer.to_k), _projection(layer.to_v)]
    return Parts(projections, layer.norm_q, layer.norm_v, table, is_local, bias, u_first=True)


def _d_li14_parts(layer: Any) -> Parts:
    table, bias = _window(layer, value_axis=2)
    projections = _split(layer.conv_qkv, layer.norm_q, layer.norm_v)
    return Parts(projections, layer.norm_q, layer.norm_v, table, True, bias, u_first=True)


def _leaderj1001_parts(layer: Any) -> Parts:
    (queries, norm_queries), (keys,), (values, norm_values) = layer.queries, layer.keys, layer.values
    table = layer.embedding
    if table.dim() == 5 and table.shape[1] > 1:
        raise ValueError(
            f"m = {table.shape[-1]} with u = {table.shape[1]} is not the lambda layer's function: the values are read "
            "as (v, u) for the content lambda, and as (u, v) for the position lambdas"
        )
    table = table[:, :, 0] if table.dim() == 5 else table[:, :, None, None]
    projections = [_projection(queries), _projection(keys), _projection(values)]
    return Parts(projections, norm_queries, norm_values, table, True)


TIMM = Source(
    "timm", "from_timm", frozenset({"qkv", "norm_q", "norm_v"}), frozenset({"Conv3d", "pos_emb"}), _timm_parts
)
LAMBDA_NETWORKS = Source(
    "lambda-networks",
    "from_lambda_networks",
    frozenset({"to_q", "to_k", "to_v", "norm_q", "norm_v"}),
    frozenset({"Conv3d", "rel_pos_emb"}),
    _lambda_networks_parts,
)
D_LI14 = Source(
    "d-li14", "from_d_li14", frozenset({"conv_qkv", "norm_q", "norm_v"}), frozenset({"Conv3d"}), _d_li14_parts
)
LEADERJ1001 = Source(
    "leaderj1001",
    "from_leaderj1001",
    frozenset({"queries", "keys", "values"}),
    frozenset({"embedding"}),
    _leaderj1001_parts,
)
SOURCES = (TIMM, LAMBDA_NETWORKS, D_LI14, LEADERJ1001)


def _projection(convolution: Any) -> Projection:
    if not isinstance(convolution, nn.Conv2d) or convolution.kernel_size != (1, 1):
        raise ValueError(
            f"a projection is {type(convolution).__name__}; it must be a 1×1 Conv2d (merge adapters first)"
        )
    return Projection(convolution.weight.flatten(1), convolution.bias)


def _split(fused: Any, norm_queries: Any, norm_values: Any) -> list[Projection]:
    """Queries, keys and values of one projection to all three."""
    weight, bias = _projection(fused)
    queries, values = norm_queries.num_features, norm_values.num_features
    sizes = [queries, len(weight) - queries - values, values]
    biases = [None] * 3 if bias is None else bias.split(sizes)
    return [Projection(*pair) for pair in zip(weight.split(sizes), biases, strict=True)]


def _window(layer: nn.Module, value_axis: int) -> tuple[Tensor, Tensor | None]:
    """Embedding (k, u, r, r) and bias (k) of the 3-D convolution that makes the position lambdas."""
    (convolution,) = (child for child in layer.children() if isinstance(child, nn.Conv3d))
    if convolution.padding != tuple(side // 2 for side in convolution.kernel_size) or convolution.dilation != (1, 1, 1):
        raise ValueError(f"{convolution} is not the position convolution of a scope around each position")
    return convolution.weight.squeeze(value_axis), convolution.bias


# ------------------------------------------------------------------------------------------------------------
# Our layer out of these


def _assembled(parts: Parts, pools: list[nn.AvgPool2d], training: bool) -> nn.Module:
    """Our layer with copies of the parts, and the pool that follows."""
    queries, keys, values = parts.projections
    settings = "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    is_pooled = [tuple(getattr(pool, name) for name in settings) for pool in pools] == [(3, 2, 1, False, True, None)]
    with torch.device("meta"):  # nothing is drawn, and what would be forgotten would show
        layer: Any = (PooledLambdaLayer if is_pooled else LambdaLayer)(queries.weight.shape[1], **_sizes(parts))
    ordered = _u_last(layer.intra_depth) if parts.u_first else _unchanged
    _put(layer.to_queries, "weight", queries.weight)
    _put(layer.to_keys, "weight", ordered(keys.weight))
    _put(layer.to_values, "weight", ordered(values.weight))
    _put(layer, "embedding", parts.embedding)
    if parts.position_bias is not None:
        _put(layer, "position_bias", parts.position_bias)
    layer.train(training)
    _fill_norm(layer.norm_queries, parts.norm_queries, queries.bias, _unchanged)
    _fill_norm(layer.norm_values, parts.norm_values, values.bias, ordered)
    if is_pooled or not pools:
        return layer
    pooled = nn.Sequential(layer, *copy.deepcopy(pools))
    pooled.training = training  # by `train`, the norms would lose a mode of their own
    return pooled


def _sizes(parts: Parts) -> dict[str, Any]:
    """The arguments of our layer."""
    k, u, *sides = parts.embedding.shape
    queries, _, values = (len(projection.weight) for projection in parts.projections)
    heads = queries // k
    return {
        "dim_out": heads * (values // u),
        "key_depth": k,
        "heads": heads,
        "intra_depth": u,
        "position_bias": parts.position_bias is not None,
        **({"scope": sides[0]} if parts.is_local else {"input_size": [side // 2 + 1 for side in sides]}),
    }


def _unchanged(rows: Tensor) -> Tensor:
    return rows


def _u_last(u: int) -> Callable[[Tensor], Tensor]:
    """(u·k, …) -> (k·u, …)."""
    return lambda rows: rows.unflatten(0, (u, -1)).transpose(0, 1).flatten(0, 1)


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """A copy of the value as the module's parameter, trained where the value is."""
    shape = tuple(getattr(module, name).shape)
    if tuple(value.shape) != shape:
        raise ValueError(f"a {name} of shape {tuple(value.shape)} does not fit the other parts, which need {shape}")
    setattr(module, name, nn.Parameter(_copied(value), requires_grad=value.requires_grad))


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)


def _fill_norm(norm: Any, theirs: Any, bias_before: Tensor | None, ordered: Callable[[Tensor], Tensor]) -> None:
    """The weights, statistics and settings of their batch norm; a bias before it moves the running mean."""
    if type(theirs) is not nn.BatchNorm2d:
        raise ValueError(f"a norm is {type(theirs).__name__}; it must be BatchNorm2d (replace norms afterwards)")
    for name in ("eps", "momentum", "affine", "track_running_stats"):
        setattr(norm, name, getattr(theirs, name))
    norm.train(theirs.training)
    if norm.affine:
        _put(norm, "weight", ordered(theirs.weight))
        _put(norm, "bias", ordered(theirs.bias))
    else:
        norm.weight = norm.bias = None
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        value = getattr(theirs, name)
        setattr(norm, name, None if value is None else _copied(ordered(value) if value.dim() else value))
    if bias_before is not None and norm.running_mean is not None:
        norm.running_mean -= ordered(bias_before.detach())
