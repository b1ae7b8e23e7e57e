import pytest
import reference_lambda
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradgradcheck

import lambda_layer
from lambda_layer import LambdaLayer, LambdaLayer1d, LambdaLayer3d, Way

WHOLE = (64, 64, 64)  # a tile as long as any map in these tests
TILES = [WHOLE, (1, 2, 3), (2, 4, 1), (3, 3, 2), (1, 64, 64)]


def ways(axes: int, *, only_whole: bool = False) -> list[Way]:
    tiled = [Way(name, tile[:axes]) for name in ("attention", "lambda") for tile in TILES]
    if only_whole:
        return [way for way in tiled if way.tile == WHOLE[:axes]]
    return [*tiled, Way("convolution"), Way("fourier"), Way("fft")]


def perturb(layer: nn.Module) -> nn.Module:
    """Norms and biases away from their initial 1 and 0, so that a dropped weight or bias shows."""
    for norm in (layer.norm_queries, layer.norm_values):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    if layer.position_bias is not None:
        nn.init.uniform_(layer.position_bias, -1, 1)
    return layer


def value_and_gradients(function, layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape).cos()
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


def assert_all_close(actual, expected, tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        scale = max(1.0, e.abs().max().item())
        assert (a.double() - e.double()).abs().max().item() <= tolerance * scale


@st.composite
def cases(draw):
    """(layer class, arguments, input shape) over every variant, odd shapes included."""
    axes = draw(st.sampled_from([2, 2, 2, 1, 3]))
    size = tuple(draw(st.integers(1, {1: 12, 2: 5, 3: 3}[axes])) for _ in range(axes))
    position = draw(st.sampled_from(["relative", "relative", "scope", "scope", "absolute", "none"]))
    heads = draw(st.integers(1, 3))
    arguments = {
        "dim": draw(st.integers(1, 5)),
        "dim_out": heads * draw(st.integers(1, 4)),
        "key_depth": draw(st.integers(1, 4)),
        "heads": heads,
        "intra_depth": draw(st.integers(1, 3)),
        "position": "relative" if position == "scope" else position,
        "content": position == "none" or draw(st.booleans()),
    }
    arguments["position_bias"] = position != "none" and arguments["content"] and draw(st.booleans())
    if position == "scope":
        arguments["scope"] = draw(st.sampled_from([1, 3, 5, 7]))
    elif position == "relative":
        arguments["input_size"] = tuple(length + draw(st.integers(0, 2)) for length in size)
    elif position == "absolute":
        arguments["input_size"] = size
    shape = (draw(st.integers(2, 3)), arguments["dim"], *size)
    return {1: LambdaLayer1d, 2: LambdaLayer, 3: LambdaLayer3d}[axes], arguments, shape


# without the shrinking phase, which can take minutes
quick = settings(max_examples=150, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


@quick
@given(cases(), st.integers(0, 2**16))
def test_every_way_equals_the_loops(case, seed):
    layer_class, arguments, shape = case
    torch.manual_seed(seed)
    layer = perturb(layer_class(**arguments).double())
    x = torch.randn(shape, dtype=torch.float64)
    expected = value_and_gradients(lambda x: reference_lambda.lambda_layer(layer, x), layer, x)
    choices = [None, *ways(layer.axes, only_whole=layer.position == "absolute")]
    for way in choices if layer.position != "none" else [None]:
        layer._way = way
        assert_all_close(value_and_gradients(layer, layer, x), expected, 1e-10)


@pytest.mark.parametrize("way", [None, *ways(2)])
@pytest.mark.parametrize(
    "arguments",
    [
        {"scope": 3},
        {"input_size": (7, 6), "intra_depth": 2},
        {"scope": 5, "intra_depth": 4, "content": False},
    ],
    ids=["local", "global", "intra-depth"],
)
def test_float32_equals_the_loops(arguments, way):
    torch.manual_seed(0)
    layer = perturb(LambdaLayer(8, 12, **arguments).double())
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    expected = value_and_gradients(lambda x: reference_lambda.lambda_layer(layer, x), layer, x)
    layer._way = way
    assert_all_close(value_and_gradients(layer.float(), layer, x.float()), expected, 1e-4)


@pytest.mark.parametrize("way", ways(2))
def test_chunks_of_the_batch_change_nothing(way, monkeypatch):
    torch.manual_seed(0)
    layer = LambdaLayer(8, scope=3, intra_depth=2).double()
    layer._way = way
    x = torch.randn(5, 8, 4, 6, dtype=torch.float64)
    expected = value_and_gradients(layer, layer, x)
    for cached in (1, 1200):  # one tile and position at a time; some of each
        monkeypatch.setattr(lambda_layer, "CACHED", cached)
        assert_all_close(value_and_gradients(layer, layer, x), expected, 1e-10)


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (3, 6)])
def test_smaller_input_takes_the_middle_of_the_table(size):
    torch.manual_seed(0)
    large = LambdaLayer(4, input_size=(4, 6)).double()
    small = LambdaLayer(4, input_size=size).double()
    table = large.embedding[:, :, 4 - size[0] : 3 + size[0], 6 - size[1] : 5 + size[1]]
    small.load_state_dict({**large.state_dict(), "embedding": table})
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x))


@pytest.mark.parametrize("way", [None, *ways(2)])
@pytest.mark.parametrize("arguments", [{"scope": 5}, {"input_size": 12}], ids=["local", "global"])
def test_relative_position_output_moves_with_its_input(arguments, way):
    torch.manual_seed(0)
    layer = LambdaLayer(4, 8, content=False, intra_depth=2, **arguments).double().eval()
    layer._way = way
    x = torch.zeros(1, 4, 12, 12, dtype=torch.float64)
    x[:, :, 3:6, 4:7] = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    moved = layer(x.roll((2, -3), (2, 3)))
    torch.testing.assert_close(moved, layer(x).roll((2, -3), (2, 3)))


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


