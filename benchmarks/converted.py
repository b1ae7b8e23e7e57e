"""`python benchmark.py convert`: timm's and lambda-networks' layers, and timm's networks, beside what is made of them.

Ours are what `convert.py` makes of theirs: same weights, same outputs. All are timed in one process, in turns, float32,
with contiguous and with channels-last input: forward and backward in training mode, and forward alone in evaluation
mode. A speed-up is that of the faster format of each. All rows keep the memory that they free for the next call, as
training does.
"""

import copy
import statistics
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from acceleration.fast_layers import keep_freed_memory
from benchmarks.measuring import MEMORY_HOW, measure, peak_memory
from command_line.errors import InputError
from convert import replace_lambda_layers

PACKAGES = {"timm": "timm", "lambda_networks": "lambda-networks"}  # name in Python: name for pip
MEASURED = ("training", "evaluation")
FORMATS = {"": torch.contiguous_format, ", channels last": torch.channels_last}
POSITIONS = {"cpu": 4096, "cuda": 2**17}  # of a layer's batch
IMAGES = {"cpu": 4, "cuda": 64}  # of a network's
IMAGE_SIZE = 256
BUDGET = 10.0  # seconds for the turns of a case and a measurement; a fifth of it with --quick


class Case(NamedTuple):
    """A module of theirs and the input (channels, side, side) that it takes."""

    name: str
    build: Callable[[], nn.Module]
    channels: int
    side: int
    is_layer: bool = True

    def batch(self, device: torch.device) -> int:
        return POSITIONS[device.type] // self.side**2 if self.is_layer else IMAGES[device.type]


def timm_layer(side: int, dim: int, r: int | None) -> Case:
    def build() -> nn.Module:
        from timm.layers.lambda_layer import LambdaLayer  # only this benchmark needs the package

        options: dict[str, Any] = {"r": r, "feat_size": (side, side)}
        return LambdaLayer(dim, **options)

    return Case(f"timm, {side}×{side}, d = {dim}, {f'r = {r}' if r else 'global'}", build, dim, side)


def lambda_networks_layer(side: int, dim: int, r: int | None, u: int) -> Case:
    def build() -> nn.Module:
        from lambda_networks import LambdaLayer  # as above

        context = {"r": r} if r else {"n": side}
        return LambdaLayer(dim, dim_k=16, dim_u=u, **context)

    name = f"lambda-networks, {side}×{side}, d = {dim}, {f'r = {r}' if r else 'global'}, u = {u}"
    return Case(name, build, dim, side)


def timm_network(name: str) -> Case:
    def build() -> nn.Module:
        import timm  # as above

        return timm.create_model(name)

    return Case(name, build, 3, IMAGE_SIZE, is_layer=False)


CASES = [
    *(timm_layer(side, dim, r) for r in (9, None) for side, dim in ((8, 512), (16, 256), (32, 128))),
    *(lambda_networks_layer(side, dim, r, 1) for r in (23, None) for side, dim in ((16, 256), (32, 64))),
    *(lambda_networks_layer(16, 128, r, 4) for r in (23, None)),
    *(timm_network(name) for name in ("lambda_resnet26t", "lambda_resnet26rpt_256", "lambda_resnet50ts")),
]
QUICK_CASES = [timm_layer(16, 256, 9), lambda_networks_layer(16, 256, None, 1), timm_network("lambda_resnet26t")]


def benchmark_convert(device: torch.device, quick: bool) -> dict[str, Any]:
    """Times of every case in milliseconds, peak memory, and how much faster ours are.

    Raises:
        InputError: a package is not installed.
    """
    if missing := [name for package, name in PACKAGES.items() if find_spec(package) is None]:
        raise InputError(f"convert: {' and '.join(missing)} not installed; pip install {' '.join(missing)}")
    if device.type == "cpu":
        keep_freed_memory()
    results = []
    for case in QUICK_CASES if quick else CASES:
        results.append(measure_case(case, device, BUDGET / 5 if quick else BUDGET))
        print_case(results[-1])
    summary = summarise(results)
    for kind, means in summary.items():
        print(f"{kind}: " + ", ".join(f"{mean:.2f} × in {measured}" for measured, mean in means.items()))
    return {
        "dtype": "float32",
        "unit": "milliseconds per batch: median, lower and upper quartile",
        "memory": f"{MEMORY_HOW[device.type]}; in evaluation mode during one forward",
        "versions_of_theirs": {name: version(name) for name in PACKAGES.values()},
        "geometric_mean_speed_up": summary,
        "cases": results,
    }


