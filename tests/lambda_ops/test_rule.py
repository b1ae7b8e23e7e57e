from collections.abc import Iterator

import pytest
import torch

from lambda_ops.rule import COSTS, MOST_EXPANDED, Way, _cheapest, choose_way, cost, device_kind
from lambda_ops.tiles import Tiling

KINDS = sorted({kind for kind, _ in COSTS})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every kind of device, as if this machine had it."""
    capability = request.param.removeprefix("cpu ").upper()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    _cheapest.cache_clear()
    yield request.param
    _cheapest.cache_clear()


def test_the_kind_of_device_is_told(kind: str) -> None:
    assert device_kind(kind.partition(" ")[0]) == kind


@pytest.mark.parametrize("scope", [3, 7, 23, None])
@pytest.mark.parametrize("side", [1, 7, 16, 32, 64])
def test_chosen_way_is_the_cheapest_that_fits(side, scope, kind):
    device = kind.partition(" ")[0]
    size, sides = (side, side), (min(scope or 99, 2 * side - 1),) * 2
    arguments = size, sides, 4, 16, 32, 1
    chosen = choose_way(*arguments, device=device)
    assert chosen == choose_way(*arguments, device=device)
    for way in (Way("fft"), Way("convolution"), Way("attention", (1, side)), Way("lambda", (1, side))):
        costs = (cost(w, *arguments, costs=COSTS[kind, True]) for w in (chosen, way))
        assert next(costs) <= next(costs)
    if chosen.tile:
        tiling = Tiling(size, chosen.tile, sides)
        assert tiling.expand(torch.zeros(16, 1, *sides)).numel() <= MOST_EXPANDED


@pytest.mark.parametrize("value_depth", [16, 128])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_small_maps_are_one_tile_in_attention_order(side, value_depth, kind):
    arguments = (side, side), (2 * side - 1,) * 2, 4, 16, value_depth, 1
    assert choose_way(*arguments, device=kind.partition(" ")[0]) == Way("attention", (side, side))
