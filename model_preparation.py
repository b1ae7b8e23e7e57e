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
from torchvision.models.resnet import ResNet

from acceleration.devices import PRECISIONS, choose_precision
from acceleration.distributed import is_main, size
from acceleration.fast_layers import keep_freed_memory, quicken
from acceleration.sync_batch_norm import synchronise
from command_line.errors import summary
from data_preprocessing import class_count
from LabelSmoothing import LabelSmoothing
from resnet_lambda import build_lambda_resnet
from user_input import UserInput

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

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @property
    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])

    def end_epoch(self) -> None:
        """Move on to the next epoch's learning rate."""
        with warnings.catch_warnings():
            # where a run was resumed between training and test, another process made the epoch's optimizer steps
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def parameters(self) -> int:
        """The number of trained numbers in the model; shared ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": _without_graph(self.optimizer.state_dict()),
            "scheduler": _plain_numbers(self.scheduler.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        schedule = self.scheduler.state_dict()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # a schedule takes over as attributes whatever it is given: so, only what it has itself
        self.scheduler.load_state_dict({name: state["scheduler"].get(name, schedule[name]) for name in schedule})
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
    args: UserInput, num_classes: int, device: torch.device, make_model: MakeModel = build_model
) -> Training:
    """Model, optimizer, schedule and loss of a run that begins.

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
    optimizer = make_optimizer(args, model)
    training = Training(
        model=model,
        parallel=model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, args.epochs, args.warmup_epochs),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        loss=LabelSmoothing(args.label_smoothing),
        device=device,
        precision=precision,
        cuda_graph=args.cuda_graph and device.type == "cuda" and size() == 1,
    )
    if args.compile:
        training.parallel = compile_or_say_why(training, args.batch_size // size(), args.image_size)
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
    """The optimizer, in its fused form: one kernel over all parameters, and no wait for the loss scale."""
    options: dict[str, Any] = {"lr": args.initial_lr, "weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "sgd":
        sgd = optim.SGD(model.parameters(), momentum=args.momentum, nesterov=args.momentum > 0.0, **options)
        for parameter in model.parameters() if args.momentum else ():
            # the first step makes them otherwise, and leaves them unwritten where fp16's loss scaling skips it
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[args.optimizer]
    return kind(model.parameters(), betas=(args.momentum, args.beta2), **options)


def make_scheduler(optimizer: optim.Optimizer, epochs: int, warmup_epochs: int) -> optim.lr_scheduler.LambdaLR:
    """The learning rate of every epoch, as `learning_rate_factor` has it."""
    return optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate_factor(done, epochs, warmup_epochs))


def learning_rate_factor(done: int, epochs: int, warmup_epochs: int) -> float:
    """What `initial_lr` is multiplied with after `done` epochs (study, Table 3).

    A linear warm-up from 1 to `warmup_epochs`, then half a cosine from there towards 0. In a short run the
    warm-up takes a fifth of the epochs, rounded up, and rises to the same peak.
    """
    peak = max(1, warmup_epochs)
    warmup = min(warmup_epochs, math.ceil(epochs / WARMUP_SHARE))
    if done < warmup:
        return 1.0 + (peak - 1.0) * done / max(1, warmup - 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / max(1, epochs - warmup)))


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(b, classes), (b,) -> how many of the highest logits are at the label, as a number on the device."""
    return (logits.argmax(1) == labels).sum()
