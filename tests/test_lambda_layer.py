import pytest
import torch
from layer_tools import SMALL_WAYS
from torch import nn

from lambda_layer import LambdaLayer, LambdaLayer1d, LambdaLayer3d
from lambda_ops.tiles import Tiling


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (3, 6)])
def test_smaller_input_takes_the_middle_of_the_table(size):
    torch.manual_seed(0)
    large = LambdaLayer(4, input_size=(4, 6)).double()
    small = LambdaLayer(4, input_size=size).double()
    table = large.embedding[:, :, 4 - size[0] : 3 + size[0], 6 - size[1] : 5 + size[1]]
    small.load_state_dict({**large.state_dict(), "embedding": table})
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"scope": 3},
        {"input_size": 5},
        {"input_size": 5, "position": "absolute"},
        {"input_size": 5, "content": False},
        {"position": "none"},
    ],
)
def test_gradient_reaches_every_parameter(arguments):
    torch.manual_seed(0)
    layer = LambdaLayer(8, **arguments)
    layer(torch.randn(2, 8, 5, 5)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("way", [None, *SMALL_WAYS])
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_is_taken(way, training):
    layer = LambdaLayer(8, scope=3, intra_depth=2).train(training)
    layer._way = way
    x = torch.zeros(0, 8, 4, 5, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("layer_class", "size"),
    [(LambdaLayer1d, (64,)), (LambdaLayer, (12, 9)), (LambdaLayer, (1, 7)), (LambdaLayer3d, (4, 3, 5))],
)
def test_for_an_empty_batch_no_more_than_the_table_is_expanded(layer_class, size, monkeypatch):
    expanded, expand = [], Tiling.expand
    monkeypatch.setattr(Tiling, "expand", lambda *given: expanded.append(expand(*given)) or expanded[-1])
    layer = layer_class(8, input_size=size, intra_depth=2)
    x = torch.zeros(0, 8, *size, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())
    assert [each.numel() for each in expanded] == [layer.embedding.numel()]


@pytest.mark.parametrize("way", SMALL_WAYS)
def test_the_meta_device_computes_shapes(way):
    layer = LambdaLayer(8, 12, scope=3).to("meta")
    layer._way = way
    y = layer(torch.empty(2, 8, 4, 5, device="meta", requires_grad=True))
    assert y.shape == (2, 12, 4, 5)
    y.sum().backward()


def test_members_of_a_shared_embedding_are_initialised_after_to_empty():
    with torch.device("meta"):
        embedding = LambdaLayer.make_embedding(input_size=4)
        layers = nn.ModuleList(LambdaLayer(8, input_size=4, embedding=embedding) for _ in range(2))
    layers.to_empty(device="cpu")
    for layer in layers:
        nn.init.constant_(layer.embedding, torch.nan)
        layer.reset_parameters()
        assert layer.embedding.std().item() == pytest.approx(1, rel=0.2)
    assert layers[0](torch.randn(2, 8, 4, 4)).isfinite().all()


def test_state_dict_names_and_shapes():
    def shapes(layer):
        return {name: tuple(p.shape) for name, p in layer.named_parameters() if "norm" not in name}

    projections = {"to_queries.weight": (24, 8), "to_keys.weight": (12, 8), "to_values.weight": (6, 8)}
    arguments = {"dim": 8, "dim_out": 12, "key_depth": 6, "heads": 4, "intra_depth": 2}
    assert shapes(LambdaLayer(**arguments, input_size=(3, 4))) == {**projections, "embedding": (6, 2, 5, 7)}
    assert shapes(LambdaLayer(**arguments, scope=5)) == {**projections, "embedding": (6, 2, 5, 5)}
    absolute = LambdaLayer(**arguments, input_size=(3, 4), position="absolute")
    assert shapes(absolute) == {**projections, "embedding": (12, 12, 6, 2)}
    assert shapes(LambdaLayer(**arguments, position="none")) == projections
    del projections["to_keys.weight"]
    local = LambdaLayer(**arguments, scope=5, content=False)
    assert shapes(local) == {**projections, "embedding": (6, 2, 5, 5)}
    assert {"norm_queries.running_mean", "norm_values.running_var"} < set(local.state_dict())


def test_initialisation():
    torch.manual_seed(0)
    layer = LambdaLayer(256, input_size=16)
    spread = {name: parameter.std().item() for name, parameter in layer.named_parameters()}
    assert spread["to_queries.weight"] == pytest.approx((256 * 16) ** -0.5, rel=0.05)
    assert spread["to_keys.weight"] == pytest.approx(256**-0.5, rel=0.05)
    assert spread["to_values.weight"] == pytest.approx(256**-0.5, rel=0.05)
    assert spread["embedding"] == pytest.approx(1, rel=0.05)


def test_shared_embedding_is_one_parameter():
    torch.manual_seed(0)
    embedding = LambdaLayer.make_embedding(input_size=4, key_depth=8)
    drawn = embedding.detach().clone()
    layers = nn.Sequential(*(LambdaLayer(8, input_size=4, key_depth=8, embedding=embedding) for _ in range(2)))
    assert torch.equal(embedding, drawn)
    assert layers[0].embedding is layers[1].embedding is embedding
    layers(torch.randn(2, 8, 4, 4)).square().sum().backward()
    assert embedding.grad.abs().max() > 0


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_resized_embedding(position):
    layer = LambdaLayer(4, input_size=(3, 5), position=position)
    before = layer.embedding.detach().clone()
    layer.resize_embedding((3, 5))
    torch.testing.assert_close(layer.embedding.detach(), before)
    with torch.no_grad():
        layer.embedding.fill_(2)
    layer.resize_embedding((6, 4))
    torch.testing.assert_close(layer.embedding, torch.full_like(layer.embedding, 2))
    assert layer(torch.randn(2, 4, 6, 4)).shape == (2, 4, 6, 4)


def test_resized_embedding_keeps_the_middle_and_is_linear():
    layer = LambdaLayer1d(4, input_size=3, key_depth=1)
    with torch.no_grad():
        layer.embedding.copy_(torch.tensor([[[-4.0, -2.0, 0.0, 2.0, 4.0]]]))
    layer.resize_embedding(5)
    torch.testing.assert_close(layer.embedding.detach()[0, 0], torch.linspace(-4, 4, 9))


def test_channels_last_is_neither_copied_nor_lost():
    layer = LambdaLayer(8, 12, scope=3)
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)
    seen = []
    project = layer._project
    layer._project = lambda x: seen.append(x) or project(x)
    y = layer(x)
    assert seen[0].data_ptr() == x.data_ptr()
    assert seen[0].is_contiguous()
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arguments", [{"input_size": 64}, {"scope": 7, "intra_depth": 4}])
def test_autocast_stays_finite(arguments, dtype):
    torch.manual_seed(0)
    layer = LambdaLayer(16, **arguments)
    x = torch.randn(1, 16, 64, 64)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    y.float().square().mean().backward()
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    exact = layer(x)
    assert (y.float() - exact).norm() < 0.05 * exact.norm()


