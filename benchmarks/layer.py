"""`python benchmark.py layer`: every way of computing the lambda layer, beside two plain layers.

Forward and forward + backward of the whole layer (projections, norms, content and position) in training mode, float32,
with gradients for the input and every parameter. All the rows of a shape are timed in turns, so that a disturbance
meets all of them; a first turn is not counted. "chosen" is the layer as it is, which follows the rule, one for forward
alone and one for both; each other way is forced. Two plain layers stand beside: "einsum", the paper's listing, whose
E (n, m, k, u) is given expanded, at no cost; and "conv3d", position lambdas by a 3-D convolution. They get contiguous
input, `LambdaLayer` gets channels-last input: each what it likes best. All rows keep the memory that they free for the
next call, as training does.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acceleration.fast_layers import keep_freed_memory
from benchmarks.measuring import MEMORY_HOW, measure, peak_memory
from lambda_layer import LambdaLayer
from lambda_ops.rule import COSTS, Way, choose_way, cost, device_kind
from lambda_ops.sizes import Size
from lambda_ops.tiles import Tiling


class Case(NamedTuple):
    side: int
    dim: int
    scope: int | None
    intra_depth: int = 1

    def layer(self) -> LambdaLayer:
        size = None if self.scope else self.side
        return LambdaLayer(self.dim, scope=self.scope, input_size=size, intra_depth=self.intra_depth)

    def rule_arguments(self, layer: LambdaLayer) -> tuple[Size, Size, int, int, int, int]:
        """What `choose_way` and `cost` take: size, scope, h, k, v, u."""
        everything = 2 * self.side - 1
        sides = (min(self.scope or everything, everything),) * 2
        return (self.side,) * 2, sides, layer.heads, layer.key_depth, layer.value_depth, layer.intra_depth


# What the names of the rows mean; with a tile, `4x4` are the positions whose context is fetched at once
LEGEND = {
    "chosen": "the layer as it is: the way that the rule takes for these sizes",
    "attention": "queries · embedding first, then · values",
    "lambda": "position lambdas first (embedding · values), then queries · lambdas",
    "convolution": "position lambdas by a 2-D convolution of the values",
    "fourier": "position lambdas in frequencies along one axis",
    "fft": "position lambdas by a 2-D fast Fourier transform",
    "einsum": "beside it: the paper's listing, its embedding (n, m, k, u) given",
    "conv3d": "beside it: position lambdas by a 3-D convolution",
}
SCOPES = (7, 23, None)
CASES = [
    *(Case(side, dim, scope) for side, dim in ((8, 64), (8, 512)) for scope in (7, None)),
    *(Case(16, dim, scope) for dim in (64, 256, 512) for scope in SCOPES),
    *(Case(32, dim, scope) for dim in (64, 128, 256) for scope in SCOPES),
    *(Case(64, 64, scope) for scope in SCOPES),
    *(Case(side, dim, scope, 4) for side, dim in ((8, 512), (16, 256), (32, 128)) for scope in (7, None)),
    Case(64, 64, 7, 4),
]
QUICK_CASES = [Case(8, 512, None), Case(16, 256, 7), Case(16, 256, None), Case(32, 64, 7), Case(32, 64, 23)]

MEASURED = {"forward": False, "forward_backward": True}  # name: whether with the backward pass
POSITIONS = {"cpu": 4096, "cuda": 2**17}  # of the whole batch
BUDGET = 9.0  # seconds for the turns of a shape; a quarter of it with --quick
MOST_PRODUCTS = {"cpu": 3e9, "cuda": 3e12}  # of a plain layer's forward pass; beyond, its row is left out
MOST_EMBEDDING = 2**27  # floats of the einsum's E, 512 MiB; likewise
MOST_TIMES_SLOWER = 6  # by the rule's estimate, than the chosen way; likewise for a forced one


class PlainLambda(nn.Module):
    """The layer as it is commonly written, channels first, with the parameters of a `LambdaLayer`."""

    def __init__(self, layer: LambdaLayer) -> None:
        super().__init__()
        self.layer = layer

    def position(self, query: Tensor, value: Tensor, size: list[int]) -> Tensor:
        """Queries (b, h, k, n) and values (b, v, u, n) -> the position output (b, h, v, n)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        layer, (b, _, *size) = self.layer, x.shape
        h, k, v, u = layer.heads, layer.key_depth, layer.value_depth, layer.intra_depth
        query, key, value = (
            F.conv2d(x, linear.weight[:, :, None, None])
            for linear in (layer.to_queries, layer.to_keys, layer.to_values)
        )
        query = layer.norm_queries(query).reshape(b, h, k, -1)
        value = layer.norm_values(value).reshape(b, v, u, -1)
        key = key.reshape(b, k, u, -1).softmax(-1)
        content_lambda = torch.einsum("bkum,bvum->bkv", key, value)
        y = torch.einsum("bhkn,bkv->bhvn", query, content_lambda) + self.position(query, value, size)
        return y.reshape(b, h * v, *size)


