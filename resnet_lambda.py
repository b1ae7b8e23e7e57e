"""λ-ResNets: the networks of `resnet.py` with lambda layers in place of 3×3 convolutions (paper, section 4.2).

A bottleneck has one of them; of the two of a basic or pooled block (depths 10, 18 and 34, not in the paper) the second
makes way.

A stage word says which of the stages c2 to c5 get them: `LLLL` all, `CCLL` the last two, `CCCC` none.

    model = resnet50_lambda(stages="CCLL", image_size=224, num_classes=1000)
    model = resnet50_lambda(image_size=32, num_classes=10, weights="weights.pt")  # torch.save(model.state_dict(), …)

`resnet10_lambda` to `resnet420_lambda`, and the ResNeXt and wide variants, stand at the end.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torchvision.models.resnet import ResNet

from lambda_layer import LambdaLayer, resized_embedding
from resnet import build_resnet, halve, stage_sizes


class PooledLambdaLayer(LambdaLayer):
    """A lambda layer followed by the 3×3 average pool that stands in for a stride of 2."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, height, width) -> (b, dim_out, ⌈height / 2⌉, ⌈width / 2⌉)."""
        return F.avg_pool2d(super().forward(x), kernel_size=3, stride=2, padding=1)


def build_lambda_resnet(
    depth: int = 50,
    *,
    stages: str = "LLLL",
    image_size: int | tuple[int, int] = 224,
    stem: str = "imagenet",
    share_embeddings: bool = False,
    key_depth: int = 16,
    heads: int = 4,
    intra_depth: int = 1,
    scope: int | None = None,
    position: str = "relative",
    content: bool = True,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    resize_weights: bool = False,
    **resnet_options: Any,
) -> ResNet:
    """A λ-ResNet: (b, 3, height, width) images -> (b, num_classes) logits.

    Args:
        depth, stem, resnet_options (such as `width`): as for `resnet.build_resnet`. Where a stride is replaced with a
            dilation, a local scope grows so as to reach as far as it would. `norm_layer` makes the norms of queries and
            values, too.
        stages: `C` or `L` for each of the stages c2 to c5.
        image_size: side, or height and width, of the images; the largest, for a global position context.
        share_embeddings: one position embedding for all the layers of a stage that have the same scope, and where it is
            absolute the same map.
        key_depth, heads, intra_depth, scope, position, content: as for `LambdaLayer`.
        weights: what the network starts from: a state dict of the same network, or a file of one, of which no code
            is run; by default it is drawn anew.
        resize_weights: interpolate the position embeddings of weights that were trained at another image size.

    With `zero_init_residual=False`, a network that has not been trained yet may overflow in evaluation mode: a lambda
    layer is quadratic in its input, and the running statistics that hold its scale are still 0 and 1. About two dozen
    training steps bring them there, or `torch.optim.swa_utils.update_bn` with one batch of images.

    Raises:
        ValueError: no such stage word, a `norm_layer` that does not fit a lambda layer's channels, a setting that
            `build_resnet` or `LambdaLayer` refuses, or weights that cannot be read or are another network's.
    """
    if len(stages) != 4 or set(stages) - {"C", "L"}:
        raise ValueError(f"stages: {stages} is not allowed; takes four letters, each C (convolution) or L (lambda)")
    model = build_resnet(depth, stem=stem, **resnet_options)
    height, width = LambdaLayer._as_size(image_size, "image_size")
    size = stage_sizes((height, width), stem)[0]
    options = {"key_depth": key_depth, "intra_depth": intra_depth, "scope": scope, "position": position}
    for letter, stage in zip(stages, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True):
        if letter == "L":
            _put_lambdas(stage, size, share_embeddings, {**options, "heads": heads, "content": content})
        size = halve(size) if stage[0].stride != 1 else size
    if resnet_options.get("norm_layer") is not None:
        _put_norms(model, resnet_options["norm_layer"])
    if weights is not None:
        state = weights if isinstance(weights, Mapping) else _read(weights)
        _load(model, resized_state(model, state) if resize_weights else state)
    return model


def _put_lambdas(stage: nn.Sequential, size: tuple[int, int], share: bool, options: dict[str, Any]) -> None:
    """Replace the second convolution, 3×3, of every block of a stage that is entered with maps of `size`."""
    shared: dict[tuple[Any, ...], nn.Parameter | None] = {}
    if stage[0].stride != 1 and stage[0].conv2.stride == (1, 1):  # halved before the layer, by all but bottlenecks
        size = halve(size)
    largest = size
    for block in stage:
        convolution: Any = block.conv2
        strided, scope = convolution.stride != (1, 1), options["scope"]
        if scope is not None:  # as far as a window of so many taps with the convolution's dilation
            scope = (scope - 1) * convolution.dilation[0] + 1
        # the middle of a relative table serves the smaller maps of a stage; an absolute one serves its own size alone
        table = largest if share and options["position"] == "relative" else size
        block.conv2 = (PooledLambdaLayer if strided else LambdaLayer)(
            convolution.in_channels,
            convolution.out_channels,
            input_size=table,
            embedding=shared.get((table, scope)),
            **{**options, "scope": scope},
        )
        if share:
            shared[table, scope] = block.conv2.embedding
        size = halve(size) if strided else size