def test_norms_are_called_as_modules():
    layer = LambdaLayer(8, scope=3)
    calls = []
    for norm in (layer.norm_queries, layer.norm_values):
        norm.register_forward_hook(lambda module, inputs, output: calls.append(module))
    layer(torch.randn(2, 8, 4, 4))
    assert calls == [layer.norm_queries, layer.norm_values]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert isinstance(converted.norm_values, nn.SyncBatchNorm)
    assert converted.eval()(torch.randn(2, 8, 4, 4)).shape == (2, 8, 4, 4)


REFUSALS = [
    ({"scope": 4}, "scope is 4; it must be odd and positive"),
    ({"scope": -1}, "scope is -1; it must be odd and positive"),
    ({"scope": 3, "heads": 3}, r"heads \(3\) must divide dim_out \(8\)"),
    ({}, "input_size is missing"),
    ({"position": "absolute"}, "input_size is missing"),
    ({"input_size": (3, 4, 5)}, r"input_size is \(3, 4, 5\); it must be 2 positive whole number"),
    ({"input_size": 0}, "input_size is 0; it must be 2 positive whole number"),
    ({"scope": 3, "position": "absolute"}, 'scope=3 needs position="relative"'),
    ({"scope": 3, "position": "polar"}, "position is 'polar'; it must be"),
    ({"position": "none", "content": False}, "leaves nothing to compute"),
    ({"position": "none", "scope": 3}, 'scope is given, but position="none"'),
    ({"position": "none", "position_bias": True}, 'position_bias is given, but position="none"'),
    ({"scope": 3, "content": False, "position_bias": True}, "position_bias=True needs content=True"),
    ({"scope": 3, "key_depth": 0}, "key_depth is 0; it must be at least 1"),
    ({"scope": 3, "embedding": torch.zeros(16, 1, 3, 3)}, "embedding is a Tensor; it must come from make_"),
    (
        {"scope": 3, "embedding": nn.Parameter(torch.zeros(16, 1, 5, 5))},
        r"embedding has shape \(16, 1, 5, 5\); this layer needs \(16, 1, 3, 3\)",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LambdaLayer(8, **arguments)


@pytest.mark.parametrize("shape", [(2, 7, 4, 4), (2, 8, 16), (8, 4, 4), (2, 8, 4, 0)])
def test_refused_inputs(shape):
    with pytest.raises(ValueError, match=r"it must be \(batch, 8, 2 length"):
        LambdaLayer(8, scope=3)(torch.zeros(shape))


@pytest.mark.parametrize("size", [(5, 4), (4, 9)])
def test_input_larger_than_the_table_is_told_the_way_out(size):
    with pytest.raises(ValueError, match=r"covers \(4, 4\) at most: call resize_embedding\(\(., .\)\) first"):
        LambdaLayer(8, input_size=4)(torch.zeros(2, 8, *size))


def test_absolute_embedding_needs_its_own_size():
    with pytest.raises(ValueError, match=r"needs \(4, 4\): call resize_embedding\(\(3, 4\)\) first"):
        LambdaLayer(8, input_size=4, position="absolute")(torch.zeros(2, 8, 3, 4))


def test_nothing_to_resize():
    with pytest.raises(ValueError, match="needs a global position embedding"):
        LambdaLayer(8, scope=3).resize_embedding(5)
