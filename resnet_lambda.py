"""λ-ResNets: the networks of `resnet.py` with lambda layers in place of the 3×3 convolutions (paper, section 4.2).

A stage word says which of the stages c2 to c5 get them: `LLLL` all, `CCLL` the last two, `CCCC` none.

    model = resnet50_lambda(stages="CCLL", image_size=224, num_classes=1000)
    model = resnet50_lambda(image_size=32, num_classes=10, weights="weights.pt")  # torch.save(model.state_dict(), …)

`resnet26_lambda` to `resnet420_lambda`, and the ResNeXt and wide variants, stand at the end.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from lambda_layer import LambdaLayer
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
    **resnet_options: Any,
) -> ResNet:
    """A λ-ResNet: (b, 3, height, width) images -> (b, num_classes) logits.

    Args:
        depth, stem, resnet_options: as for `resnet.build_resnet`.
        stages: `C` or `L` for each of the stages c2 to c5.
        image_size: side, or height and width, of the images; the largest, for a global position context.
        share_embeddings: one position embedding for all the layers of a stage.
        key_depth, heads, intra_depth, scope, position, content: as for `LambdaLayer`.
        weights: what the network starts from: a state dict of the same network, or a file of one, of which no code
            is run; by default it is drawn anew.

    Raises:
        ValueError: no such stage word, a setting that `build_resnet` or `LambdaLayer` refuses, or weights that cannot
            be read or are another network's.
    """
    if len(stages) != 4 or set(stages) - {"C", "L"}:
        raise ValueError(f"stages: {stages} is not allowed; takes four letters, each C (convolution) or L (lambda)")
    model = build_resnet(depth, stem=stem, **resnet_options)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    options = {"key_depth": key_depth, "intra_depth": intra_depth, "scope": scope, "position": position}
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    for letter, layer, entering in zip(stages, layers, stage_sizes(size, stem), strict=True):
        if letter == "L":
            _put_lambdas(layer, entering, share_embeddings, {**options, "heads": heads, "content": content})
    if weights is not None:
        _load(model, weights if isinstance(weights, Mapping) else _read(weights))
    return model


def _put_lambdas(stage: nn.Sequential, size: tuple[int, int], share: bool, options: dict[str, Any]) -> None:
    """Replace the 3×3 convolution of every bottleneck of a stage that is entered with maps of `size`."""
    shared: dict[tuple[int, int], nn.Parameter | None] = {}
    entering = size
    for bottleneck in stage:
        convolution: Any = bottleneck.conv2
        strided = convolution.stride != (1, 1)
        # the middle of a relative table serves the smaller maps of a stage; an absolute one serves its own size alone
        table = entering if share and options["position"] == "relative" else size
        bottleneck.conv2 = (PooledLambdaLayer if strided else LambdaLayer)(
            convolution.in_channels,
            convolution.out_channels,
            input_size=table,
            embedding=shared.get(table),
            **options,
        )
        if share:
            shared[table] = bottleneck.conv2.embedding
        size = halve(size) if strided else size


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
    given = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
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
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _variant(depth: int, **options: Any) -> Callable[..., ResNet]:
    """`build_lambda_resnet` with these settings, and its docstring for `help` and `torch.hub.help`."""
    variant = partial(build_lambda_resnet, depth, **options)
    variant.__doc__ = build_lambda_resnet.__doc__
    return variant


resnet26_lambda = _variant(26)
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
