"""From the study's network to ours, one repair a rung: what each rung changes, and that it changes nothing else."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from evidence.networks import (
    STUDYS_EMBEDDING,
    AcrossHeadsNorm,
    PositionNorm,
    lambda_layers,
    mended_query_norm,
    mended_reshape,
    mended_value_norm,
    study,
)
from experiments import EXPERIMENTS
from lambda_layer import LambdaLayer
from model_preparation import build_model
from reference_networks.study import StudyLambdaLayer
from user_input import UserInput

CLASSES = 10
SMALL = UserInput(depth=26, dataset="digits", image_size=16, zero_init_residual=False, **STUDYS_EMBEDDING)
ONE_POSITION = dataclasses.replace(SMALL, image_size=2)  # the stem makes 1×1 of it
# By hand. The second: 2·(64 − 16) more numbers of each of 16 query norms. The third: 2·(v − m) of each value norm, with
# v − m = 16 − 64 three times, 32 − 64, 32 − 16 three times, 64 − 16, 64 − 4 five times, 128 − 4, 128 − 1 twice. The
# fourth: 16·(64² + 16² + 4²), embeddings that two stages had in common. The fifth: sides of 15, 15, 7 and 3 for seven
# absolute ones. The last: 15² four times, 7² four times, 3² six times and 1 twice.
PARAMETERS = {
    "as the study had it": 12_898_830,
    "channels and positions kept apart": 12_898_830,
    "query norm for each head and channel": 12_898_830 + 1_536,
    "value norm over channels": 12_900_366 + 1_196,
    "embeddings of a stage its own": 12_901_562 + 69_888,
    "relative embeddings": 12_971_450 - 16 * (2 * 64**2 + 2 * 16**2 + 2 * 4**2 + 1) + 16 * (2 * 15**2 + 7**2 + 3**2),
    "per-layer embeddings": 12_839_786 - 16 * 508 + 16 * (4 * 15**2 + 4 * 7**2 + 6 * 3**2 + 2),
    "ResNet-50": 23_528_522,  # torchvision's, with ten classes
}


def seeded(make_model, args: UserInput = SMALL) -> nn.Module:
    torch.manual_seed(0)
    return make_model(args, CLASSES).double()


def images(size: int) -> Tensor:
    return torch.randn(6, 3, size, size, dtype=torch.float64)


def from_study(state: dict[str, Tensor], key_depth: int = 16) -> dict[str, Tensor]:
    """The parameters of the study's layer, or of its network, by the names of ours; rows of W_Q as (h, k)."""
    names = {"toqueries": "to_queries", "tokeys": "to_keys", "tovalues": "to_values", "E": "embedding"}
    names |= {"bn_queries": "norm_queries", "bn_values": "norm_values"}
    state = {".".join(names.get(part, part) for part in name.split(".")): value for name, value in state.items()}
    for name, value in state.items():
        if name.endswith("to_queries.weight"):
            state[name] = value.unflatten(0, (key_depth, -1)).transpose(0, 1).flatten(0, 1)
        if name.endswith("embedding"):
            state[name] = value.unsqueeze(3)
    return state


def faulty_layer(dim: int, size: tuple[int, int], **options) -> LambdaLayer:
    """The layer of rung 1."""
    layer = LambdaLayer(dim, input_size=size, position="absolute", **options)
    layer.norm_queries, layer.norm_values = AcrossHeadsNorm(layer.key_depth), PositionNorm(size[0] * size[1])
    return layer.double()


def randomised(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.double()


def test_parameters() -> None:
    rungs = EXPERIMENTS["ladder"].variations
    counts = {}
    for label, rung in rungs.items():
        network = rung.make_model(UserInput(**dict(rung.settings)), CLASSES)
        counts[label] = sum(parameter.numel() for parameter in network.parameters())
    assert counts == PARAMETERS
    assert list(counts) == list(PARAMETERS)


def test_rung_1_is_the_study_without_its_reshape() -> None:
    """The study's layer given an image that its reshape reads rightly is the layer of rung 1."""
    study_layer = randomised(StudyLambdaLayer(8, (2, 3), key_depth=3, heads=2))
    layer = faulty_layer(8, (2, 3), key_depth=3, heads=2)
    layer.load_state_dict(from_study(study_layer.state_dict(), key_depth=3))
    x = torch.randn(4, 8, 2, 3, dtype=torch.float64)
    positions_first = x.flatten(2).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(study_layer(positions_first), layer(x))
    assert not torch.allclose(study_layer(x), layer(x), atol=1e-2)


def test_rung_1_is_the_study_where_there_is_one_position() -> None:
    before, after = seeded(study, ONE_POSITION), seeded(mended_reshape, ONE_POSITION)
    state = {name.replace("conv2.0.", "conv2."): value for name, value in from_study(before.state_dict()).items()}
    after.load_state_dict(state)
    x = images(2)
    torch.testing.assert_close(before(x), after(x))


def test_rung_2_is_rung_1_where_there_is_one_head() -> None:
    one_head = dataclasses.replace(SMALL, heads=1)
    before, after = seeded(mended_reshape, one_head), seeded(mended_query_norm, one_head)
    after.load_state_dict(before.state_dict())
    x = images(16)
    torch.testing.assert_close(before(x), after(x))


def test_the_query_norm_of_rung_1_is_across_heads() -> None:
    norm = AcrossHeadsNorm(2)
    x = torch.tensor([[1.0, 10.0, 3.0, 20.0], [5.0, 20.0, 7.0, 30.0]])  # two positions, two heads of k = 2
    # the first of k: 1, 3, 5, 7 (mean 4, variance 5); the second: 10, 20, 20, 30 (mean 20, variance 50)
    expected = torch.tensor([[-3.0, -10.0, -1.0, 0.0], [1.0, 0.0, 3.0, 10.0]])
    expected /= torch.tensor([5.0, 50.0, 5.0, 50.0]).sqrt()
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)


