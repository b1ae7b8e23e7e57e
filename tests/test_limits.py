"""What docs/what_works.md calls limits of the layer itself; tests/sweep.py has those that are a package's."""

import copy

import torch

from lambda_layer import LambdaLayer, LambdaLayer1d


def test_every_position_sees_those_after_it() -> None:
    layer = LambdaLayer1d(4, scope=3).double().eval()
    x = torch.randn(1, 4, 9, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[:, :, 0].sum(), x)
    assert gradient[:, :, 1:].any(dim=1).all()


def test_an_absolute_embedding_has_a_number_for_every_pair_of_positions() -> None:
    sizes = [LambdaLayer(8, input_size=32, position=position, device="meta") for position in ("absolute", "relative")]
    assert [4 * layer.embedding.numel() for layer in sizes] == [64 * 2**20, 4 * 16 * 63 * 63]


def test_assigning_a_state_dict_unties_a_shared_embedding_and_sharing_it_again_mends_it() -> None:
    shared = LambdaLayer.make_embedding(scope=3)
    layers = torch.nn.ModuleList(LambdaLayer(8, scope=3, embedding=shared) for _ in range(2))
    state = copy.deepcopy(layers.state_dict())
    layers.load_state_dict(state)
    assert layers[0].embedding is layers[1].embedding
    layers.load_state_dict(state, assign=True)
    assert layers[0].embedding is not layers[1].embedding
    layers[1].embedding = layers[0].embedding
    assert len(list(layers.parameters())) == 2 * 7 + 1
