"""One epoch of training."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_preprocessing import Loader
from distributed import all_max, all_sum, hide_bar, is_main
from errors import InputError
from model_preparation import Training, count_correct

NEVER = 2**31 - 1  # the number of a step that does not come
SKIPS = 40  # steps in a row that loss scaling may leave out: as many halvings make nothing of any scale


class NonFinite(InputError):
    """The loss or the gradients became infinite or not a number; what to change is named."""


@dataclass
class EpochProgress:
    """What has been done of an epoch, by all processes; a checkpoint keeps it, so that a stopped run goes on there."""

    steps: int = 0
    images: int = 0
    loss_sum: float = 0.0  # over images
    correct: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps in a row, up to now, that fp16's loss scaling has left out

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


def compute_gradients(training: Training, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images (b, 3, s, s), labels (b,) -> the loss, a number on the device, and logits (b, classes)."""
    with training.autocast():
        logits = training.parallel(pixels)
        loss = training.loss(logits, labels)
    training.scaler.scale(loss).backward()
    return loss, logits


def update_parameters(training: Training) -> None:
    """The optimizer's step, and no gradients left after it."""
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)


def train_epoch(
    training: Training,
    loader: Loader,
    epoch: int,
    progress: EpochProgress,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpochProgress:
    """Train for the rest of an epoch, or until `should_stop` says so between two steps.

    The sums stay on the device until the end: no step waits for the one before. They are in float64, which holds a
    sum of float32 numbers exactly: so it is the same in whatever parts it was taken, by processes and resumptions.

    Args:
        epoch: its number, from 1, which fixes the order and the augmentation of the images.
        progress: what has been done of this epoch already.

    Returns:
        The progress, which falls short of `len(loader)` steps where it was stopped.

    Raises:
        NonFinite: naming the epoch and the step at which it occurred first.
    """
    training.parallel.train()
    device, started, steps, images = training.device, time.perf_counter(), progress.steps, 0
    sums = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    if is_main():  # of what was done before, in one process alone
        sums += torch.tensor([progress.loss_sum, progress.correct], dtype=sums.dtype).to(device)
    check = FiniteCheck(training, progress.skipped)
    batches = loader.batches(epoch, steps)
    bar = tqdm(batches, f"epoch {epoch}", len(loader), False, initial=steps, disable=hide_bar())
    for pixels, labels in bar:
        loss, logits = compute_gradients(training, pixels, labels)
        steps, images = steps + 1, images + len(labels)
        with torch.no_grad():
            check.note(steps, loss)
            sums += torch.stack([loss * len(labels), count_correct(logits, labels)])
        update_parameters(training)
        # reading the CPU's memory costs nothing; reading a GPU's would make it wait, so that is left to the end
        if (device.type == "cpu" and check.gradients_failed()) or should_stop():
            break
    bar.close()
    check.raise_first(epoch, len(loader))
    loss_sum, correct, counted = all_sum(*sums.tolist(), images)
    seconds = progress.seconds + time.perf_counter() - started
    return EpochProgress(steps, progress.images + int(counted), loss_sum, int(correct), seconds, int(check.skipped))


class FiniteCheck:
    """Notes the first step whose loss or gradients are not finite, on the device and without waiting for it.

    The loss scaling of fp16 meets infinite gradients in its normal work: it leaves such a step out and halves its
    scale. Only so many in a row that nothing is left of the scale are a fault.
    """

    def __init__(self, training: Training, skipped: int) -> None:
        self.parameters = list(training.model.parameters())
        self.allowed = SKIPS if training.scaler.is_enabled() else 0
        self.skipped = torch.tensor(skipped, device=training.device)  # steps in a row, up to now
        self.first = torch.full((2,), NEVER, device=training.device)  # steps, from 1: of the loss, of the gradients

    def note(self, step: int, loss: Tensor) -> None:
        """Look at a loss and the gradients that it has left, before the optimizer has used them."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        # the quickest look at all of them, 0.4 % of a step on a CPU core; where it overflows, no training comes back
        norm = nn.utils.get_total_norm(gradients)
        self.skipped = torch.where(norm.isfinite(), 0, self.skipped + 1)
        failed = torch.stack([~loss.isfinite(), self.skipped > self.allowed])
        self.first = self.first.minimum(torch.where(failed, step, NEVER))

    def gradients_failed(self) -> bool:
        """Whether a step's gradients were not finite, which all processes agree on, having averaged them."""
        return int(self.first[1]) != NEVER

    def raise_first(self, epoch: int, steps: int) -> None:
        """Raise `NonFinite` in every process where a step of one has failed."""
        loss, gradients = (-all_max(-first) for first in self.first.tolist())
        if min(loss, gradients) != NEVER:
            what, first = ("loss is", loss) if loss <= gradients else ("gradients are", gradients)
            raise NonFinite(
                f"the {what} not finite at epoch {epoch}, step {first} of {steps}; the checkpoints before it are "
                "sound: lower initial_lr, or take precision fp32"
            )
