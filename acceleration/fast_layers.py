"""The convolutions of a ResNet on the CPU as matrix products, with the parameters and results of the plain ones.

`quicken(model)` lets every `nn.Conv2d` of a network choose, call by call, the fastest way to its result. Keys, shapes
and values of the state dict stay, and so do outputs and gradients up to rounding.

b batch · c channels in · o channels out · height, width of the map · n = height·width positions
"""

import copy
import ctypes
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from lambda_ops.linear import linear
from lambda_ops.modules import is_dense, is_plain
from lambda_ops.recording import takes_functions


class FastConv2d(nn.Conv2d):
    """A convolution that is computed as a matrix product where that is faster: on the CPU, on small maps."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, height, width) in either memory format -> (b, o, height out, width out), channels last."""
        if not self._applies_to(x):
            return super().forward(x)
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return _pointwise(_strided(x, *self.stride), self.weight.flatten(1), self.bias)
        if self._is_3x3() and x.shape[2] <= 2 and x.shape[3] <= 2:
            return _dense_3x3(x, self.weight, self.bias, self.stride)
        # oneDNN's own loops reach 100 to 145 GFLOP/s per core here
        return super().forward(x.contiguous(memory_format=torch.channels_last))

    def _applies_to(self, x: Tensor) -> bool:
        """Whether x is a batch on the CPU, and this a convolution of the ordinary kind.

        To `torch.fx` and `torch.jit.trace`, which write down what is done for any device, and to the transforms of
        `torch.func` it is a plain convolution.
        """
        plain = self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not plain or not is_dense(x) or not is_dense(self.weight) or not takes_functions():
            return False
        return x.device.type == "cpu" and x.dim() == 4 and x.shape[1] == self.in_channels and x.numel() > 0

    def _is_3x3(self) -> bool:
        return self.kernel_size == (3, 3) and self.padding == (1, 1) and self.dilation == (1, 1)


class FastAveragePool2d(nn.AdaptiveAvgPool2d):
    """The mean over all positions, whose gradient is laid out as the map is.

    A batch norm whose input and gradient have different strides (a 1×1 map can be written in two formats) takes a slow
    way back: 6 ms in place of 0.2 ms for (128, 2048, 1, 1). So all that is 1×1 here has the strides (c, 1, 1, 1).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, height, width) -> (b, c, 1, 1)."""
        if self.output_size not in (1, (1, 1)) or not isinstance(x, Tensor) or x.dim() != 4 or x.device.type != "cpu":
            return super().forward(x)
        return x.flatten(1)[:, :, None, None] if x.shape[2:] == (1, 1) else x.mean((2, 3), keepdim=True)


FAST = {nn.Conv2d: FastConv2d, nn.AdaptiveAvgPool2d: FastAveragePool2d}


def quicken(model: nn.Module) -> nn.Module:
    """Let the convolutions of a network choose their fastest way; the same network, changed in place."""
    for module in model.modules():
        if type(module) in FAST:
            module.__class__ = FAST[type(module)]
    return model


def folded(model: nn.Module) -> nn.Module:
    """A copy of a ResNet for inference: batch norms of its stem, basic blocks and bottlenecks are folded into weights.

    The logits are those of the model in evaluation mode, up to rounding; the copy has other keys and is not trained.
    Pooled blocks, and what has hooks, an adapter or weights of another kind, are left as they are.
    """
    model = copy.deepcopy(model).eval()
    _fold(model, "conv1", "bn1")
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            for number in (1, 2, 3):  # a basic block has no third
                _fold(block, f"conv{number}", f"bn{number}")
            _fold(block.downsample, "0", "1")
    return model


def _fold(parent: nn.Module | None, convolution: str, norm: str) -> None:
    """Fold the norm into the convolution, both named as in their parent, if they are plain ones."""
    first: Any = getattr(parent, convolution, None)
    second: Any = getattr(parent, norm, None)
    if not is_plain(first, nn.Conv2d, FastConv2d) or not is_plain(second, nn.BatchNorm2d, nn.SyncBatchNorm):
        return
    if second.running_mean is not None:  # else it normalises by each batch
        setattr(parent, convolution, fuse_conv_bn_eval(first, second))
        setattr(parent, norm, nn.Identity())


def keep_freed_memory() -> bool:
    """Let the C library keep what a step frees for the next step; True where it does so.

    glibc gives every large tensor back to the system and gets it back page by page: 5 ms in place of 0.5 ms to fill
    8 MB on a virtual machine, and a third of a training step. It holds for the whole process, and for Linux.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution, (b, c, height, width) and weight (o, c) -> (b, o, height, width), as one product over b·n."""
    if x.shape[2:] == (1, 1):  # strides (c, 1, 1, 1), forward and backward: see FastAveragePool2d
        return linear(x.flatten(1), weight, bias)[:, :, None, None]
    return linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _strided(x: Tensor, rows: int, columns: int) -> Tensor:
    """Every so many rows and columns of (b, c, height, width).

    Cut from the channels-last view: the gradient has the strides of what was cut, and a gradient of other strides than
    its map's makes the ReLU and the batch norm before it six times as slow.
    """
    return x.permute(0, 2, 3, 1)[:, ::rows, ::columns].permute(0, 3, 1, 2)


def _dense_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
    """A 3×3 convolution with padding 1 of a map of at most 2×2, as one product with a matrix (n out · o, n · c).

    No weight of it is spent on the padding: four of nine taps remain on a 2×2 map, one on a 1×1 map.
    """
    b, c, height, width = x.shape
    rows, columns = range(0, height, stride[0]), range(0, width, stride[1])
    matrix = Windows.apply(weight, height, width, rows, columns)
    bias = None if bias is None else bias.repeat(len(rows) * len(columns))
    flat = x.flatten(1) if (height, width) == (1, 1) else x.permute(0, 2, 3, 1).reshape(b, -1)
    y = linear(flat, matrix.view(-1, height * width * c), bias)
    if len(rows) == len(columns) == 1:
        return y[:, :, None, None]
    return y.view(b, len(rows), len(columns), -1).permute(0, 3, 1, 2)


class Windows(torch.autograd.Function):
    """The taps of a weight (o, c, 3, 3) that each output reads from a map: (n out, o, height, width, c).

    An output at row y reads the rows 0 to height − 1 of the map with the taps 1 − y and on. Autograd's own gradient of
    these slices would fill a whole zero weight for each of them.
    """

    @staticmethod
    def forward(weight: Tensor, height: int, width: int, rows: range, columns: range) -> Tensor:
        taps = weight.permute(0, 2, 3, 1)
        return torch.stack([taps[window] for window in _windows(height, width, rows, columns)])

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, *ctx.map = inputs

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        o, c = gradient.shape[1], gradient.shape[-1]
        taps = gradient.new_zeros(o, 3, 3, c)  # like the gradient, which may stand for many at once: `is_grads_batched`
        for window, part in zip(_windows(*ctx.map), gradient, strict=True):
            taps[window].add_(part)
        return taps.permute(0, 3, 1, 2), None, None, None, None


def _windows(height: int, width: int, rows: range, columns: range) -> list[tuple[slice, slice, slice]]:
    return [
        (slice(None), slice(1 - row, 1 - row + height), slice(1 - column, 1 - column + width))
        for row in rows
        for column in columns
    ]
