"""The networks of the experiments that no settings describe: the ladder's faults, the paper's rivals, the ablations.

Each is a function of the settings and the number of classes, as `main_general.main` takes it for `make_model`, and
changes as little as it can of the network that the settings describe. What is wrong in the study's layer stands here
and in `reference_networks/study.py`, never in `lambda_layer.py`.

b batch · n query positions · m context positions · d channels · k key depth · v value depth · u intra-depth · h heads
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import SqueezeExcitation

from lambda_layer import LambdaLayer
from model_preparation import MakeModel, build_model, finish_model
from reference_networks.attention import SelfAttention2d
from reference_networks.plain import replace_convolutions
from reference_networks.study import Size, build_study_lambda_resnet
from user_input import UserInput

WINDOW = 7  # side of the context of local self-attention (paper, Tables 3 and 4)
ATTENTION_HEADS = 4
STUDYS_EMBEDDING: dict[str, Any] = {"position": "absolute", "share_embeddings": True}  # as near as settings come
SQUEEZE = 16  # channels of a block for each one of its gate (Hu et al., 2018)


# ---------------------------------------------------------------------------------------------------- the ladder


class PositionNorm(nn.BatchNorm1d):
    """Batch norm over positions in place of channels: (b, c, H, W) -> the same, each of the n positions by itself."""

    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(2).transpose(1, 2)  # (b, n, c)
        return super().forward(positions).transpose(1, 2).view_as(x)


class AcrossHeadsNorm(nn.BatchNorm1d):
    """Batch norm over the k numbers of a query, across its heads: (b, h·k, H, W) -> (b, h·k, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1)  # (b, H, W, h·k)
        return super().forward(rows.reshape(-1, self.num_features)).view(rows.shape).movedim(-1, 1)


def study(args: UserInput, num_classes: int) -> nn.Module:
    """Rung 0: the study's λ-ResNet, held to its own code's numbers. No setting of the layer changes it."""
    network = build_study_lambda_resnet(args.depth, image_size=args.image_size, num_classes=num_classes, stem=args.stem)
    return finish_model(args, network)


def mended_reshape(args: UserInput, num_classes: int) -> nn.Module:
    """Rung 1: channels and positions are kept apart, so that the projections run over channels."""
    network = mended_query_norm(args, num_classes)
    for layer in lambda_layers(network):
        layer.norm_queries = AcrossHeadsNorm(layer.key_depth)
    return finish_model(args, network)


def mended_query_norm(args: UserInput, num_classes: int) -> nn.Module:
    """Rung 2: and queries are normalised for each head and channel."""
    network = mended_value_norm(args, num_classes)
    for layer in lambda_layers(network):
        layer.norm_values = PositionNorm(math.prod(map_size(layer)))
    return finish_model(args, network)


def mended_value_norm(args: UserInput, num_classes: int) -> nn.Module:
    """Rung 3: and values are normalised over channels. Settings alone make the rungs after it.

    What is left of the study's layer is its embedding, one for each map size, whichever stages have it.
    """
    network = build_model(replace(args, **STUDYS_EMBEDDING), num_classes)
    embeddings: dict[Size, nn.Parameter | None] = {}
    for layer in lambda_layers(network):
        layer.embedding = embeddings.setdefault(map_size(layer), layer.embedding)
    return network


def lambda_layers(network: nn.Module) -> list[LambdaLayer]:
    """All the lambda layers of a network, from its first to its last."""
    return [module for module in network.modules() if isinstance(module, LambdaLayer)]


def map_size(layer: LambdaLayer) -> Size:
    """Height and width of the maps that a layer with a global position context takes."""
    assert layer.input_size is not None
    height, width = layer.input_size
    return height, width


# ----------------------------------------------------------------------------------------- the paper's Tables 3 and 4


