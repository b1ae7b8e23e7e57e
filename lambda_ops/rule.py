"""The rule: which way of computing is the cheapest, by measured costs."""

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

from lambda_ops.fourier import fourier_length
from lambda_ops.maps import fft_length
from lambda_ops.sizes import Size
from lambda_ops.tiles import Tiling


class Way(NamedTuple):
    """How the position output is computed: "attention" or "lambda" (with a tile), "convolution", "fourier" or "fft"."""

    name: str
    tile: Size = ()


class Costs(NamedTuple):
    """Nanoseconds per unit of work."""

    product: float  # one multiplication and addition of the forward pass, in either order
    attention: float  # one entry of the attention (t, h·B, c·u): written and read in each pass
    position_lambda: float  # one entry of λ_p (b, n, k, v)
    window: float  # one entry of the windows (B, c·u, v)
    embedding: float  # one entry of the expanded embedding, (t, c·u, k) or (f, 2·rows·k, 2·u·rows)
    tile: float
    transform: float  # one entry of (v, k, *f), padding included
    frequency_product: float  # likewise, for each of u
    convolution_product: float
    fourier_product: float  # one multiplication and addition of the forward pass in frequencies
    fourier_lambda: float  # one entry of λ_p (b, n, k, v)


# cpu avx512: fitted to timings from 8×8 to 64×64, d 64 to 512, of two cores (Zen 4), float32, PyTorch 2.15, and then
# shifted by hand. `fit_costs.py` on the committed timings: above 1.1 times the fastest forced way for 1 of 32 shapes
# (forward alone: 3); costs fitted to these very timings are so for 2 (5).
# cpu avx2: those of avx512 but for the forward pass's windows. On two timings of two Zen 3 cores and one of Zen 4 cores
# told to be AVX2 ones, PyTorch 2.14, they are above 1.1 times for 2, 1 and 2 of 32 shapes, the worst at 1.18 (forward
# alone: 2, 1 and 1, at 1.30); sets fitted to one of these timings were no better on the others. The first is committed.
# cuda: not measured; from an H100's data sheet (50 TFLOP/s in float32, 3 TB/s), four passes over every entry.
COSTS = {  # (kind of device, whether a backward pass follows)
    ("cpu avx512", True): Costs(0.053, 1.4, 6.8, 3.6, 1.5, 250, 2.3, 3.9, 0.77, 0.07, 3.0),
    ("cpu avx512", False): Costs(0.0108, 0.284, 1.26, 0.218, 0.362, 0, 0.6, 1.0, 0.0113, 0.0212, 1.13),
    ("cpu avx2", True): Costs(0.053, 1.4, 6.8, 3.6, 1.5, 250, 2.3, 3.9, 0.77, 0.07, 3.0),
    ("cpu avx2", False): Costs(0.0108, 0.284, 1.26, 0.56, 0.362, 0, 0.6, 1.0, 0.0113, 0.0212, 1.13),
    ("cuda", True): Costs(1.4e-4, 0.01, 0.01, 0.01, 0.01, 0, 0.01, 0.02, 1e-3, 2e-4, 0.02),
    ("cuda", False): Costs(5e-5, 0.003, 0.003, 0.003, 0.003, 0, 0.003, 0.007, 3e-4, 5e-5, 0.006),
}
NOMINAL_BATCH = 8  # images that share the expanding of the embedding: the way shall not depend on the batch
MOST_EXPANDED = 2**24  # floats of the expanded embedding: 64 MiB, and as much again for its gradient


def device_kind(device: str) -> str:
    """The kind of device in `COSTS` that one of that type is, or is taken for."""
    if device != "cpu":
        return "cuda"
    return "cpu avx512" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "cpu avx2"


@torch.compiler.assume_constant_result
def choose_way(
    size: Size,
    scope: Size,
    h: int,
    k: int,
    v: int,
    u: int,
    *,
    device: str = "cpu",
    backward: bool = True,
    only_whole: bool = False,
) -> Way:
    """The cheapest way by `cost`, among those whose expanded embedding is not too large."""
    return _cheapest(size, scope, h, k, v, u, device, backward, only_whole)


@lru_cache
def _cheapest(
    size: Size, scope: Size, h: int, k: int, v: int, u: int, device: str, backward: bool, only_whole: bool
) -> Way:
    tiles = [size] if only_whole else list(product(*({min(s, t) for t in (1, 2, 4, 8, s)} for s in size)))
    ways = [Way(name, tile) for name in ("attention", "lambda") for tile in sorted(tiles)]
    if not only_whole:
        ways = [way for way in [*ways, Way("fourier")] if _expanded(way, size, scope, k, u) <= MOST_EXPANDED]
        ways += [Way("convolution"), Way("fft")]
    costs = COSTS[device_kind(device), backward]
    return min(ways, key=lambda way: cost(way, size, scope, h, k, v, u, costs))


def _expanded(way: Way, size: Size, scope: Size, k: int, u: int) -> int:
    """Entries of the expanded embedding."""
    if way.name == "fourier":
        frequencies = fourier_length(size[-1], scope[-1]) // 2 + 1
        return frequencies * 4 * math.prod(size[:-1]) ** 2 * k * u
    return math.prod(way.tile) * math.prod(Tiling(size, way.tile, scope).context()) * k * u


def cost(way: Way, size: Size, scope: Size, h: int, k: int, v: int, u: int, costs: Costs) -> float:
    """Nanoseconds for forward, or forward and backward, of one image, projections and norms left out.

    Linear in the costs, by which `fit_costs.py` finds them.
    """
    position_lambda = costs.position_lambda * math.prod(size) * k * v
    if way.name == "convolution":
        return costs.convolution_product * math.prod(size) * math.prod(scope) * u * k * v + position_lambda
    if way.name == "fft":
        count = math.prod(fft_length(s + r // 2) for s, r in zip(size, scope, strict=True))
        return count * k * v * (costs.transform + costs.frequency_product * u) + position_lambda
    expanded = _expanded(way, size, scope, k, u)
    expanding = costs.embedding * expanded / NOMINAL_BATCH
    if way.name == "fourier":
        frequencies = fourier_length(size[-1], scope[-1]) // 2 + 1
        products = expanded * v + 2 * frequencies * math.prod(size) * k * v
        return costs.fourier_product * products + costs.fourier_lambda * math.prod(size) * k * v + expanding
    tiling = Tiling(size, way.tile, scope)
    t, c, tiles = math.prod(way.tile), math.prod(tiling.context()) * u, math.prod(tiling.blocks())
    if way.name == "attention":
        ordered = t * c * h * (costs.product * (k + v) + costs.attention)
    else:
        ordered = t * k * v * (costs.product * c + costs.position_lambda)
    cut = costs.window * c * v + costs.tile if tiles > 1 else 0  # one tile needs no copy
    return tiles * (ordered + cut) + expanding