def _put_norms(model: nn.Module, norm_layer: Callable[[int], nn.Module]) -> None:
    """Replace the batch norms of every lambda layer."""
    for layer in [module for module in model.modules() if isinstance(module, LambdaLayer)]:
        for name in ("norm_queries", "norm_values"):
            channels = getattr(layer, name).num_features
            try:
                setattr(layer, name, norm_layer(channels))
            except ValueError as error:
                raise ValueError(f"norm_layer: no norm of {channels} channels, as {name} has ({error})") from error


@torch.no_grad()
def resize(model: nn.Module, image_size: int | tuple[int, int], optimizer: optim.Optimizer | None = None) -> nn.Module:
    """Make every lambda layer of a network fit another image size, in place, by interpolating global embeddings.

    One blank image (1, 3, height, width) goes through the network in evaluation mode and shows each layer its map. The
    parameters stay the same objects; a shared one is resized once, to the first of the maps that it serves, which is
    the largest of its stage.

    Args:
        optimizer: one that has the network's parameters: what it keeps of a resized one is forgotten, so that it goes
            on as with a new parameter.

    Raises:
        ValueError: no such image size, or layers share an embedding that cannot serve both their maps.
    """
    height, width = LambdaLayer._as_size(image_size, "image_size")
    resized: dict[int, tuple[int, ...]] = {}

    def fit(layer: LambdaLayer, inputs: tuple[Tensor]) -> None:
        embedding, size = layer.embedding, tuple(inputs[0].shape[2:])
        if embedding is None or layer.scope is not None:
            return
        before = layer.input_size
        layer.resize_embedding(resized.setdefault(id(embedding), size))  # the layer refuses what does not cover its map
        if optimizer is not None and layer.input_size != before:
            optimizer.state.pop(embedding, None)

    layers = [module for module in model.modules() if isinstance(module, LambdaLayer)]
    hooks = [layer.register_forward_pre_hook(fit) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    try:
        model.eval()(torch.zeros(1, 3, height, width, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return model


def resized_state(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with its global embeddings at the model's sizes."""
    state = dict(state)
    for name, layer in model.named_modules():
        if not isinstance(layer, LambdaLayer) or layer.embedding is None or layer.input_size is None or layer.scope:
            continue
        key = f"{name}.embedding"
        given = state.get(key)
        own = layer.embedding.shape
        k_u = slice(2) if layer.position == "relative" else slice(2, 4)  # another kind's is refused by `_load`
        if isinstance(given, Tensor) and given.dim() == 4 and given.shape != own and given.shape[k_u] == own[k_u]:
            old = _input_size(given, layer.position, key)
            state[key] = resized_embedding(given, old, layer.input_size, layer.position)
    return state


def _input_size(embedding: Tensor, position: str, key: str) -> tuple[int, int]:
    """The map that a global embedding was made for; an absolute one does not tell its sides: it is taken for square."""
    if position == "relative":
        return (embedding.shape[2] + 1) // 2, (embedding.shape[3] + 1) // 2
    side = math.isqrt(len(embedding))
    if side**2 != len(embedding):
        raise ValueError(f"weights do not fit: {key} has {len(embedding)} positions, which are no square map")
    return side, side


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The state dict of a file, on the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is missing, damaged or none of PyTorch's fails in its own way
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights: {path} cannot be read ({type(error).__name__}: {reason})") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"weights: {path} holds a {type(state).__name__}; it must hold a state dict")
    return state


def _load(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put every tensor of a state dict into the model, which has to have the same keys and shapes."""
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) if isinstance(value, Tensor) else None for key, value in state.items()}
    faults = {
        "missing": [key for key in own if key not in given],
        "not of this network": [key for key in given if key not in own],
        "of another shape": [
            f"{key} {given[key]}, not {shape}" for key, shape in own.items() if given.get(key, shape) != shape
        ],
    }
    if any(faults.values()):
        found = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
        raise ValueError(f"weights do not fit: {'; '.join(found)}")
    model.load_state_dict(dict(state), strict=True)


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")


def _variant(depth: int, **options: Any) -> Callable[..., ResNet]:
    """`build_lambda_resnet` with these settings, and its docstring for `help` and `torch.hub.help`."""
    variant = partial(build_lambda_resnet, depth, **options)
    variant.__doc__ = build_lambda_resnet.__doc__
    return variant


resnet10_lambda = _variant(10)
resnet18_lambda = _variant(18)
resnet26_lambda = _variant(26)
resnet34_lambda = _variant(34)
resnet50_lambda = _variant(50)
resnet101_lambda = _variant(101)
resnet152_lambda = _variant(152)
resnet200_lambda = _variant(200)
resnet270_lambda = _variant(270)
resnet350_lambda = _variant(350)
resnet420_lambda = _variant(420)
# torchvision's ResNeXt and wide variants; the groups are those of the convolutions that are left
resnext50_32x4d_lambda = _variant(50, groups=32, width_per_group=4)
resnext101_32x8d_lambda = _variant(101, groups=32, width_per_group=8)
resnext101_64x4d_lambda = _variant(101, groups=64, width_per_group=4)
wide_resnet50_2_lambda = _variant(50, width_per_group=128)
wide_resnet101_2_lambda = _variant(101, width_per_group=128)
