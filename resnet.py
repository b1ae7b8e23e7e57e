"""The baseline: torchvision's own ResNet, in every depth of the paper and with a stem for small images.

A state dict of `torchvision.models.resnet50` loads strictly into `build_resnet(50)` and gives the same output.
"""

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

# Bottlenecks in the stages c2 to c5 (paper; Bello et al., 2021, for 270, 350 and 420)
DEPTHS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
STEMS = ("imagenet", "cifar")


def build_resnet(
    depth: int = 50,
    *,
    num_classes: int = 1000,
    stem: str = "imagenet",
    zero_init_residual: bool = True,
    groups: int = 1,
    width_per_group: int = 64,
) -> ResNet:
    """A ResNet of bottlenecks: (b, 3, height, width) images -> (b, num_classes) logits.

    Args:
        depth: one of `DEPTHS`.
        num_classes: number of logits.
        stem: `imagenet` (7×7 with stride 2, then a max pool with stride 2) or `cifar` (3×3 with stride 1, no pool).
        zero_init_residual: start the last batch norm of every residual branch at γ = 0 (Goyal et al., 2017).
        groups: groups of the 3×3 convolutions (ResNeXt: 32).
        width_per_group: channels of a group in stage c2 (wide ResNet: 128 with one group; ResNeXt-50 32×4d: 4).

    Raises:
        ValueError: no such depth or stem.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth: {depth} is not allowed; takes one of {', '.join(map(str, DEPTHS))}")
    if stem not in STEMS:
        raise ValueError(f"stem: {stem} is not allowed; takes one of {', '.join(STEMS)}")
    model = ResNet(
        Bottleneck,
        list(DEPTHS[depth]),
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
        groups=groups,
        width_per_group=width_per_group,
    )
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def stage_sizes(image_size: tuple[int, int], stem: str) -> list[tuple[int, int]]:
    """Height and width of the map that enters each of the stages c2 to c5; the first bottleneck may halve it."""
    size = image_size
    if stem == "imagenet":
        size = halve(halve(size))  # the convolution, then the pool
    sizes = [size, size]  # c2 keeps the size, and so gives c3 what it got
    while len(sizes) < 4:
        size = halve(size)
        sizes.append(size)
    return sizes


def halve(size: tuple[int, int]) -> tuple[int, int]:
    """The map after an odd window with stride 2 and "same" padding: half of it, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
