"""What takes a CUDA GPU to be checked; pytest needs none, and has the same of the CPU.

    python tests/gpu_checks.py                    # a minute or two; exit code 1 where a check fails
    python tests/gpu_checks.py --device cpu       # rehearses it, without what a CPU has not

Each line tells a check and what it came to.
"""

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from layer_tools import perturb, value_and_gradients, ways

from acceleration.cuda_graph import Replay
from acceleration.devices import set_determinism
from data_preprocessing import Data, load_data
from lambda_layer import LambdaLayer
from model_preparation import Training, build_model, prepare_training
from nntrain import EpochProgress, TrainingStep, train_epoch
from user_input import UserInput

LAYERS = {
    "local": {"scope": 3},
    "global": {"input_size": (7, 6), "intra_depth": 2},
    "wide, deep": {"scope": 5, "intra_depth": 4, "content": False},
}
SETTINGS = UserInput(depth=26, dataset="digits", image_size=16, batch_size=64, epochs=3, initial_lr=1e-3)


def layers_give_what_the_cpu_gives(device: torch.device) -> str:
    """Every way, value and gradients, against float64 on the CPU."""
    worst = {torch.float64: 0.0, torch.float32: 0.0}
    for arguments in LAYERS.values():
        torch.manual_seed(0)
        layer = perturb(LambdaLayer(8, 12, **arguments).double())
        x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
        expected = value_and_gradients(layer, layer, x)
        for dtype in worst:
            there = copy.deepcopy(layer).to(device, dtype)
            for way in (None, *ways(2)):
                there._way = way
                results = value_and_gradients(there, there, x.to(device, dtype))
                for result, known in zip(results, expected, strict=True):
                    apart = (result.cpu().double() - known).abs().max() / max(1.0, known.abs().max())
                    worst[dtype] = max(worst[dtype], apart.item())
    assert worst[torch.float64] <= 1e-10, worst
    assert worst[torch.float32] <= 1e-4, worst
    return ", ".join(f"apart by at most {apart:.0e} in {str(dtype)[6:]}" for dtype, apart in worst.items())


def half_precision_stays_finite(device: torch.device) -> str:
    """At 64×64, with embeddings ~ N(0, 1)."""
    for dtype in (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.bfloat16,):
        for arguments in ({"input_size": 64}, {"scope": 7}, {"scope": 23}):
            layer = LambdaLayer(32, **arguments).to(device)
            x = torch.randn(2, 32, 64, 64, device=device)
            with torch.autocast(device.type, dtype):
                y = layer(x)
            y.float().square().mean().backward()
            assert y.isfinite().all(), (dtype, arguments)
            assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters()), (dtype, arguments)
    return "values and gradients, of maps of 64×64"


def networks_give_what_the_cpu_gives(device: torch.device) -> str:
    """Logits and gradients in float32, both networks and both stems; a kink that rounding crosses moves a gradient."""
    torch.backends.cudnn.allow_tf32 = False
    apart = [0.0, 0.0]
    for settings in ({"model": "baseline"}, {}, {"stem": "cifar"}, {"stem": "cifar", "scope": 7}):
        torch.manual_seed(0)
        model = build_model(dataclasses.replace(SETTINGS, zero_init_residual=False, **settings), 10).double()
        pixels, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 10
        there = copy.deepcopy(model).float().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        expected, results = (logits_and_gradient(net, pixels, labels) for net in (model, there))
        for place, (result, known) in enumerate(zip(results, expected, strict=True)):
            apart[place] = max(apart[place], ((result.cpu().double() - known).norm() / known.norm()).item())
    assert apart[0] < 1e-3, apart
    assert apart[1] < 0.1, apart
    return (
        f"logits of four networks apart by at most {apart[0]:.0e} of their norm, gradients {apart[1]:.0e}, in float32"
    )


def logits_and_gradient(model: torch.nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    weight = model.conv1.weight
    logits = model(pixels.to(weight))
    loss = F.cross_entropy(logits, labels.to(weight.device))
    return logits.detach(), torch.autograd.grad(loss, weight)[0]


def trained(device: torch.device, epochs: int = 2, **settings) -> tuple[Training, TrainingStep, list[float]]:
    args = dataclasses.replace(SETTINGS, device=str(device), **settings)
    set_determinism(args.deterministic)
    data = load_data(args, device)
    training = prepare_training(args, 10, device)
    step, losses = TrainingStep(training), []
    for epoch in range(1, epochs + 1):
        losses.append(train_epoch(step, data.train, epoch, EpochProgress()).loss)
        training.end_epoch()
    return training, step, losses


def replayed_steps_are_the_steps(device: torch.device) -> str:
    """The CUDA graph against the step, operation by operation, over two epochs at two learning rates."""
    lines = []
    for precision, optimizer in (("fp32", "adam"), ("fp32", "sgd"), ("bf16", "adam"), ("fp16", "sgd")):
        if precision == "fp16" and device.type != "cuda":
            continue
        runs = [
            trained(device, cuda_graph=graph, precision=precision, optimizer=optimizer, deterministic=True)
            for graph in (True, False)
        ]
        if device.type == "cuda":
            assert isinstance(runs[0][1].replayed, Replay), "the graph was not used"
        losses = [losses for _, _, losses in runs]
        apart = max(abs(one - other) / other for one, other in zip(*losses, strict=True))
        assert apart < 0.02, (precision, optimizer, losses)
        lines.append(f"{precision} {optimizer} {apart:.0e}")
    return f"losses of two epochs apart by {', '.join(lines)}"


def runs_repeat(device: torch.device) -> str:
    """Twice the same, bit for bit, with `deterministic`."""
    one, other = (trained(device, epochs=1, deterministic=True)[0].model.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    return "weights equal bit for bit, with deterministic"


def no_step_waits(device: torch.device) -> str:
    """Nothing within an epoch makes the CPU wait for the GPU."""
    args = dataclasses.replace(SETTINGS, device=str(device))
    set_determinism(False)
    data: Data = load_data(args, device)
    for graph in (True, False):
        step = TrainingStep(dataclasses.replace(prepare_training(args, 10, device), cuda_graph=graph))
        step.training.parallel.train()
        batches = data.train.batches(1)
        for _ in range(3):
            step(*next(batches))
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                step(*batch)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return f"{len(data.train) - 3} steps without a wait, replayed and not"


CHECKS: list[Callable[[torch.device], str]] = [
    layers_give_what_the_cpu_gives,
    half_precision_stays_finite,
    networks_give_what_the_cpu_gives,
    replayed_steps_are_the_steps,
    runs_repeat,
    no_step_waits,
]


def main(device: torch.device) -> bool:
    """Whether every check has passed."""
    passed = True
    for check in CHECKS:
        if check is no_step_waits and device.type != "cuda":
            continue
        name = check.__name__.replace("_", " ")
        try:
            print(f"passed  {name}: {check(device)}", flush=True)
        except Exception as error:
            passed = False
            print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
    return passed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<index> or cpu (default: cuda)")
    chosen = parser.parse_args().device
    if chosen != "cpu" and not torch.cuda.is_available():
        sys.exit("device: there is no CUDA GPU; --device cpu rehearses what a CPU can do")
    sys.exit(0 if main(torch.device(chosen)) else 1)
