"""One epoch of training."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data_preprocessing import Loader
from errors import InputError
from model_preparation import Training, count_correct


class NonFiniteLoss(InputError):
    """The loss became infinite or not a number; what to change is named."""


@dataclass
class EpochProgress:
    """What has been done of an epoch; a checkpoint keeps it, so that a run stopped inside an epoch goes on there."""

    steps: int = 0
    images: int = 0
    loss_sum: float = 0.0  # over images
    correct: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean over the images."""
        return self.loss_sum / max(1, self.images)

    @property
    def top1(self) -> float:
        """Percent of the images."""
        return 100.0 * self.correct / max(1, self.images)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


def train_step(training: Training, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One step on images (b, 3, s, s) and labels (b,) -> the loss, a number on the device, and logits (b, classes)."""
    with training.autocast():
        logits = training.model(pixels)
        loss = training.loss(logits, labels)
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return loss, logits


def train_epoch(
    training: Training,
    loader: Loader,
    epoch: int,
    progress: EpochProgress,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpochProgress:
    """Train for the rest of an epoch, or until `should_stop` says so between two steps.

    The sums stay on the device until the end: no step waits for the one before.

    Args:
        epoch: its number, from 1, which fixes the order and the augmentation of the images.
        progress: what has been done of this epoch already.

    Returns:
        The progress, which falls short of `len(loader)` steps where it was stopped.

    Raises:
        NonFiniteLoss: naming the epoch and the step at which it occurred first.
    """
    training.model.train()
    device, started, steps, images = training.device, time.perf_counter(), progress.steps, progress.images
    loss_sum = torch.tensor(progress.loss_sum, device=device)
    correct = torch.tensor(progress.correct, device=device)
    bad_step = torch.tensor(0, device=device)  # the first step, from 1, with a loss that is not finite
    bar = tqdm(loader.batches(epoch, steps), f"epoch {epoch}", len(loader), False, initial=steps, disable=None)
    for pixels, labels in bar:
        loss, logits = train_step(training, pixels, labels)
        with torch.no_grad():
            steps, images = steps + 1, images + len(labels)
            loss_sum += loss * len(labels)
            correct += count_correct(logits, labels)
            bad_step = torch.where((bad_step == 0) & ~loss.isfinite(), steps, bad_step)
        # reading the CPU's memory costs nothing; reading a GPU's would make it wait, so that is left to the end
        if (device.type == "cpu" and bad_step > 0) or should_stop():
            break
    bar.close()
    if first := int(bad_step):
        raise NonFiniteLoss(
            f"the loss is not finite at epoch {epoch}, step {first} of {len(loader)}; the checkpoints before it are "
            "sound: lower initial_lr, or take precision fp32"
        )
    seconds = progress.seconds + time.perf_counter() - started
    return EpochProgress(steps, images, float(loss_sum), int(correct), seconds)
