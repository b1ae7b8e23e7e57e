"""A training step on a CUDA GPU as one CUDA graph: the CPU launches it whole, in place of two thousand kernels.

`replayed_or_say_why` records a step once and gives back what replays it. A graph repeats what it has recorded, on the
same addresses, without looking at any Python value again; so a step's recording is tried against the step itself, on
other images and with another learning rate, before it is trusted. All that the steps of recording and trying have
changed is put back: the run begins as if there had been none.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn, optim

from command_line.errors import summary

WARM_UP = 3  # steps before the recording: cuDNN tries its kernels, the optimizer makes its state
# of the way that two steps go, between their end and that of their replays: a recording that takes no notice of the
# images, of the learning rate or of the step before it is about half of the way off
TOLERANCE = 0.2
OTHER_RATE = 2.0  # times the learning rate, which comes back from it without rounding

Take = Callable[[Tensor, Tensor], None]  # a step on images (b, 3, s, s) and labels (b,)


class StepState(Protocol):
    """What a step changes, beside counters of its own."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> optim.Optimizer: ...

    @property
    def scaler(self) -> torch.amp.GradScaler: ...

    @property
    def device(self) -> torch.device: ...


def replayed_or_say_why(
    take: Take, training: StepState, counters: Sequence[Tensor], pixels: Tensor, labels: Tensor
) -> Take:
    """What replays `take` on batches of the shape of this one; `take` itself, and a line, where that does not work.

    Args:
        take: changes the model, the optimizer's and the scaler's states, and `counters`, in place, and nothing else.
    """
    before, rates = Snapshot(training, counters), _rates(training)
    try:
        with warnings.catch_warnings():
            # that the optimizer takes steps which are not recorded: to warm up, and to be compared with
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)
            _put_rates_on_device(training)
            replay = Replay(take, pixels, labels)
            _compare(take, replay, before, pixels, labels)
        return replay
    except Exception as error:  # whatever a driver, a kernel or a network of one's own finds amiss: there is no list
        print(f"CUDA graph: goes on without, since recording a step failed ({summary(error)})")
        _put_rates_back(training, rates)
        return take
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        before.restore()


class Replay:
    """A recorded step."""

    def __init__(self, take: Take, pixels: Tensor, labels: Tensor) -> None:
        self.take, self.pixels, self.labels = take, pixels.clone(), labels.clone()
        with torch.cuda.device_of(self.pixels):  # else it would be recorded on the first GPU, whichever the run's is
            self.replay = record(lambda: take(self.pixels, self.labels))

    def __call__(self, pixels: Tensor, labels: Tensor) -> None:
        if pixels.shape != self.pixels.shape:
            return self.take(pixels, labels)
        self.pixels.copy_(pixels)
        self.labels.copy_(labels)
        return self.replay()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Take a few steps, then record one more as a CUDA graph, without doing it; gives back what does."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread, such as one that pins a loader's batches, may call CUDA meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


class Snapshot:
    """All that a step changes, to be put back in place."""

    def __init__(self, training: StepState, counters: Sequence[Tensor]) -> None:
        self.training, self.counters = training, counters
        self.kept = {id(tensor): tensor.detach().clone() for tensor in self._changing()}
        self.scaler = training.scaler.state_dict()

    @torch.no_grad()
    def restore(self) -> None:
        for tensor in self._changing():
            if id(tensor) in self.kept:
                tensor.copy_(self.kept[id(tensor)])
            else:  # what the optimizer has made since then begins with zeros: moments, numbers of steps
                tensor.zero_()
        if self.scaler:
            self.training.scaler.load_state_dict(self.scaler)

    def now(self) -> dict[str, Tensor]:
        """Where the steps have taken them, in one row each: parameters, buffers, and what is counted."""
        model = self.training.model
        parts = {"parameters": model.parameters(), "buffers": model.buffers(), "counters": self.counters}
        return {
            name: torch.cat([torch.zeros(0), *(tensor.detach().double().flatten().cpu() for tensor in tensors)])
            for name, tensors in parts.items()
        }

    def _changing(self) -> list[Tensor]:
        model, states = self.training.model, self.training.optimizer.state.values()
        of_optimizer = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*model.parameters(), *model.buffers(), *of_optimizer, *self.counters]


def _compare(take: Take, replay: Take, before: Snapshot, pixels: Tensor, labels: Tensor) -> None:
    """Raise where two steps and their replays, of other images than were recorded and at another rate, part ways."""
    groups, ends = before.training.optimizer.param_groups, []
    for group in groups:
        group["lr"].mul_(OTHER_RATE)
    before.restore()
    start = before.now()
    for step in (take, replay):
        before.restore()
        for turn in (1, 2):  # the second follows from what the first has left
            step(pixels.flip(2), labels.roll(turn))
        ends.append(before.now())
    for group in groups:
        group["lr"].div_(OTHER_RATE)
    for name, begun in start.items():
        stepped, replayed = (end[name] for end in ends)
        way, apart = float((stepped - begun).norm()), float((replayed - stepped).norm())
        if not apart <= TOLERANCE * way:
            raise RuntimeError(f"its replay takes the {name} {apart:.2g} away from where steps take them, {way:.2g}")


def _rates(training: StepState) -> list[float]:
    return [float(group["lr"]) for group in training.optimizer.param_groups]


def _put_rates_on_device(training: StepState) -> None:
    """Where a replay reads them, and where the schedule writes them from now on."""
    for group, rate in zip(training.optimizer.param_groups, _rates(training), strict=True):
        group["lr"] = torch.tensor(rate, device=training.device)
        if "capturable" in group:  # of Adam, which refuses to be recorded otherwise; SGD has no such thing
            group["capturable"] = True


def _put_rates_back(training: StepState, rates: Sequence[float]) -> None:
    for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = False