class LocalSelfAttention2d(nn.Module):
    """Multi-head self-attention in a window around each position (Ramachandran et al., 2019), nothing beyond the map.

    (b, d, H, W) -> (b, d, H, W), with one learnt bias for each head and offset. The windows of keys and values are
    copied out: 2·b·n·d·window² floats.
    """

    def __init__(self, dim: int, size: Size, heads: int = ATTENTION_HEADS, window: int = WINDOW) -> None:
        super().__init__()
        self.outside: Tensor  # (n, 1, 1, window²)
        self.heads, self.window = heads, window
        self.to_queries_keys_values = nn.Conv2d(dim, 3 * dim, kernel_size=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, 1, window**2))
        inside = self._windows(torch.ones(1, 1, *size)) > 0  # (1, n, window², 1)
        outside = torch.zeros(inside.shape).masked_fill(~inside, float("-inf"))
        self.register_buffer("outside", outside.view(-1, 1, 1, window**2), persistent=False)

    def _windows(self, x: Tensor) -> Tensor:
        """(b, c, H, W) -> (b, n, window², c), zero beyond the map."""
        windows = F.unfold(x, self.window, padding=self.window // 2)  # (b, c·window², n)
        return windows.unflatten(1, (x.shape[1], -1)).permute(0, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, d, height, width = x.shape
        query, key, value = self.to_queries_keys_values(x).chunk(3, dim=1)
        query = query.flatten(2).transpose(1, 2).reshape(-1, self.heads, 1, d // self.heads)  # (b·n, h, 1, d / h)
        key, value = (
            self._windows(part).reshape(-1, self.window**2, self.heads, d // self.heads).transpose(1, 2)
            for part in (key, value)
        )  # (b·n, h, window², d / h)
        bias = (self.bias + self.outside).to(query.dtype).repeat(b, 1, 1, 1)  # (b·n, h, 1, window²)
        y = F.scaled_dot_product_attention(query, key, value, bias)
        return y.reshape(b, height, width, d).permute(0, 3, 1, 2)


class LinearAttention2d(nn.Module):
    """Attention without a map (Shen et al., "Efficient Attention", 2021): (b, d, H, W) -> (b, d, H, W).

    Keys are normalised over the positions and queries over their channels, both by softmax; the keys and values of all
    the positions are summed up before the queries are applied to them.
    """

    def __init__(self, dim: int, size: Size, heads: int = ATTENTION_HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries_keys_values = nn.Conv2d(dim, 3 * dim, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.flatten(2).unflatten(1, (self.heads, -1))  # (b, h, d / h, n)
            for part in self.to_queries_keys_values(x).chunk(3, dim=1)
        )
        context = key.softmax(dim=3) @ value.transpose(2, 3)  # (b, h, d / h, d / h)
        y = context.transpose(2, 3) @ query.softmax(dim=2)
        return y.reshape(x.shape)


def with_layers(make_layer: Callable[[int, Size], nn.Module], args: UserInput, num_classes: int) -> nn.Module:
    """The convolutional network of the settings with another layer in place of its 3×3 convolutions."""
    network = build_model(replace(args, model="baseline", stages="auto"), num_classes)
    return finish_model(args, replace_convolutions(network, make_layer, image_size=args.image_size, stem=args.stem))


def squeeze_excitation(args: UserInput, num_classes: int) -> nn.Module:
    """Channel attention (Hu et al., 2018), torchvision's, at the end of every residual branch."""
    network = build_model(args, num_classes)
    for block in network.modules():
        if isinstance(block, Bottleneck):
            channels = block.bn3.num_features
            block.bn3 = nn.Sequential(block.bn3, SqueezeExcitation(channels, channels // SQUEEZE))
    return finish_model(args, network)


# --------------------------------------------------------------------------------------------------- the ablations


def plain_content(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """q·λ_c of keys that are not normalised, but for a division by the number of positions.

    query (b, n, h, k), key (b, m, k, u), value (b, m, u, v) -> (b, n, h, v)
    """
    content_lambda = torch.einsum("bmku,bmuv->bkv", key / key.shape[1], value)
    return torch.einsum("bnhk,bkv->bnhv", query, content_lambda)


def no_softmax(args: UserInput, num_classes: int) -> nn.Module:
    """Keys without a softmax over the positions."""
    return _changed(args, num_classes, lambda layer: setattr(layer, "_content", plain_content))


def position_only(args: UserInput, num_classes: int) -> nn.Module:
    """No content lambdas: `to_keys` and its parameters are left out."""

    def change(layer: LambdaLayer) -> None:
        layer.to_keys, layer.content = None, False

    return _changed(args, num_classes, change)


def no_query_norm(args: UserInput, num_classes: int) -> nn.Module:
    """Queries as they are projected."""
    return _changed(args, num_classes, lambda layer: setattr(layer, "norm_queries", nn.Identity()))


def no_value_norm(args: UserInput, num_classes: int) -> nn.Module:
    """Values as they are projected."""
    return _changed(args, num_classes, lambda layer: setattr(layer, "norm_values", nn.Identity()))


def scaled_embedding(scale: float, args: UserInput, num_classes: int) -> nn.Module:
    """Position embeddings that start as N(0, scale²)."""

    def scale_embedding(layer: LambdaLayer) -> None:
        assert layer.embedding is not None
        nn.init.normal_(layer.embedding, std=scale)

    return _changed(args, num_classes, scale_embedding)


def _changed(args: UserInput, num_classes: int, change: Callable[[LambdaLayer], object]) -> nn.Module:
    network = build_model(args, num_classes)
    for layer in lambda_layers(network):
        change(layer)
    return network


NETWORKS: dict[str, MakeModel] = {
    "study": study,
    "mended-reshape": mended_reshape,
    "mended-query-norm": mended_query_norm,
    "mended-value-norm": mended_value_norm,
    "squeeze-excitation": squeeze_excitation,
    "self-attention": partial(with_layers, SelfAttention2d),
    "local-self-attention": partial(with_layers, LocalSelfAttention2d),
    "linear-attention": partial(with_layers, LinearAttention2d),
    "position-only": position_only,
    "no-softmax": no_softmax,
    "no-query-norm": no_query_norm,
    "no-value-norm": no_value_norm,
    "embedding-scale-0.1": partial(scaled_embedding, 0.1),
    "embedding-scale-0.01": partial(scaled_embedding, 0.01),
}
