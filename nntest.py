"""One pass over the test or validation images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data_preprocessing import Loader
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
    """Count every image once, in evaluation mode; None where `should_stop` ended it early."""
    training.model.eval()
    started, images = time.perf_counter(), 0
    loss_sum = torch.tensor(0.0, device=training.device)
    correct = torch.tensor(0, device=training.device)
    for pixels, labels in tqdm(loader.batches(), name, len(loader), leave=False, disable=None):
        if should_stop():
            return None
        with training.autocast():
            logits = training.model(pixels)
        loss_sum += F.cross_entropy(logits.float(), labels, reduction="sum")
        correct += count_correct(logits, labels)
        images += len(labels)
    loss, top1 = float(loss_sum) / images, 100.0 * int(correct) / images
    return Evaluation(loss, top1, images, time.perf_counter() - started)