def test_rung_3_is_rung_2_but_for_the_value_norms() -> None:
    before, after = seeded(mended_query_norm), seeded(mended_value_norm)
    assert [layer.norm_values.num_features for layer in lambda_layers(before)] == [16, 16, 16, 4, 4, 1, 1, 1]
    one, other = before.state_dict(), after.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if "norm_values" not in name)


def test_the_value_norm_of_rung_2_is_over_positions() -> None:
    norm = PositionNorm(2)
    x = torch.tensor([[1.0, 3.0], [10.0, 20.0], [5.0, 7.0], [20.0, 30.0]])  # two images of two positions
    # position 0 has 1, 3, 5, 7 (mean 4, variance 5), position 1 has 10, 20, 20, 30 (mean 20, variance 50)
    expected = torch.tensor([[-3.0, -1.0], [-10.0, 0.0], [1.0, 3.0], [0.0, 10.0]])
    expected /= torch.tensor([5.0, 50.0, 5.0, 50.0]).sqrt()[:, None]
    x, expected = (rows.view(2, 1, 2, 2).permute(0, 3, 1, 2) for rows in (x, expected))  # maps of 1×2 positions
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)


def test_the_value_norms_are_one_where_there_is_one_value_of_one_position() -> None:
    layer = randomised(LambdaLayer(4, input_size=1, heads=4, position="absolute"))
    x = torch.randn(6, 4, 1, 1, dtype=torch.float64)
    over_channels = layer(x)
    norm = PositionNorm(1).double()
    norm.load_state_dict(layer.norm_values.state_dict())
    layer.norm_values = norm
    torch.testing.assert_close(layer(x), over_channels)


def test_rung_4_is_rung_3_with_the_same_embeddings() -> None:
    before, after = seeded(mended_value_norm), seeded(build_model)
    assert len({id(layer.embedding) for layer in lambda_layers(before)}) == 3  # maps of 4×4, 2×2 and 1×1
    assert len({id(layer.embedding) for layer in lambda_layers(after)}) == 1 + 2 + 2 + 1
    after.load_state_dict(before.state_dict())
    x = images(16)
    torch.testing.assert_close(before(x), after(x))


def test_the_last_rungs_are_one_where_there_is_one_position() -> None:
    absolute = seeded(build_model, ONE_POSITION)
    relative = seeded(build_model, dataclasses.replace(ONE_POSITION, position="relative"))
    per_layer = seeded(build_model, dataclasses.replace(ONE_POSITION, position="relative", share_embeddings=False))
    state = {
        name: value.permute(2, 3, 0, 1) if name.endswith("embedding") else value
        for name, value in absolute.state_dict().items()
    }
    x = images(2)
    for network in (relative, per_layer):
        network.load_state_dict(state)
        torch.testing.assert_close(network(x), absolute(x))


def test_each_rung_changes_one_thing() -> None:
    *rungs, baseline = EXPERIMENTS["ladder"].variations.values()
    assert (baseline.network, dict(baseline.settings)["model"]) == (rungs[-1].network, "baseline")
    assert [rung.network for rung in rungs[:4]] == ["study", "mended-reshape", "mended-query-norm", "mended-value-norm"]
    settings = [dict(rung.settings) for rung in rungs]
    assert all(each.pop("also_test_in_training_mode") for each in settings)
    assert settings[0] == {}
    assert settings[1] == settings[2] == settings[3] == settings[4] == STUDYS_EMBEDDING
    assert settings[5] == {"share_embeddings": True}
    assert settings[6] == {}
    assert all(rung.make_model is build_model for rung in rungs[4:])


def test_rungs_have_the_momentum_of_the_settings() -> None:
    args = dataclasses.replace(SMALL, bn_momentum=0.25)
    for make_model in (study, mended_reshape, mended_query_norm, mended_value_norm):
        momenta = {
            module.momentum
            for module in seeded(make_model, args).modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        assert momenta == {0.25}


@pytest.mark.parametrize("make_model", [study, mended_reshape, mended_query_norm, mended_value_norm])
def test_rungs_start_from_the_tensors_of_our_network(make_model) -> None:
    """With one seed: so seeds can be paired, from the first rung to the last."""
    args = dataclasses.replace(SMALL, zero_init_residual=True)
    ours, rung = seeded(build_model, args).state_dict(), seeded(make_model, args).state_dict()
    same = [name for name in ours if "conv2" not in name]
    assert len(same) > 100
    assert all(torch.equal(ours[name], rung[name]) for name in same)