def test_state_dict_names_and_shapes():
    def shapes(layer):
        return {name: tuple(p.shape) for name, p in layer.named_parameters() if "norm" not in name}

    projections = {"to_queries.weight": (24, 8), "to_keys.weight": (12, 8), "to_values.weight": (12, 8)}
    arguments = {"dim": 8, "dim_out": 12, "key_depth": 6, "heads": 4, "intra_depth": 2}
    projections["to_values.weight"] = (6, 8)
    arguments["intra_depth"] = 2
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
    assert sum(parameter is embedding for parameter in layers.parameters()) == 1
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


SMALL_WAYS = [
    Way("attention", (2, 2)),
    Way("attention", WHOLE[:2]),
    Way("lambda", (2, 2)),
    Way("convolution"),
    Way("fourier"),
    Way("fft"),
]


@pytest.mark.parametrize("way", SMALL_WAYS)
def test_compiles_without_a_graph_break(way):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = LambdaLayer(4, scope=3, intra_depth=2).double()
    layer._way = way
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_all_close(value_and_gradients(compiled, layer, x), value_and_gradients(layer, layer, x), 1e-10)


def test_chosen_way_compiles_without_a_graph_break():
    torch._dynamo.reset()
    layer = LambdaLayer(4, input_size=4)
    x = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@pytest.mark.parametrize("way", SMALL_WAYS)
def test_exports_with_any_batch(way):
    torch.manual_seed(0)
    layer = LambdaLayer(4, scope=3).eval()
    layer._way = way
    x = torch.randn(3, 4, 4, 4)
    # PyTorch 2.6 has no FFT over a batch of unknown size
    dynamic = None if way.name == "fft" else ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(layer, (x,), dynamic_shapes=dynamic, strict=False)
    x = x if way.name == "fft" else x[:2]
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", [None, *SMALL_WAYS])
def test_a_trace_is_saved_and_takes_any_batch(way, tmp_path):
    torch.manual_seed(0)
    layer = LambdaLayer(4, scope=3, intra_depth=2).eval()
    layer._way = way
    torch.jit.trace(layer, torch.randn(3, 4, 4, 5)).save(tmp_path / "layer.pt")
    x = torch.randn(2, 4, 4, 5)
    torch.testing.assert_close(torch.jit.load(tmp_path / "layer.pt")(x), layer(x))


@pytest.mark.parametrize("way", SMALL_WAYS)
def test_double_backward(way):
    torch.manual_seed(0)
    size, scope = (3, 2), (3, 3)
    query = torch.randn(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 6, 2, 1, dtype=torch.float64, requires_grad=True)
    table = torch.randn(2, 2, *scope, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda *tensors: lambda_layer.relative_output(*tensors, size, way), (query, value, table))
    frozen = table.detach()
    assert gradgradcheck(lambda *tensors: lambda_layer.relative_output(*tensors, frozen, size, way), (query, value))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("way", SMALL_WAYS)
def test_deterministic_mode_repeats_itself(way):
    layer = LambdaLayer(4, scope=3)
    layer._way = way
    x = torch.randn(2, 4, 5, 5)
    first, second = (value_and_gradients(layer, layer, x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("way", [way for way in ways(2) if way.tile != WHOLE[:2]])
def test_backward_keeps_neither_position_lambdas_nor_attention(way):
    layer = LambdaLayer(32, scope=5)
    layer._way = way

    def kept(batch: int) -> list[int]:
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)
        with hooks:
            layer(torch.randn(batch, 32, 16, 16))
        return sizes

    per_image = max(more - fewer for more, fewer in zip(kept(3), kept(2), strict=True))
    # per position: position lambdas 16·8, attention 4·30 at the least, queries 4·16
    assert per_image <= 256 * 64


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scope", [3, 7, 23, None])
@pytest.mark.parametrize("side", [1, 7, 16, 32, 64])
def test_chosen_way_is_the_cheapest_that_fits(side, scope, device):
    size, sides = (side, side), (min(scope or 99, 2 * side - 1),) * 2
    arguments = size, sides, 4, 16, 32, 1
    chosen = lambda_layer.choose_way(*arguments, device=device)
    assert chosen == lambda_layer.choose_way(*arguments, device=device)
    for way in (Way("fft"), Way("convolution"), Way("attention", (1, side)), Way("lambda", (1, side))):
        costs = (lambda_layer.cost(w, *arguments, costs=lambda_layer.COSTS[device, True]) for w in (chosen, way))
        assert next(costs) <= next(costs)
    if chosen.tile:
        tiling = lambda_layer.Tiling(size, chosen.tile, sides)
        assert tiling.expand(torch.zeros(16, 1, *sides)).numel() <= lambda_layer.MOST_EXPANDED


@pytest.mark.parametrize("value_depth", [16, 128])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_small_maps_are_one_tile_in_attention_order(side, value_depth):
    arguments = (side, side), (2 * side - 1,) * 2, 4, 16, value_depth, 1
    assert lambda_layer.choose_way(*arguments) == Way("attention", (side, side))


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
    ({"input_size": (3, 4, 5)}, r"input_size is \(3, 4, 5\); it must be 2 positive length"),
    ({"input_size": 0}, r"input_size is \(0, 0\)"),
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


@pytest.mark.parametrize("shape", [(2, 7, 4, 4), (2, 8, 16), (8, 4, 4), (0, 8, 4, 4), (2, 8, 4, 0)])
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
