"""Model, optimizer, loss and schedule of a run, and their state for a checkpoint."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.resnet import ResNet

from acceleration.devices import autocast, choose_precision
from acceleration.distributed import is_main, size
from acceleration.fast_layers import keep_freed_memory, quicken
from acceleration.sync_batch_norm import synchronise
from command_line.errors import summary
from data_preprocessing import class_count
from fine_tuning.parts import freeze, parameter_groups
from LabelSmoothing import LabelSmoothing
from resnet_lambda import build_lambda_resnet
from user_input import UserInput

BY_STEP = ("step", "one_cycle")  # schedules that go on after every step
ONE_CYCLE_END = 1e-4  # of the first learning rate: where one_cycle ends (`OneCycleLR`)
WARMUP_SHARE = 5  # the warm-up takes at most one epoch in five (a five-epoch run would be all warm-up)
# The settings and the number of classes -> a network: (b, 3, s, s) normalised images -> (b, classes) logits
MakeModel = Callable[[UserInput, int], nn.Module]


@dataclass
class Training:
    """All that a training step uses, and all whose state a checkpoint keeps."""

    model: nn.Module  # with the keys of a checkpoint, whatever the number of processes
    parallel: nn.Module  # the same as training calls it: compiled, and averaging gradients over several processes
    optimizer: optim.Optimizer
    scheduler: optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    loss: nn.Module
    device: torch.device
    precision: str  # fp32, bf16 or fp16: `auto` has been settled
    cuda_graph: bool  # whether a step is to be replayed as a CUDA graph
    accumulate: int = 1  # pieces in which a batch is computed
    clip_gradients: float | None = None  # longest norm of all gradients together
    test_flips: bool = False  # whether a test sees each image's mirror, too
    steps_per_epoch: int = 1
    rate_by_step: bool = False  # whether the learning rate changes after each step, or after each epoch
    average: AveragedModel | None = None  # of the weights
    averaged_from: int | None = None  # the first epoch whose last weights are averaged; None: those of each step are

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return autocast(self.device, self.precision)

    def end_step(self) -> None:
        """Take the step's weights into the average, and move on to the next learning rate, where each step does so."""
        if self.average is not None and self.averaged_from is None:
            self.average.update_parameters(self.model)
        if self.rate_by_step:
            self._next_rate()

    def end_epoch(self) -> None:
        """Move on to the next epoch's learning rate."""
        if not self.rate_by_step:
            self._next_rate()

    def average_of_epoch(self, epoch: int) -> AveragedModel | None:
        """The average to be tested after that epoch, its last weights included; None where there is none yet."""
        if self.average is None or self.averaged_from is None:
            return self.average
        wanted = epoch - self.averaged_from + 1
        if wanted > int(self.average.n_averaged):  # else the run was stopped after they were taken in
            self.average.update_parameters(self.model)
        return self.average if wanted > 0 else None

    def _next_rate(self) -> None:
        with warnings.catch_warnings():
            # where a run was resumed between training and test, another process made the epoch's optimizer steps
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def parameters(self) -> int:
        """The number of the model's parameters; shared ones count once, frozen ones too."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": _without_graph(self.optimizer.state_dict()),
            "scheduler": _plain_numbers(self.scheduler.state_dict()),
            "scaler": self.scaler.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        schedule = self.scheduler.state_dict()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # a schedule takes over as attributes whatever it is given: so, only what it has itself
        self.scheduler.load_state_dict({name: state["scheduler"].get(name, schedule[name]) for name in schedule})
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state["scaler"]:  # a run without loss scaling may go on where there is, and the other way round
            self.scaler.load_state_dict(state["scaler"])


def _without_graph(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as it is without a CUDA graph, which has tensors for learning rates: any device takes it."""
    for group in optimizer["param_groups"]:
        group["lr"] = float(group["lr"])
        if "capturable" in group:
            group["capturable"] = False
    return optimizer


def _plain_numbers(schedule: dict[str, Any]) -> dict[str, Any]:
    return schedule | {"_last_lr": [float(rate) for rate in schedule["_last_lr"]]}