def relative_embedding(layer: LambdaLayer) -> Tensor:
    """(k, u, *scope), which every layer that is timed here has."""
    assert layer.embedding is not None
    return layer.embedding


class EinsumLambda(PlainLambda):
    def __init__(self, layer: LambdaLayer, case: Case) -> None:
        super().__init__(layer)
        size, scope, *_, u = case.rule_arguments(layer)
        with torch.no_grad():
            table = relative_embedding(layer)
            middle = [(have - need) // 2 for have, need in zip(table.shape[2:], scope, strict=True)]
            table = table[:, :, middle[0] :, middle[1] :][:, :, : scope[0], : scope[1]]
            expanded = Tiling(size, size, scope).expand(table)  # (n, m·u, k)
        self.embedding = nn.Parameter(expanded.unflatten(1, (-1, u)).transpose(2, 3).contiguous())

    def position(self, query: Tensor, value: Tensor, size: list[int]) -> Tensor:
        position_lambda = torch.einsum("nmku,bvum->bnkv", self.embedding, value)
        return torch.einsum("bhkn,bnkv->bhvn", query, position_lambda)


class Conv3dLambda(PlainLambda):
    def position(self, query: Tensor, value: Tensor, size: list[int]) -> Tensor:
        table = relative_embedding(self.layer).unsqueeze(2)  # (k, u, 1, r, r)
        padding = (0, *(r // 2 for r in table.shape[3:]))
        position_lambda = F.conv3d(value.transpose(1, 2).unflatten(3, size), table, padding=padding)
        return torch.einsum("bhkn,bkvn->bhvn", query, position_lambda.flatten(3))


def layer_rows(case: Case, device: torch.device, batch: int) -> tuple[dict[str, Callable], dict[str, str]]:
    """(name: function of a gradient switch; name: why it is left out)"""
    layer = case.layer().to(device)
    size, _, _, k, v, u = arguments = case.rule_arguments(layer)
    n = math.prod(size)
    chosen, kind = chosen_ways(arguments, device.type), device_kind(device.type)
    estimated = lambda way, backward: cost(way, *arguments, costs=COSTS[kind, backward])  # noqa: E731
    modules: dict[str, nn.Module] = {"chosen": layer}
    left_out: dict[str, str] = {}
    for way in sorted({*forced_ways(size), *chosen.values()}):
        times = min(
            estimated(way, backward) / estimated(chosen[measured], backward) for measured, backward in MEASURED.items()
        )
        if times > MOST_TIMES_SLOWER:
            left_out[way_name(way)] = f"estimated {times:.0f} times slower than the chosen way"
        else:
            modules[way_name(way)] = forced(layer, way)
    products = batch * n * k * v * u
    if products * n > MOST_PRODUCTS[device.type] or n * n * k * u > MOST_EMBEDDING:
        left_out["einsum"] = f"{products * n / 1e9:.1f} G products, E of {n * n * k * u / 2**18:.0f} MiB"
    else:
        modules["einsum"] = EinsumLambda(layer, case).to(device)
    table = math.prod(relative_embedding(layer).shape[2:])
    if products * table > MOST_PRODUCTS[device.type]:
        left_out["conv3d"] = f"{products * table / 1e9:.1f} G products"
    else:
        modules["conv3d"] = Conv3dLambda(layer)
    x = torch.randn(batch, case.dim, *size, device=device)
    return {name: step(module, x) for name, module in modules.items()}, left_out


def chosen_ways(arguments: tuple, device: str) -> dict[str, Way]:
    """What the rule picks, for either measurement."""
    return {name: choose_way(*arguments, device=device, backward=backward) for name, backward in MEASURED.items()}


def forced_ways(size: Size) -> list[Way]:
    height, width = size
    tiles = {(2, 4), (4, 4), (1, width), (2, width), (height, width)}
    tiled = [Way(name, tile) for name in ("attention", "lambda") for tile in sorted(tiles)]
    return [*tiled, Way("convolution"), Way("fourier"), Way("fft")]


def forced(layer: LambdaLayer, way: Way) -> nn.Module:
    twin = nn.Module.__new__(type(layer))
    twin.__dict__ = {**layer.__dict__, "_way": way}
    return twin


def way_name(way: Way) -> str:
    return " ".join([way.name, "x".join(map(str, way.tile))]).strip()


def step(module: nn.Module, x: Tensor) -> Callable[[bool], None]:
    """Forward, or forward + backward, in the memory format that the module likes best."""
    if isinstance(module, LambdaLayer):
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.clone().requires_grad_()
    with torch.no_grad():
        gradient = torch.ones_like(module(x))
    wanted = [x, *(parameter for parameter in module.parameters() if used(module, parameter))]

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            y = module(x)
        if backward:
            torch.autograd.grad(y, wanted, gradient)

    return run


def used(module: nn.Module, parameter: Tensor) -> bool:
    """The einsum has its own expanded embedding in place of the layer's table."""
    return not (isinstance(module, EinsumLambda) and parameter is module.layer.embedding)


def benchmark_layer(device: torch.device, quick: bool) -> dict:
    if device.type == "cpu":
        keep_freed_memory()
    results = []
    print_legend()
    for case in QUICK_CASES if quick else CASES:
        batch = max(2, POSITIONS[device.type] // case.side**2)
        functions, left_out = layer_rows(case, device, batch)
        budget = BUDGET / 4 if quick else BUDGET
        both = measure({name: partial(f, True) for name, f in functions.items()}, device, budget)
        forward = measure({name: partial(f, False) for name, f in functions.items()}, device, budget / 3)
        memory = {name: peak_memory(partial(f, True), device) for name, f in functions.items()}
        arguments = case.rule_arguments(case.layer())
        result = {
            **case._asdict(),
            "batch": batch,
            "chosen": {name: way_name(way) for name, way in chosen_ways(arguments, device.type).items()},
            "rows": {
                name: {
                    "forward_ms": forward[name]._asdict(),
                    "forward_backward_ms": both[name]._asdict(),
                    "peak_memory_mib": round(memory[name], 3),
                }
                for name in functions
            },
            "left_out": left_out,
        }
        results.append(result)
        print_case(result)
    summary = summarise(results)
    print_summary(summary)
    return {
        "dtype": "float32",
        "unit": "milliseconds per batch: median, lower and upper quartile",
        "memory": MEMORY_HOW[device.type],
        "kind": device_kind(device.type),
        "summary": summary,
        "cases": results,
    }


def case_name(result: dict) -> str:
    scope = f"r={result['scope']}" if result["scope"] else "global"
    return f"{result['side']}x{result['side']} d={result['dim']} {scope} u={result['intra_depth']}"


def print_legend() -> None:
    print("Ways of computing the layer, each with the same result; median (quartiles) of a batch:")
    for name, meaning in LEGEND.items():
        print(f"  {name:12} {meaning}")


def print_case(result: dict) -> None:
    forward, both = result["chosen"].values()
    print(
        f"\n{case_name(result)}, batch {result['batch']}: chosen is {both}{f', {forward} forward' * (forward != both)}"
    )
    print(f"  {'':18}{'forward ms':>20}{'forward+backward ms':>28}{'peak MiB':>10}")
    for name, row in sorted(result["rows"].items(), key=lambda item: item[1]["forward_backward_ms"]["median"]):
        times = [
            "{median:.1f} ({low:.1f} to {high:.1f})".format(**row[k]) for k in ("forward_ms", "forward_backward_ms")
        ]
        print(f"  {name:18}{times[0]:>20}{times[1]:>28}{row['peak_memory_mib']:>10.1f}")
    for name, reason in result["left_out"].items():
        print(f"  {name:18} left out: {reason}")


def summarise(results: list[dict]) -> dict:
    """Chosen against the best forced way, and against the faster plain layer, by medians."""
    summary = {}
    for measured in ("forward_ms", "forward_backward_ms"):
        to_best, speed_up = {}, {}
        for result in results:
            times = {name: row[measured]["median"] for name, row in result["rows"].items()}
            chosen = times.pop("chosen")
            plain = [times.pop(name) for name in ("einsum", "conv3d") if name in times]
            to_best[case_name(result)] = round(chosen / min(times.values()), 3)
            if plain:
                speed_up[case_name(result)] = round(min(plain) / chosen, 2)
        summary[measured.removesuffix("_ms")] = {
            "worst_chosen_to_best_forced": max(to_best.values()),
            "slower_than_1.1_best_forced": {name: ratio for name, ratio in to_best.items() if ratio > 1.1},
            "geometric_mean_speed_up": round(statistics.geometric_mean(speed_up.values()), 2),
            "slower_than_plain": {name: ratio for name, ratio in speed_up.items() if ratio < 1},
            "speed_up": speed_up,
            "no_plain_row": [case_name(result) for result in results if case_name(result) not in speed_up],
        }
    return summary


def print_summary(summary: dict) -> None:
    for measured, figures in summary.items():
        print(f"\n{measured.replace('_', ' + ')}:")
        print(f"  chosen way, worst ratio to the best forced one: {figures['worst_chosen_to_best_forced']:.2f}")
        for name, ratio in figures["slower_than_1.1_best_forced"].items():
            print(f"    short of 1.1: {name} {ratio:.2f}")
        print(
            "  speed-up over the faster of einsum and conv3d, geometric mean over "
            f"{len(figures['speed_up'])} shapes: {figures['geometric_mean_speed_up']:.2f} "
            f"({min(figures['speed_up'].values()):.2f} to {max(figures['speed_up'].values()):.2f})"
        )
        for name, ratio in figures["slower_than_plain"].items():
            print(f"    slower than plain: {name} {ratio:.2f}")
        print(f"  shapes where both plain layers are left out: {', '.join(figures['no_plain_row']) or 'none'}")
