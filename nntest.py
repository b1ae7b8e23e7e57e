"""One pass over the test or validation images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from acceleration.distributed import all_sum, hide_bar, share_buffers
from data_sources.batches import Loader
from model_preparation import Training, count_correct


@dataclass(frozen=True)
class Evaluation:
    """How well the network does on images that it was not trained on."""

    loss: float  # cross entropy, mean over the images
    top1: float  # percent of the images
    images: int
    seconds: float


@torch.inference_mode()
def evaluate(
    training: Training, loader: Loader, name: str = "test", should_stop: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    """Count every image once, over all processes, in evaluation mode; None where `should_stop` ended it early."""
    training.model.eval()
    share_buffers(training.model)
    started, images = time.perf_counter(), 0
    loss_sum = torch.tensor(0.0, device=training.device)
    correct = torch.tensor(0, device=training.device)
    for pixels, labels in tqdm(loader.batches(), name, len(loader), leave=False, disable=hide_bar()):
        if should_stop():
            return None
        if not len(labels):  # of a last, small batch there may be none left for this process
            continue
        with training.autocast():
            logits = training.model(pixels)
        loss_sum += F.cross_entropy(logits.float(), labels, reduction="sum")
        correct += count_correct(logits, labels)
        images += len(labels)
    total, right, count = all_sum(float(loss_sum), int(correct), images)
    return Evaluation(total / count, 100.0 * right / count, int(count), time.perf_counter() - started)


@torch.inference_mode()
def confusion_matrix(
    training: Training, loader: Loader, classes: int, should_stop: Callable[[], bool] = lambda: False
) -> Tensor | None:
    """(classes, classes): how many images of each true class, by row, were taken for each class, over all processes.

    None where `should_stop` ended it early.
    """
    training.model.eval()
    share_buffers(training.model)
    counts = torch.zeros(classes**2, dtype=torch.long, device=training.device)
    for pixels, labels in tqdm(loader.batches(), "confusion", len(loader), leave=False, disable=hide_bar()):
        if should_stop():
            return None
        if len(labels):
            with training.autocast():
                predicted = training.model(pixels).argmax(1)
            counts += torch.bincount(labels * classes + predicted, minlength=classes**2)
    return torch.tensor(all_sum(*counts.tolist())).long().view(classes, classes)
