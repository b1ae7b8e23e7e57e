"""`python benchmark.py scaling`: how time and memory grow, the paper's Table 4 on the user's own machine.

Forward and backward of a lambda layer (global, and with a 7×7 scope), of self-attention with the same heads and a
relative position bias (PyTorch's `scaled_dot_product_attention`), and of a 3×3 convolution, all from d to d channels,
as the side of the map and the batch grow; and of whole networks built of them, as the depth grows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from acceleration.fast_layers import quicken
from benchmarks.measuring import measure, peak_memory
from lambda_layer import LambdaLayer
from reference_networks.attention import SelfAttention2d
from reference_networks.plain import replace_convolutions
from resnet import build_resnet
from resnet_lambda import build_lambda_resnet

DIM, HEADS = 128, 4
SIDES, BATCHES, DEPTHS = (8, 16, 32, 64), (2, 8, 32, 128), (26, 50, 101)
BATCH, SIDE = 8, 16  # where the other of the two grows
NETWORK_BATCH, IMAGE_SIZE = 32, 32
MOST_ATTENTION = 2**28  # floats of one attention map (b, h, n, n), 1 GiB; beyond, the row is left out
BUDGET = 4.0  # seconds for the turns of a point
# Okabe and Ito's colours, which the colour-blind can tell apart, and a marker each
STYLES = {
    "lambda layer, global": ("#0072B2", "o"),
    "lambda layer, 7×7": ("#56B4E9", "s"),
    "self-attention": ("#D55E00", "^"),
    "3×3 convolution": ("#009E73", "D"),
}
AXES = {"side": "side of the map (positions)", "batch": "batch (images)", "depth": "depth (layers)"}


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "lambda layer, global": lambda side: LambdaLayer(DIM, input_size=side, heads=HEADS),
    "lambda layer, 7×7": lambda side: LambdaLayer(DIM, scope=7, heads=HEADS),
    "self-attention": lambda side: SelfAttention2d(DIM, (side, side)),
    "3×3 convolution": lambda side: nn.Conv2d(DIM, DIM, 3, padding=1, bias=False),
}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "lambda layer, global": lambda depth: build_lambda_resnet(depth, image_size=IMAGE_SIZE, num_classes=10),
    "lambda layer, 7×7": lambda depth: build_lambda_resnet(depth, image_size=IMAGE_SIZE, num_classes=10, scope=7),
    "self-attention": lambda depth: attention_resnet(depth),
    "3×3 convolution": lambda depth: build_resnet(depth, num_classes=10),
}


def attention_resnet(depth: int) -> ResNet:
    """A ResNet with self-attention in place of the 3×3 convolutions, pooled where those had a stride of 2."""
    return replace_convolutions(
        build_resnet(depth, num_classes=10), SelfAttention2d, image_size=IMAGE_SIZE, stem="imagenet"
    )


def benchmark_scaling(device: torch.device, quick: bool) -> dict[str, Any]:
    """Time and peak memory of forward and backward, as side, batch and depth grow."""
    points = []
    for axis, values in {"side": SIDES, "batch": BATCHES, "depth": DEPTHS}.items():
        for value in values[:2] if quick else values:
            modules, x, left_out = _modules(axis, value, device)
            steps = {name: step(module, x) for name, module in modules.items()}
            timings = measure(steps, device, BUDGET / 4 if quick else BUDGET)
            for name in steps:
                memory = peak_memory(steps[name], device)
                points.append(
                    {"axis": axis, "value": value, "row": name, "step_ms": timings[name]._asdict(), "peak_mib": memory}
                )
            points += [{"axis": axis, "value": value, "row": name, "left_out": why} for name, why in left_out.items()]
            _print([point for point in points if (point["axis"], point["value"]) == (axis, value)])
    return {
        "unit": "milliseconds of forward and backward: median, lower and upper quartile; MiB",
        "memory": "highest in one step",
        "layer": {"dim": DIM, "heads": HEADS, "side": SIDE, "batch": BATCH},
        "network": {"image_size": IMAGE_SIZE, "batch": NETWORK_BATCH, "stem": "imagenet"},
        "points": points,
    }


def _modules(axis: str, value: int, device: torch.device) -> tuple[dict[str, nn.Module], Tensor, dict[str, str]]:
    """(name: module; its input; name: why it is left out)"""
    if axis == "depth":
        modules = {name: quicken(build(value)) for name, build in NETWORKS.items()}
        x = torch.randn(NETWORK_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
        left_out: dict[str, str] = {}
    else:
        side, batch = (value, BATCH) if axis == "side" else (SIDE, value)
        attention = batch * HEADS * side**4
        left_out = {}
        if attention > MOST_ATTENTION:
            left_out["self-attention"] = f"each attention map takes {attention / 2**28:.0f} GiB"
        modules = {name: build(side) for name, build in LAYERS.items() if name not in left_out}
        x = torch.randn(batch, DIM, side, side)
    modules = {name: module.to(device) for name, module in modules.items()}
    return modules, x.to(device, memory_format=torch.channels_last), left_out


def step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, with gradients for the input and every parameter."""
    x = x.clone().requires_grad_()
    with torch.no_grad():
        gradient = torch.ones_like(module(x))
    wanted = [x, *module.parameters()]

    def run() -> None:
        torch.autograd.grad(module(x), wanted, gradient, allow_unused=True)

    return run


def _print(points: list[dict[str, Any]]) -> None:
    print(f"\n{AXES[points[0]['axis']]}: {points[0]['value']}")
    for point in points:
        if "left_out" in point:
            print(f"  {point['row']:24} left out: {point['left_out']}")
        else:
            print(f"  {point['row']:24}{point['step_ms']['median']:10.1f} ms{point['peak_mib']:10.1f} MiB")


def plot(content: dict[str, Any], device_name: str, path: Path) -> None:
    """Time above, memory below; one column for each thing that grows."""
    figure, grid = plt.subplots(2, 3, figsize=(11, 6.5), sharex="col", layout="constrained")
    for column, axis in enumerate(AXES):
        for row, (read, unit) in enumerate(
            [(lambda point: point["step_ms"]["median"], "ms"), (lambda point: point["peak_mib"], "peak MiB")]
        ):
            panel = grid[row, column]
            for name, (colour, marker) in STYLES.items():
                points = [p for p in content["points"] if (p["axis"], p["row"]) == (axis, name) and "step_ms" in p]
                panel.plot(
                    [p["value"] for p in points], [read(p) for p in points], color=colour, marker=marker, label=name
                )
            values = sorted({p["value"] for p in content["points"] if p["axis"] == axis})
            panel.set(xscale="log", yscale="log", ylabel=f"{unit}, forward and backward")
            panel.set_xticks(values, [str(value) for value in values], minor=False)
            panel.set_xticks([], minor=True)
            panel.grid(alpha=0.3)
        layer, network = content["layer"], content["network"]
        grid[0, column].set_title(
            {
                "side": f"one layer, {layer['dim']} channels, batch {layer['batch']}",
                "batch": f"one layer, {layer['dim']} channels, {layer['side']}×{layer['side']}",
                "depth": f"ResNets, {network['image_size']}×{network['image_size']} images, batch {network['batch']}",
            }[axis],
            fontsize=10,
        )
        grid[1, column].set_xlabel(AXES[axis])
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.suptitle(f"{device_name}, PyTorch {torch.__version__}, float32", fontsize=10)
    figure.savefig(path, facecolor="white")
    plt.close(figure)
