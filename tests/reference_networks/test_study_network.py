"""The study's network gives the numbers that the study's own code computed, in float64 (`study_golden.npz`).

Weights and inputs come by a recipe: an array called NAME is z = N(0, 1) from a generator seeded with CRC-32 of NAME,
scaled by what it is for (`made`). The file holds what the study's code makes of them.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from model_preparation import finish_model
from reference_networks.plain import PlainStudyLambdaLayer
from reference_networks.study import StudyLambdaLayer, build_study_lambda_resnet, load_study_state_dict
from user_input import UserInput

GOLDEN = np.load(Path(__file__).with_name("study_golden.npz"))
SHAPES: dict[str, list[int]] = json.loads(str(GOLDEN["names"]))
SHARED: list[list[str]] = json.loads(str(GOLDEN["shared"]))
FIRST = {name: group[0] for group in SHARED for name in group}  # a shared parameter is made by its first name
SIDES = {64: 8, 256: 2, 512: 1}
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def made(name: str, shape) -> Tensor:
    """The array of that name: a weight, a statistic, an image or a gradient."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "running_var":
        z = 1 + abs(z) / 4
    elif last in ("running_mean", "bias"):
        z = z / 10
    elif last == "weight":
        z = 1 + z / 4 if len(shape) == 1 else z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(z))


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def studys_state() -> dict[str, Tensor]:
    return {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else made(FIRST.get(name, name), shape)
        for name, shape in SHAPES.items()
    }


def studys_layer(dim: int, layer_class: type[StudyLambdaLayer]) -> StudyLambdaLayer:
    layer = layer_class(dim, (SIDES[dim],) * 2).double()
    state = layer.state_dict()
    layer.load_state_dict(
        {name: x if name.endswith("num_batches_tracked") else made(name, x.shape) for name, x in state.items()}
    )
    return layer


def studys_network(**options) -> nn.Module:
    network = build_study_lambda_resnet(**options).double()
    load_study_state_dict(network, studys_state())
    return network


@pytest.mark.parametrize("layer_class", [StudyLambdaLayer, PlainStudyLambdaLayer])
@pytest.mark.parametrize("dim", SIDES)
def test_layers(dim: int, layer_class: type[StudyLambdaLayer]) -> None:
    layer, name = studys_layer(dim, layer_class), f"layer_d{dim}_side{SIDES[dim]}"
    x = made(f"x{dim}", (4, dim, SIDES[dim], SIDES[dim])).requires_grad_()
    torch.testing.assert_close(layer.eval()(x), golden(f"{name}.eval.y"), **EXACT)
    y = layer.train()(x)
    torch.testing.assert_close(y, golden(f"{name}.train.y"), **EXACT)
    y.backward(made(f"g{dim}", y.shape))
    gradients = {"x": x.grad, **{key: parameter.grad for key, parameter in layer.named_parameters()}}
    kept = [key.rpartition(".grad.")[2] for key in GOLDEN.files if key.startswith(f"{name}.train.grad.")]
    assert len(kept) == {64: 8, 256: 9, 512: 0}[dim]
    for key in kept:
        torch.testing.assert_close(gradients[key], golden(f"{name}.train.grad.{key}"), **EXACT)


@pytest.mark.parametrize("layer_class", [StudyLambdaLayer, PlainStudyLambdaLayer])
def test_logits_in_both_modes(layer_class: type[StudyLambdaLayer]) -> None:
    """In evaluation mode these weights overflow even in float64, in the study's code and so here: all NaN."""
    network, images = studys_network(layer=layer_class), made("images", (8, 3, 32, 32))
    evaluated = network.eval()(images)
    assert evaluated.isnan().all()
    torch.testing.assert_close(evaluated, golden("network.eval.logits"), equal_nan=True, **EXACT)
    torch.testing.assert_close(network.train()(images), golden("network.train.logits"), **EXACT)


