"""The baseline: torchvision's own ResNet, in every depth of the paper, in 18 and 34, and in 10 with our block.

A state dict of `torchvision.models.resnet50` loads strictly into `build_resnet(50)` and gives the same output.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet, conv3x3

# Blocks in the stages c2 to c5 (paper; Bello et al., 2021, for 270, 350 and 420; He et al., 2016, for 18 and 34)
DEPTHS = {
    10: (1, 1, 1, 1),
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
BASIC = (18, 34)  # depths whose blocks are basic: two 3×3 convolutions
POOLED = (10,)  # depths of `PooledBlock`s; all others have bottlenecks
WIDTH = 64  # channels of stage c2's 3×3 convolutions; every later stage has twice those of the one before
STEMS = ("imagenet", "compact", "cifar")  # the map that enters c2 is a quarter of the image's side, a half, the whole


class PooledBlock(nn.Module):
    """A 3×3 convolution, a max pool where the stage halves its map, and a 3×3 convolution with a shortcut around it.

    What the networks have that are quickest to train on CIFAR-10 (Page, 2018; Jordan, 2024), as a block for
    torchvision's `ResNet`. The first convolution sees the map before it is halved.
    """

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,  # and the next three: what `ResNet` gives every block, not used here
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inplanes, planes), norm_layer(planes)
        self.pool = nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.conv2, self.bn2 = conv3x3(planes, planes), norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(b, inplanes, height, width) -> (b, planes, ⌈height / stride⌉, ⌈width / stride⌉)."""
        x = self.relu(self.bn1(self.pool(self.conv1(x))))
        return x + self.relu(self.bn2(self.conv2(x)))


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
        depth: one of `DEPTHS`; 10 has pooled blocks, 18 and 34 basic ones, the others bottlenecks.
        num_classes: number of logits.
        stem: `imagenet` (7×7 with stride 2, then a max pool with stride 2), `compact` (3×3 with stride 2, no pool) or
            `cifar` (3×3 with stride 1, no pool).
        width: channels of stage c2's 3×3 convolutions, with the rest in proportion; the stem keeps its 64, but has as
            many as c2 in depth 10.
        zero_init_residual: start the last batch norm of every residual branch at γ = 0 (Goyal et al., 2017). Pooled
            blocks, whose branches end in a ReLU, take no notice.
        groups: groups of the 3×3 convolutions (ResNeXt: 32).
        width_per_group: channels of a group in stage c2 (wide ResNet: 128 with one group; ResNeXt-50 32×4d: 4).
        norm_layer: makes the norm of so many channels; by default `nn.BatchNorm2d`.
        replace_stride_with_dilation: for each of c3, c4 and c5, whether its stride becomes a dilation, as in
            segmentation.

    Pooled and basic blocks take neither groups nor dilation.

    Raises:
        ValueError: no such depth or stem, or blocks with what they do not take.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth: {depth} is not allowed; takes one of {', '.join(map(str, DEPTHS))}")
    if stem not in STEMS:
        raise ValueError(f"stem: {stem} is not allowed; takes one of {', '.join(STEMS)}")
    dilation = list(replace_stride_with_dilation or [False] * 3)
    if depth in (*POOLED, *BASIC) and ((groups, width_per_group) != (1, 64) or any(dilation)):
        kind = "basic" if depth in BASIC else "pooled"
        raise ValueError(f"depth: {depth} has {kind} blocks, which take neither groups, width_per_group nor dilation")
    stem_channels = width if depth in POOLED else WIDTH
    scaled = {} if width == WIDTH else {"width": width, "stem_channels": stem_channels}
    model: ResNet = (ScaledResNet if scaled else ResNet)(
        PooledBlock if depth in POOLED else BasicBlock if depth in BASIC else Bottleneck,
        list(DEPTHS[depth]),
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
        groups=groups,
        width_per_group=width_per_group,
        norm_layer=norm_layer,
        replace_stride_with_dilation=dilation,
        **scaled,
    )
    if stem != "imagenet":
        stride = 2 if stem == "compact" else 1
        model.conv1 = nn.Conv2d(3, stem_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


class ScaledResNet(ResNet):
    """torchvision's ResNet with other channels than its 64, 128, 256 and 512, and than its stem's 64."""

    def __init__(
        self, block: Any, layers: list[int], num_classes: int, *, width: int, stem_channels: int, **options: Any
    ) -> None:
        self.width, self.stem_channels = width, stem_channels  # before, since `_make_layer` is called in there
        super().__init__(block, layers, num_classes, **options)
        if stem_channels != WIDTH:
            self.conv1 = nn.Conv2d(3, stem_channels, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.bn1 = self._norm_layer(stem_channels)
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> nn.Sequential:
        if planes == WIDTH:  # the first of the stages, which the stem enters
            self.inplanes = self.stem_channels
        return super()._make_layer(block, planes * self.width // WIDTH, *arguments, **options)


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