def build_model(args: UserInput, num_classes: int | None = None) -> ResNet:
    """The network that the settings describe: (b, 3, s, s) normalised images -> (b, classes) logits."""
    model = build_lambda_resnet(
        args.depth,
        stages=args.stage_word,
        image_size=args.image_size,
        num_classes=class_count(args) if num_classes is None else num_classes,
        stem=args.stem,
        width=args.width,
        zero_init_residual=args.zero_init_residual,
        share_embeddings=args.share_embeddings,
        key_depth=args.key_depth,
        heads=args.heads,
        intra_depth=args.intra_depth,
        scope=args.scope,
        position=args.position,
    )
    return finish_model(args, model)


def finish_model(args: UserInput, model: nn.Module) -> Any:
    """What a network has from the settings however it was built, changed in place: momentum, fast convolutions."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = args.bn_momentum
    return quicken(model)


def prepare_training(
    args: UserInput, num_classes: int, device: torch.device, make_model: MakeModel = build_model, steps: int = 1
) -> Training:
    """Model, optimizer, schedule and loss of a run that begins; an epoch has so many `steps`.

    Raises:
        InputError: the device cannot compute in the precision that is asked for.
    """
    precision = choose_precision(args.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(args.seed)
    model = make_model(args, num_classes)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if args.sync_batch_norm and size() > 1:
        model = synchronise(model, device)
    freeze(model, args.frozen)
    optimizer = make_optimizer(args, model)
    training = Training(
        model=model,
        parallel=model,
        optimizer=optimizer,
        scheduler=make_scheduler(args, optimizer, steps),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        loss=LabelSmoothing(args.label_smoothing),
        device=device,
        precision=precision,
        cuda_graph=args.cuda_graph and device.type == "cuda" and size() == 1,
        accumulate=args.accumulate,
        clip_gradients=args.clip_gradients,
        test_flips=args.test_flips,
        steps_per_epoch=steps,
        rate_by_step=args.schedule in BY_STEP,
    )
    if args.average != "none":
        training.average, training.averaged_from = make_average(args, model)
    if args.compile:
        training.parallel = compile_or_say_why(training, args.batch_size // size() // args.accumulate, args.image_size)
    if size() > 1:
        training.parallel = average_gradients(training.parallel)
    return training


def compile_or_say_why(training: Training, images: int, side: int) -> nn.Module:
    """The model compiled by `torch.compile`, or, with a line that says so, the model itself where that fails.

    One step on so many blank images of that side finds out, before anything of the run is written; it leaves the model
    as it was.
    """
    model = training.model
    compiled: Any = torch.compile(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    pixels = torch.zeros(images, 3, side, side, device=training.device)
    try:
        with training.autocast():
            logits = compiled(pixels.contiguous(memory_format=torch.channels_last))
        logits.float().sum().backward()
    except Exception as error:  # the compiler's own, a missing C++ compiler, a driver: there is no list
        if is_main():
            print(f"--compile: goes on without, since torch.compile failed ({summary(error)})")
        compiled = model
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        model.zero_grad(set_to_none=True)
    return compiled


def average_gradients(model: nn.Module) -> DistributedDataParallel:
    """The model as each of several processes calls it in training: every backward averages their gradients.

    Before a step, all take rank 0's running statistics: so what rank 0 saves is the state of all.
    """
    # of a 1×1 weight, whose strides can be written in two ways; the copy that it warns of is made in any case
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    return DistributedDataParallel(model)


def make_optimizer(args: UserInput, model: nn.Module) -> optim.Optimizer:
    """The optimizer of all that learns, in its fused form: one kernel over all, and no wait for the loss scale."""
    groups = parameter_groups(model, args.initial_lr, args.body_lr_factor)
    options: dict[str, Any] = {"lr": args.initial_lr, "weight_decay": args.weight_decay, "fused": True}
    if args.weight_decay_on == "weights":
        groups = without_decay(model, groups)
    if args.optimizer == "sgd":
        sgd = optim.SGD(groups, momentum=args.momentum, nesterov=args.momentum > 0.0, **options)
        for parameter in [one for group in groups for one in group["params"]] if args.momentum else []:
            # the first step makes them otherwise, and leaves them unwritten where fp16's loss scaling skips it
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[args.optimizer]
    return kind(groups, betas=(args.momentum, args.beta2), **options)


def without_decay(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same groups, each in two: the weights of convolutions and linear layers, and what does not decay.

    That is norms, biases and position embeddings.
    """
    decaying = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        for name, parameter in module.named_parameters(recurse=False)
        if name != "bias"
    }
    halves = []
    for group in groups:
        weights, others = ([one for one in group["params"] if (one in decaying) is wanted] for wanted in (True, False))
        halves += [{**group, "params": weights}, {**group, "params": others, "weight_decay": 0.0}]
    return [half for half in halves if half["params"]]


