"""What a loader gives in an epoch."""

import torch
from torch import Tensor


def gathered(loader, epoch: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader.batches(epoch, first), strict=True)
    return torch.cat(images), torch.cat(labels)
