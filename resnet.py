"""The baseline: torchvision's own ResNet, in every depth of the paper, in 18 and 34, and with stems for small images.

A state dict of `torchvision.models.resnet50` loads strictly into `build_resnet(50)` and gives the same output.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

# Blocks in the stages c2 to c5 (paper; Bello et al., 2021, for 270, 350 and 420; He et al., 2016, for 18 and 34)
DEPTHS = {
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
BASIC = (18, 34)  # depths whose blocks are basic: two 3×3 convolutions; all others have bottlenecks
WIDTH = 64  # channels of stage c2's 3×3 convolutions; every later stage has twice those of the one before
STEMS = ("imagenet", "compact", "cifar")  # the map that enters c2 is a quarter of the image's side, a half, the whole


def build_resnet(
    depth: int = 50,
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    width: int = WIDTH,
    zero_init_residual: bool = True,
    groups: int = 1,
    width_per_group: int = 64,
    norm_layer: Callable[[int], nn.Module] | None = None,
    replace_stride_with_dilation: Sequence[bool] | None = None,
) -> ResNet:
    """A ResNet: (b, 3, height, width) images -> (b, num_classes) logits.

    Args:
        depth: one of `DEPTHS`; 18 and 34 have basic blocks, the others bottlenecks.
        num_classes: number of logits.
        stem: `imagenet` (7×7 with stride 2, then a max pool with stride 2), `compact` (3×3 with stride 2, no pool) or
            `cifar` (3×3 with stride 1, no pool).
        width: channels of stage c2's 3×3 convolutions, with the rest in proportion; the stem keeps its 64.
        zero_init_residual: start the last batch norm of every residual branch at γ = 0 (Goyal et al., 2017).
        groups: groups of the 3×3 convolutions (ResNeXt: 32).
        width_per_group: channels of a group in stage c2 (wide ResNet: 128 with one group; ResNeXt-50 32×4d: 4).
        norm_layer: makes the norm of so many channels; by default `nn.BatchNorm2d`.
        replace_stride_with_dilation: for each of c3, c4 and c5, whether its stride becomes a dilation, as in
            segmentation.

    Basic blocks take neither groups nor dilation.

    Raises:
        ValueError: no such depth or stem, or basic blocks with what they do not take.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth: {depth} is not allowed; takes one of {', '.join(map(str, DEPTHS))}")
    if stem not in STEMS:
        raise ValueError(f"stem: {stem} is not allowed; takes one of {', '.join(STEMS)}")
    dilation = list(replace_stride_with_dilation or [False] * 3)
    if depth in BASIC and ((groups, width_per_group) != (1, 64) or any(dilation)):
        raise ValueError(f"depth: {depth} has basic blocks, which take neither groups, width_per_group nor dilation")
    model = (ResNet if width == WIDTH else _scaled(width))(
        BasicBlock if depth in BASIC else Bottleneck,
        list(DEPTHS[depth]),
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
        groups=groups,
        width_per_group=width_per_group,
        norm_layer=norm_layer,
        replace_stride_with_dilation=dilation,
    )
    if stem != "imagenet":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2 if stem == "compact" else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def _scaled(width: int) -> type[ResNet]:
    """torchvision's ResNet with other channels than its 64, 128, 256 and 512."""

    class ScaledResNet(ResNet):
        def __init__(self, block: Any, layers: list[int], num_classes: int, **options: Any) -> None:
            super().__init__(block, layers, num_classes, **options)
            self.fc = nn.Linear(8 * width * block.expansion, num_classes)

        def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> nn.Sequential:
            return super()._make_layer(block, planes * width // WIDTH, *arguments, **options)

    return ScaledResNet


def stage_sizes(image_size: tuple[int, int], stem: str) -> list[tuple[int, int]]:
    """Height and width of the map that enters each of the stages c2 to c5; the first block may halve it."""
    size = image_size
    for _ in range({"imagenet": 2, "compact": 1, "cifar": 0}[stem]):  # the convolution, then the pool
        size = halve(size)
    sizes = [size, size]  # c2 keeps the size, and so gives c3 what it got
    while len(sizes) < 4:
        size = halve(size)
        sizes.append(size)
    return sizes


def halve(size: tuple[int, int]) -> tuple[int, int]:
    """The map after an odd window with stride 2 and "same" padding: half of it, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
