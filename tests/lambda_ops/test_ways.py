"""Every way of computing gives what the loops over the formula give, in every kind of use."""

import pytest
import reference_lambda
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from layer_tools import SMALL_WAYS, WHOLE, assert_all_close, perturb, value_and_gradients, ways
from torch.autograd import gradgradcheck

from lambda_layer import LambdaLayer, LambdaLayer1d, LambdaLayer3d
from lambda_ops import chunks
from lambda_ops.position import relative_output


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
        monkeypatch.setattr(chunks, "CACHED", cached)
        assert_all_close(value_and_gradients(layer, layer, x), expected, 1e-10)


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
    assert gradgradcheck(lambda *tensors: relative_output(*tensors, size, way), (query, value, table))
    frozen = table.detach()
    assert gradgradcheck(lambda *tensors: relative_output(*tensors, frozen, size, way), (query, value))


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
