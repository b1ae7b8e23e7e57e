"""Batch norm over the shares of all processes together: that of one process with the whole batch.

For the GPU it is PyTorch's own, by one kernel. That refuses the CPU, so there the norm is written out.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from acceleration.distributed import size


class AllReduce(torch.autograd.Function):
    """The sum over all processes, each of which has its part in the gradient of every process's result."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return AllReduce.apply(gradient.contiguous())


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    running_mean: Tensor  # this and the next three may be None in PyTorch's class, and are not in any network here
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    @torch.compiler.disable  # the compiler cannot look into a collective; it goes on behind it
    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …), in training as many from every process -> the same shape, type and memory format."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        over = [dim for dim in range(x.dim()) if dim != 1]
        channels = [-1 if dim == 1 else 1 for dim in range(x.dim())]  # a view (c,) that broadcasts to x
        count = x.numel() // x.shape[1] * size()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = AllReduce.apply(wide.sum(over)) / count
        centred = wide - mean.view(channels)  # the variance after the mean: no difference of large squares
        variance = AllReduce.apply(centred.square().sum(over)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(channels), centred, scale.view(channels)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, (c,) each, as batch norm does."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class SyncBatchNorm1d(_SyncBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all processes, on the CPU."""


class SyncBatchNorm2d(_SyncBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes, on the CPU."""


SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
}


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the batch norms of a network on `device` see the batch of all processes; parameters and keys stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) in SYNCHRONISED:
            module.__class__ = SYNCHRONISED[type(module)]
    return model