def test_logits_in_evaluation_mode_with_the_batchs_own_statistics() -> None:
    """They are those of training mode: which holds evaluation mode to numbers that are not NaN."""
    network, images = studys_network(), made("images", (8, 3, 32, 32))

    def keep_statistics(norm: _BatchNorm, inputs: tuple[Tensor], _: Tensor) -> None:
        channels = inputs[0].transpose(0, 1).flatten(1)
        norm.running_mean, norm.running_var = channels.mean(1), channels.var(1, unbiased=False)

    hooks = [norm.register_forward_hook(keep_statistics) for norm in network.modules() if isinstance(norm, _BatchNorm)]
    with torch.no_grad():
        network.train()(images)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(network.eval()(images), golden("network.train.logits"), rtol=1e-7, atol=1e-7)


def test_logits_as_the_network_is_trained() -> None:
    """Fast convolutions, channels last, the momenta of the settings: none of it changes what it computes."""
    network = finish_model(UserInput(), studys_network()).to(memory_format=torch.channels_last)
    images = made("images", (8, 3, 32, 32)).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.train()(images), golden("network.train.logits"), **EXACT)


def test_parameters_and_momenta() -> None:
    network = studys_network()
    assert sum(parameter.numel() for parameter in network.parameters()) == int(GOLDEN["parameters"]) == 12_898_830
    momenta = {
        name.replace("downsample", "downsample_residual"): module.momentum
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
    }
    assert momenta == json.loads(str(GOLDEN["momenta"]))


def test_the_same_embeddings_are_shared() -> None:
    layers = {name: module for name, module in studys_network().named_modules() if isinstance(module, StudyLambdaLayer)}
    by_embedding: dict[int, list[str]] = {}
    for name, layer in layers.items():
        by_embedding.setdefault(id(layer.E), []).append(f"{name}.E")
    assert list(by_embedding.values()) == SHARED


def test_state_dicts_with_other_keys_are_refused() -> None:
    state = studys_state()
    state["layer1.0.conv2.Q"] = state.pop("layer1.0.conv2.E")
    with pytest.raises(RuntimeError, match="layer1.0.conv2.E"):
        load_study_state_dict(build_study_lambda_resnet(), state)


def by_loops(layer: StudyLambdaLayer, x: Tensor) -> Tensor:
    """What the study's layer in training mode computes for x (b, d, H, W), position by position and head by head."""
    b, d, height, width = x.shape
    n, k, h = height * width, layer.key_depth, layer.heads
    v = d // h
    rows = torch.stack([image.flatten().view(n, d) for image in x])
    query = torch.einsum("bnd,od->bno", rows, layer.toqueries.weight).view(b, n, k, h)
    key = torch.einsum("bnd,od->bno", rows, layer.tokeys.weight)
    value = torch.einsum("bnd,od->bno", rows, layer.tovalues.weight)
    norm = layer.bn_queries
    for i in range(k):
        of_k = query[:, :, i]
        scale = norm.weight[i] / (of_k.var(unbiased=False) + norm.eps).sqrt()
        query = torch.cat(
            [query[:, :, :i], ((of_k - of_k.mean()) * scale + norm.bias[i])[:, :, None], query[:, :, i + 1 :]], 2
        )
    norm = layer.bn_values
    values = []
    for m in range(n):
        of_m = value[:, m]
        scale = norm.weight[m] / (of_m.var(unbiased=False) + norm.eps).sqrt()
        values.append((of_m - of_m.mean()) * scale + norm.bias[m])
    images = []
    for image in range(b):
        weights = key[image].exp() / key[image].exp().sum(0)  # (m, k)
        channels = []
        for head in range(h):
            for j in range(v):
                for at in range(n):
                    y = torch.zeros((), dtype=x.dtype)
                    for m in range(n):
                        y = y + query[image, at, :, head] @ (weights[m] + layer.E[at, m]) * values[m][image, j]
                    channels.append(y)
        images.append(torch.stack(channels).view(d, height, width))
    return torch.stack(images)


@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
def test_the_layer_is_the_formula_as_loops(size: tuple[int, int]) -> None:
    """At 1×1, too, where the golden file has no gradients: PyTorch's own are wrong there for the study's way."""
    layer = StudyLambdaLayer(4, size, key_depth=3, heads=2).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, *size, dtype=torch.float64, requires_grad=True)
    one, other = layer(x), by_loops(layer, x)
    torch.testing.assert_close(one, other)
    gradient = torch.randn_like(one)
    wanted = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(y, wanted, gradient) for y in (one, other))
    torch.testing.assert_close(ours, theirs)


