import pytest
import torch

from lambda_ops.rule import COSTS, MOST_EXPANDED, Way, choose_way, cost
from lambda_ops.tiles import Tiling


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scope", [3, 7, 23, None])
@pytest.mark.parametrize("side", [1, 7, 16, 32, 64])
def test_chosen_way_is_the_cheapest_that_fits(side, scope, device):
    size, sides = (side, side), (min(scope or 99, 2 * side - 1),) * 2
    arguments = size, sides, 4, 16, 32, 1
    chosen = choose_way(*arguments, device=device)
    assert chosen == choose_way(*arguments, device=device)
    for way in (Way("fft"), Way("convolution"), Way("attention", (1, side)), Way("lambda", (1, side))):
        costs = (cost(w, *arguments, costs=COSTS[device, True]) for w in (chosen, way))
        assert next(costs) <= next(costs)
    if chosen.tile:
        tiling = Tiling(size, chosen.tile, sides)
        assert tiling.expand(torch.zeros(16, 1, *sides)).numel() <= MOST_EXPANDED


@pytest.mark.parametrize("value_depth", [16, 128])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_small_maps_are_one_tile_in_attention_order(side, value_depth):
    arguments = (side, side), (2 * side - 1,) * 2, 4, 16, value_depth, 1
    assert choose_way(*arguments) == Way("attention", (side, side))
