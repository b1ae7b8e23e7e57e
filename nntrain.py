"""One epoch of training."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from acceleration.cuda_graph import replayed_or_say_why
from acceleration.distributed import all_max, all_sum, is_main
from command_line.errors import InputError
from data_sources.batches import Loader, Until
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
    """Images (b, 3, s, s), labels (b,) or (b, classes) -> the loss, a number on the device, and logits (b, classes).

    Where the settings say so, in pieces whose gradients add up to those of the mean over the batch. Of several
    processes, they average them once, at the last piece.
    """
    pieces = max(1, min(training.accumulate, len(labels) // 2))
    losses, logits = [], []
    for number, piece in enumerate(zip(pixels.tensor_split(pieces), labels.tensor_split(pieces), strict=True), 1):
        with _averaging(training.parallel, number == pieces):
            loss, part = _of_piece(training, *piece, len(labels))
        losses.append(loss)
        logits.append(part)
    return torch.stack(losses).sum(), torch.cat(logits)


def _of_piece(training: Training, pixels: Tensor, labels: Tensor, images: int) -> tuple[Tensor, Tensor]:
    with training.autocast():
        logits = training.parallel(pixels)
        loss = training.loss(logits, labels) * (len(labels) / images)
    training.scaler.scale(loss).backward()
    return loss.detach(), logits.detach()


def _averaging(network: nn.Module, wanted: bool) -> AbstractContextManager:
    """Within this context the next backward averages gradients over several processes, or does not."""
    if isinstance(network, DistributedDataParallel) and not wanted:
        return network.no_sync()
    return nullcontext()


def total_norm(training: Training, parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, to which they are shortened where the settings say so."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if training.clip_gradients is not None:
        training.scaler.unscale_(training.optimizer)
    # the quickest look at all of them, 0.4 % of a step on a CPU core; where it overflows, no training comes back
    norm = nn.utils.get_total_norm(gradients)
    if training.clip_gradients is not None:
        nn.utils.clip_grads_with_norm_(parameters, training.clip_gradients, norm)
    return norm


def update_parameters(training: Training) -> None:
    """The optimizer's step, and no gradients left after it."""
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)


class TrainingStep:
    """A step of training, and what the steps of an epoch come to, all of it on the device: no step waits for another.

    The sums are in float64, which holds a sum of float32 numbers exactly: so it is the same in whatever parts it was
    taken, by processes and resumptions. The loss scaling of fp16 meets infinite gradients in its normal work: it leaves
    such a step out and halves its scale. Only so many in a row that nothing is left of the scale are a fault.
    """

    def __init__(self, training: Training) -> None:
        device = training.device
        self.training = training
        self.parameters = list(training.model.parameters())
        self.allowed = SKIPS if training.scaler.is_enabled() else 0
        wide = torch.float32 if device.type == "mps" else torch.float64
        # written in place throughout: a replayed CUDA graph knows tensors by their addresses
        self.sums = torch.zeros(2, dtype=wide, device=device)  # of losses over the images, and of correct ones
        self.steps = torch.tensor(0, device=device)
        self.skipped = torch.tensor(0, device=device)  # steps in a row, up to now
        self.first = torch.full((2,), NEVER, device=device)  # failed step, from 1: by its loss, by its gradients
        self.replayed: Callable[[Tensor, Tensor], None] | None = None if training.cuda_graph else self.take

    def begin(self, progress: EpochProgress) -> None:
        """Count from there on; what was done before is in the sums of one process alone."""
        for total, before in zip(self.sums, (progress.loss_sum, progress.correct), strict=True):
            total.fill_(before if is_main() else 0)
        self.steps.fill_(progress.steps)
        self.skipped.fill_(progress.skipped)
        self.first.fill_(NEVER)

    def __call__(self, pixels: Tensor, labels: Tensor) -> None:
        """Take a step, as a replayed CUDA graph where the settings say so and it works."""
        if self.replayed is None:
            counters = [self.sums, self.steps, self.skipped, self.first]
            self.replayed = replayed_or_say_why(self.take, self.training, counters, pixels, labels)
        self.replayed(pixels, labels)

    def take(self, pixels: Tensor, labels: Tensor) -> None:
        """Images (b, 3, s, s) and labels (b,) or (b, classes): one step, operation by operation."""
        loss, logits = compute_gradients(self.training, pixels, labels)
        with torch.no_grad():
            self.steps += 1
            self._check(loss)
            self.sums += torch.stack([loss * len(labels), count_correct(logits, labels)])
        update_parameters(self.training)

    def _check(self, loss: Tensor) -> None:
        """Look at a loss and the gradients that it has left, before the optimizer has used them."""
        norm = total_norm(self.training, self.parameters)
        self.skipped.add_(1).masked_fill_(norm.isfinite(), 0)
        sound = torch.stack([loss.isfinite(), self.skipped <= self.allowed])
        self.first.copy_(self.first.minimum(self.steps.expand(2).masked_fill(sound, NEVER)))

    def gradients_failed(self) -> bool:
        """Whether a step's gradients were not finite, which all processes agree on, having averaged them."""
        return int(self.first[1]) != NEVER

    def raise_first(self, epoch: int, steps: int) -> None:
        """Raise `NonFinite` in every process where a step of one has failed."""
        loss, gradients = (-all_max(-first) for first in self.first.tolist())
        if min(loss, gradients) != NEVER:
            what, first = ("loss is", loss) if loss <= gradients else ("gradients are", gradients)
            raise NonFinite(
                f"the {what} not finite at epoch {epoch}, step {first} of {steps}; a checkpoint of before, if there is "
                "one, is sound: lower initial_lr, or take precision fp32"
            )


def train_epoch(
    step: TrainingStep,
    loader: Loader,
    epoch: int,
    progress: EpochProgress,
    until: Until = iter,
) -> EpochProgress:
    """Train for the rest of an epoch, or for as many of its batches as `until` hands on.

    Args:
        epoch: its number, from 1, which fixes the order and the augmentation of the images.
        progress: what has been done of this epoch already.
        until: gives the batches that it is given, all or the first of them, such as those before a stop.

    Returns:
        The progress, which falls short of `len(loader)` steps where `until` ended it.

    Raises:
        NonFinite: naming the epoch and the step at which it occurred first.
    """
    training = step.training
    training.parallel.train()
    started, steps, images = time.perf_counter(), progress.steps, 0
    step.begin(progress)
    for pixels, labels in until(loader.batches(epoch, steps)):
        step(pixels, labels)
        training.end_step()
        steps, images = steps + 1, images + len(labels)
        # reading the CPU's memory costs nothing; reading a GPU's would make it wait, so that is left to the end
        if training.device.type == "cpu" and step.gradients_failed():
            break
    step.raise_first(epoch, len(loader))
    loss_sum, correct, counted = all_sum(*step.sums.tolist(), images)
    seconds = progress.seconds + time.perf_counter() - started
    return EpochProgress(steps, progress.images + int(counted), loss_sum, int(correct), seconds, int(step.skipped))