def with_hook(queries: nn.Linear) -> None:
    queries.register_forward_hook(lambda module, inputs, y: y.sin())


def with_bias(queries: nn.Linear) -> None:
    queries.bias = nn.Parameter(torch.linspace(-1, 1, queries.out_features, dtype=queries.weight.dtype))


def pruned(queries: nn.Linear) -> None:
    prune.l1_unstructured(queries, "weight", amount=0.5)


@pytest.mark.parametrize("change", [with_hook, with_bias, pruned])
def test_what_is_done_to_the_queries_projection_counts(change) -> None:
    layer = StudyLambdaLayer(8, (2, 3), key_depth=4, heads=2).double().eval()
    plain, x = PlainStudyLambdaLayer(8, (2, 3), key_depth=4, heads=2).double().eval(), torch.randn(2, 8, 2, 3).double()
    plain.load_state_dict(layer.state_dict())
    before = layer(x)
    torch.testing.assert_close(plain(x), before)
    for each in (layer, plain):
        change(each.toqueries)
    y = layer(x)
    torch.testing.assert_close(y, plain(x))
    assert not torch.allclose(y, before, rtol=1e-3)


def test_gradients_of_the_network_are_its_slopes() -> None:
    """As it is trained: a module's gradients are what a small step of its parameters changes of the loss."""
    network = finish_model(UserInput(), studys_network()).to(memory_format=torch.channels_last)
    images = made("images", (8, 3, 32, 32)).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(8, 10, dtype=torch.float64)
    (network(images) * weights).sum().backward()
    for name in ("conv1", "layer1.0.conv2", "layer2.0", "layer3.5.conv2", "layer4.0.conv2", "layer4.1", "layer4.2"):
        parameters = list(network.get_submodule(name).parameters())
        directions = [F.normalize(torch.randn_like(parameter).flatten(), dim=0) for parameter in parameters]
        losses = []
        with torch.no_grad():
            for length in (1e-8, -2e-8, 1e-8):  # with 1e-7 many a ReLU changes sides; the last one goes back
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += length * direction.view_as(parameter)
                losses.append((network(images) * weights).sum().item())
        pairs = zip(parameters, directions, strict=True)
        slope = sum((parameter.grad.flatten() @ direction).item() for parameter, direction in pairs)
        assert slope == pytest.approx((losses[0] - losses[1]) / 2e-8, rel=1e-4, abs=1e-4), name


def test_it_starts_as_the_reference_says() -> None:
    network = build_study_lambda_resnet()
    layer = network.layer4[1].conv2
    stds = {name: parameter.std().item() for name, parameter in layer.named_parameters() if parameter.dim() == 2}
    expected = {"toqueries.weight": (512 * 16) ** -0.5, "tokeys.weight": 512**-0.5, "tovalues.weight": 512**-0.5}
    assert stds == pytest.approx(expected, rel=0.05)
    assert network.layer1[0].conv2.E.std().item() == pytest.approx(1.0, rel=0.05)
    for bottleneck in (*network.layer1, *network.layer2, *network.layer3, *network.layer4):
        assert not bottleneck.bn3.weight.any()


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        StudyLambdaLayer(6, (2, 2))
    layer = StudyLambdaLayer(8, (2, 3))
    for shape in ((1, 8, 3, 2), (1, 4, 2, 3), (8, 2, 3)):
        with pytest.raises(ValueError, match=r"it must be \(batch, 8, \*\(2, 3\)\)"):
            layer(torch.zeros(shape))


def test_the_studys_blocks_are_bottlenecks() -> None:
    with pytest.raises(ValueError, match="^depth: 10 has pooled blocks"):
        build_study_lambda_resnet(10, stem="cifar")
    with pytest.raises(ValueError, match="^depth: 18 has basic blocks"):
        build_study_lambda_resnet(18)