def measure_case(case: Case, device: torch.device, budget: float) -> dict[str, Any]:
    batch = case.batch(device)
    x = torch.randn(batch, case.channels, case.side, case.side, device=device)
    theirs = nn.Sequential(case.build()).to(device)
    update_bn([x], theirs)  # untrained networks overflow in evaluation mode with the statistics that they start with
    ours = copy.deepcopy(theirs)
    replaced = replace_lambda_layers(ours, verbose=False)
    rows: dict[str, dict[str, Any]] = {}
    for measured in MEASURED:
        steps = {}
        for name, model in {"theirs": theirs, "ours": ours}.items():
            for word, memory_format in FORMATS.items():
                twin = copy.deepcopy(model).train(measured == "training")
                steps[name + word] = _step(twin, x.clone(memory_format=memory_format), case.is_layer)
        for name, timing in measure(steps, device, budget).items():
            row = {"ms": timing._asdict(), "peak_mib": round(peak_memory(steps[name], device), 3)}
            rows.setdefault(name, {})[measured] = row
    return {
        "name": case.name,
        "is_layer": case.is_layer,
        "batch": batch,
        "lambda_layers": len(replaced),
        "difference": _difference(theirs.eval(), ours.eval(), x),
        "speed_up": {measured: _speed_up(rows, measured) for measured in MEASURED},
        "rows": rows,
    }


def _step(model: nn.Module, x: Tensor, for_input: bool) -> Callable[[], None]:
    """In training mode forward and backward, for the input's gradient where that is asked for; else forward."""

    def train() -> None:
        y = model(x)
        torch.autograd.grad(y, wanted, torch.ones_like(y))

    def evaluate() -> None:
        with torch.no_grad():
            model(x)

    wanted = [*model.parameters(), *([x.requires_grad_()] if for_input and model.training else [])]
    return train if model.training else evaluate


@torch.no_grad()
def _difference(theirs: nn.Module, ours: nn.Module, x: Tensor) -> float:
    """Largest difference of the outputs beside their largest entry."""
    expected = theirs(x)
    return float((ours(x) - expected).abs().max() / expected.abs().max())


def _speed_up(rows: dict[str, dict[str, Any]], measured: str) -> float:
    times = {
        side: min(row[measured]["ms"]["median"] for name, row in rows.items() if name.startswith(side))
        for side in ("theirs", "ours")
    }
    return round(times["theirs"] / times["ours"], 2)


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric means of the speed-ups, of layers and of networks."""
    summary = {}
    for kind, is_layer in {"layers": True, "networks": False}.items():
        ratios = [result["speed_up"] for result in results if result["is_layer"] == is_layer]
        if ratios:
            summary[kind] = {
                measured: round(statistics.geometric_mean(ratio[measured] for ratio in ratios), 2)
                for measured in MEASURED
            }
    return summary


def print_case(result: dict[str, Any]) -> None:
    print(f"\n{result['name']}, batch {result['batch']}: outputs differ by {result['difference']:.1e}")
    print(f"  {'':24}" + "".join(f"{f'{measured} ms':>28}{'peak MiB':>10}" for measured in MEASURED))
    for name, row in result["rows"].items():
        cells = ""
        for measured in MEASURED:
            time = "{median:.1f} ({low:.1f} to {high:.1f})".format(**row[measured]["ms"])
            cells += f"{time:>28}{row[measured]['peak_mib']:>10.1f}"
        print(f"  {name:24}{cells}")
    print("  " + ", ".join(f"{ratio:.2f} × in {measured}" for measured, ratio in result["speed_up"].items()))