def make_average(args: UserInput, model: nn.Module) -> tuple[AveragedModel, int | None]:
    """The average of the weights that the settings ask for, and from which epoch on it takes an epoch's last weights.

    The exponential one takes those of every step, from the first on.
    """
    if args.average == "exponential":
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average_decay)), None
    return AveragedModel(model), first_averaged(args)


def first_averaged(args: UserInput) -> int:
    """The first of the epochs that `last_epochs` averages: the last ones of the schedule, wherever the run ends."""
    return max(1, args.epochs - args.average_epochs + 1)


def make_scheduler(args: UserInput, optimizer: optim.Optimizer, steps: int = 1) -> optim.lr_scheduler.LambdaLR:
    """The learning rate of every epoch, or of every of its `steps`, as `learning_rate_factor` has it."""
    unit = steps if args.schedule in BY_STEP else 1
    return optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_factor(done, args.epochs, args.warmup_epochs, args.schedule, unit)
    )


def learning_rates(args: UserInput, steps: int) -> list[tuple[float, float]]:
    """The learning rates of every epoch's first and last step."""
    unit = steps if args.schedule in BY_STEP else 1
    return [
        (
            args.initial_lr * learning_rate_factor(first, args.epochs, args.warmup_epochs, args.schedule, unit),
            args.initial_lr * learning_rate_factor(last, args.epochs, args.warmup_epochs, args.schedule, unit),
        )
        for first, last in ((epoch * unit, (epoch + 1) * unit - 1) for epoch in range(args.epochs))
    ]


def learning_rate_factor(done: int, epochs: int, warmup_epochs: int, schedule: str = "epoch", steps: int = 1) -> float:
    """What `initial_lr` is multiplied with after `done` epochs, or after `done` steps of so many in each epoch.

    A linear warm-up from 1 to `warmup_epochs`, then half a cosine from there towards 0 (study, Table 3). In a short run
    the warm-up takes a fifth of the epochs, rounded up. `schedule`, as in `UserInput`: with `epoch`, the first epoch
    after the warm-up has the peak and 0 would come after the last; with `study`, the cosine is one epoch further on, as
    in the study's code, so the last epoch has 0 and a run of up to five epochs not the peak; with `step`, warm-up and
    cosine go on by steps; with `one_cycle`, the warm-up is half a cosine too (`OneCycleLR`).
    """
    peak, ramp = max(1, warmup_epochs), min(warmup_epochs, math.ceil(epochs / WARMUP_SHARE))
    warmup, total = ramp * steps, epochs * steps
    if schedule == "one_cycle":
        return _one_cycle(done, peak, warmup - 1, total - 1)
    if done < warmup:
        ends_on_peak = 0 if schedule == "step" else 1  # the warm-up's last epoch has it, or the step after the warm-up
        return 1.0 + (peak - 1.0) * done / max(1, warmup - ends_on_peak)
    ahead = 1 if schedule == "study" else 0
    return peak * 0.5 * (1.0 + math.cos(math.pi * (done - warmup + ahead) / max(1, total - warmup)))


def _one_cycle(done: int, peak: float, top: int, last: int) -> float:
    """From 1 up to `peak` at step `top`, and down to nearly 0 at step `last`, each by half a cosine."""
    start, end, share = (1.0, peak, done / max(1, top)) if done <= top else (peak, ONE_CYCLE_END, 0.0)
    if done > top:
        share = min(1.0, (done - top) / max(1, last - top))
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def evaluation_logits(network: nn.Module, pixels: Tensor, flips: bool) -> Tensor:
    """(b, 3, s, s) -> (b, classes) as a test has them: with `flips`, the mean of those of each image and its mirror."""
    logits = network(pixels)
    if not flips:
        return logits
    both = torch.stack([logits, network(pixels.flip(3))])
    return both.mean(0, dtype=torch.promote_types(both.dtype, torch.float32))  # not rounded once more in bf16


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(b, classes), labels (b,) or shares (b, classes) -> how many of the highest logits are at the label, or at the
    class with the largest share, as a number on the device.
    """
    return (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
