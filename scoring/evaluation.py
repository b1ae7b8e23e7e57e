"""What a test has found, image by image, and the figures that are read off it.

n images of the test
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # of confidence, for the calibration error (Guo et al., 2017)
TOP = 5  # of the classes that a network finds likeliest, so many may have the true one among them


@dataclass(frozen=True)
class Evaluation:
    """How well the network does on images that it was not trained on."""

    loss: float  # cross entropy, mean over the images
    top1: float  # percent of the images
    images: int
    seconds: float
    labels: Tensor  # (n,) int64: the true classes, in the data's order
    predicted: Tensor  # (n,) int64
    confidence: Tensor  # (n,) float32 in 0..1: the share that the softmax gives to the predicted class
    top5: float | None = None  # percent of the images; None with five classes or fewer, where it says nothing

    @property
    def right(self) -> Tensor:
        """(n,) bool"""
        return self.labels == self.predicted

    @property
    def calibration_error(self) -> float:
        """In percentage points; see `calibration_error`."""
        return calibration_error(self.confidence, self.right)

    def confusion_matrix(self, classes: int) -> Tensor:
        """(classes, classes): how many images of each true class, by row, were taken for each class.

        Sparse (COO), since nearly all of 10,000² pairs of classes do not occur.
        """
        pairs, counts = torch.stack([self.labels, self.predicted]).unique(dim=1, return_counts=True)
        return torch.sparse_coo_tensor(pairs, counts, (classes, classes), check_invariants=True).coalesce()

    def of_classes(self, names: Sequence[str]) -> list["ClassScore"]:
        """Each class's own accuracy, in the order of the names."""
        images = self.labels.bincount(minlength=len(names)).tolist()
        right = self.labels[self.right].bincount(minlength=len(names)).tolist()
        return [ClassScore(*each) for each in zip(names, images, right, strict=True)]

    def mistakes(self, most: int) -> list[int]:
        """The images that were taken for another class, the most confident first, `most` of them at most."""
        wrong = (~self.right).nonzero().flatten()
        order = self.confidence[wrong].argsort(descending=True, stable=True)
        return wrong[order[:most]].tolist()


@dataclass(frozen=True)
class ClassScore:
    """How many images of a class there were, and how many of them were seen to be of it."""

    name: str
    images: int
    right: int

    @property
    def top1(self) -> float | None:
        """Percent of its images (its recall); None where there are none."""
        return 100.0 * self.right / self.images if self.images else None


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al., 2017, equation 3), in percentage points.

    The images are sorted by confidence (n,) into `bins` bins of equal width, (0, 1/bins] the first. In each, the share
    that is right (n,) is taken from the mean confidence; the error is the mean of the distances, weighted by images.
    """
    number = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, number, right.double() - confidence.double())
    return 100.0 * float(gaps.abs().sum()) / max(1, len(confidence))
