"""One pass over the test or validation images."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from tqdm import tqdm

from acceleration.distributed import all_sum, hide_bar, share_buffers
from data_sources.batches import Loader, OrderedLoader, Until, mix, shares
from model_preparation import Training, count_correct

REESTIMATED_ON = 100  # batches from which the batch norms of averaged weights take their statistics
REORDERED = 1  # tells the draw of a test's order from those of the training


@dataclass(frozen=True)
class Evaluation:
    """How well the network does on images that it was not trained on."""

    loss: float  # cross entropy, mean over the images
    top1: float  # percent of the images
    images: int
    seconds: float
    labels: Tensor  # (images,) int64: the true classes, in the data's order
    predicted: Tensor  # (images,) int64

    def confusion_matrix(self, classes: int) -> Tensor:
        """(classes, classes): how many images of each true class, by row, were taken for each class.

        Sparse (COO), since nearly all of 10,000² pairs of classes do not occur.
        """
        pairs, counts = torch.stack([self.labels, self.predicted]).unique(dim=1, return_counts=True)
        return torch.sparse_coo_tensor(pairs, counts, (classes, classes), check_invariants=True).coalesce()


@torch.inference_mode()
def evaluate(
    training: Training,
    loader: OrderedLoader,
    name: str = "test",
    until: Until = iter,
    network: nn.Module | None = None,
    training_mode: bool = False,
) -> Evaluation | None:
    """Count every image once, over all processes; None where `until` ended it early.

    Args:
        until: gives the batches that it is given, all or the first of them, such as those before a stop.
        network: another one than that of `training`, such as its average.
        training_mode: normalise by the statistics of each batch, and leave the running ones as they are.
    """
    network = training.model if network is None else network
    share_buffers(network)
    started, images, left = time.perf_counter(), 0, len(loader)
    loss_sum = torch.tensor(0.0, device=training.device)
    correct = torch.tensor(0, device=training.device)
    classes = torch.zeros(2, loader.images, dtype=torch.long, device=training.device)  # the true, the predicted
    bar = tqdm(loader.batches(), name, len(loader), leave=False, disable=hide_bar())
    with _mode(network, training_mode):
        for (pixels, labels), share in zip(until(bar), shares(loader.images, loader.batch_size), strict=False):
            left -= 1
            if not len(labels):  # of a last, small batch there may be none left for this process
                continue
            with training.autocast():
                logits = network(pixels)
            loss_sum += F.cross_entropy(logits.float(), labels, reduction="sum")
            correct += count_correct(logits, labels)
            classes[0, share], classes[1, share] = labels, logits.argmax(1)
            images += len(labels)
    if left:
        return None
    total, right, count = all_sum(float(loss_sum), int(correct), images)
    labels, predicted = torch.tensor(all_sum(*classes.flatten().tolist())).long().view(2, -1)
    seconds = time.perf_counter() - started
    return Evaluation(total / count, 100.0 * right / count, int(count), seconds, labels, predicted)


def evaluate_in_training_mode(
    training: Training,
    loader: OrderedLoader,
    batch_size: int,
    seed: int,
    epoch: int,
    until: Until = iter,
) -> Evaluation | None:
    """The test as the study made it: batches of `batch_size` in an order of the epoch's own, each with its statistics.

    The order is a function of (seed, epoch). The classes come back in the data's order.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch, REORDERED))
    order = torch.randperm(loader.images, generator=generator)
    while batch_size > 2 and loader.images % batch_size == 1:  # a lone image has no statistics
        batch_size -= 1
    reordered = loader.reordered(order, batch_size)
    found = evaluate(training, reordered, "test in training mode", until, training_mode=True)
    if found is None:
        return None
    back = order.argsort()
    return Evaluation(found.loss, found.top1, found.images, found.seconds, found.labels[back], found.predicted[back])


def evaluate_average(
    training: Training,
    average: AveragedModel,
    train_loader: Loader,
    loader: OrderedLoader,
    epoch: int,
    until: Until = iter,
) -> Evaluation | None:
    """The test of the averaged weights, their batch norms' statistics estimated anew on training images."""
    images = (pixels for pixels, _ in until(itertools.islice(train_loader.batches(epoch), REESTIMATED_ON)))
    with training.autocast():
        update_bn(images, average)
    return evaluate(training, loader, "test of the average", until, average)


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode; evaluation mode and the same buffers afterwards."""
    buffers = [buffer.clone() for buffer in network.buffers()] if training else []
    network.train(training)
    try:
        yield
    finally:
        for buffer, before in zip(network.buffers() if training else [], buffers, strict=True):
            buffer.copy_(before)
        network.eval()
