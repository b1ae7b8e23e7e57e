"""A small training and batches for it, without any files."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model_preparation import Training, prepare_training
from user_input import UserInput

CPU = torch.device("cpu")


class Batches:
    """A loader of given batches."""

    def __init__(self, *batches: tuple[Tensor, Tensor]) -> None:
        self.given = batches
        self.images = sum(len(labels) for _, labels in batches)
        self.batch_size = len(batches[0][1])

    def __len__(self) -> int:
        return len(self.given)

    def batches(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.given[first:]


def small_training(**settings) -> Training:
    usual = {"depth": 26, "width": 16, "dataset": "digits", "image_size": 16, "device": "cpu", "precision": "fp32"}
    return prepare_training(UserInput(**{**usual, **settings}), 10, CPU)


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.randint(10, (count,), generator=generator)
