"""The compiler, exporters and traces: one size, any size, or a refusal that says the way out."""

import onnxruntime
import pytest
import torch
from layer_tools import perturb
from torch import Tensor
from torch.export import Dim

from lambda_layer import LambdaLayer, LambdaLayer1d, LambdaLayer3d
from lambda_ops import rule

ANY = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
WIDE = {"dim": 64, "scope": 23}  # for which an FFT is the cheapest on maps of 64×64


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_new_size_is_one_more_graph_and_the_rule_is_in_none(dynamic: bool | None, monkeypatch) -> None:
    torch._dynamo.reset()
    graphs, traced = [], []
    cheapest = rule._cheapest

    def watched(*arguments: object) -> rule.Way:
        traced.append(torch.compiler.is_dynamo_compiling())
        assert all(type(number) is int for number in (*arguments[0], *arguments[1]))
        return cheapest(*arguments)

    monkeypatch.setattr(rule, "_cheapest", watched)
    layer = LambdaLayer(4, scope=3)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in ((4, 4), (2, 6), (4, 4), (2, 6)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(compiled(x), layer(x), atol=1e-4, rtol=1e-4)
    assert len(graphs) == 2
    assert not any(traced)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_layer_takes_an_empty_batch(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    layer = LambdaLayer(8, scope=3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(compiled(x), layer(x), atol=1e-4, rtol=1e-4)
    assert compiled(x[:0]).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("arguments", [{"scope": 5, "intra_depth": 2}, {"position": "none"}], ids=["local", "none"])
def test_a_local_context_is_exported_for_any_size(arguments: dict) -> None:
    layer = perturb(LambdaLayer(4, **arguments)).eval()
    program = torch.export.export(layer, (torch.randn(2, 4, 8, 9),), dynamic_shapes=ANY, strict=False).module()
    for shape in ((3, 4, 5, 7), (1, 4, 2, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_a_global_context_is_refused_for_any_size_in_one_line(position: str) -> None:
    layer = LambdaLayer(4, input_size=(8, 9), position=position).eval()
    with pytest.raises(ValueError, match=r"needs a local context: give a scope, or export for one size$"):
        torch.export.export(layer, (torch.randn(2, 4, 8, 9),), dynamic_shapes=ANY, strict=False)


def run(path: object, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_onnx_takes_any_size(tmp_path) -> None:
    layer, path = perturb(LambdaLayer(4, scope=3)).eval(), tmp_path / "layer.onnx"
    x = torch.randn(2, 4, 5, 6)
    torch.onnx.export(layer, (x,), path, dynamo=True, dynamic_shapes=ANY, verbose=False)
    for shape in ((3, 4, 7, 9), (1, 4, 2, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(path, x), layer(x).detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (LambdaLayer(4, scope=3, intra_depth=2), (5, 6)),
        (LambdaLayer(4, input_size=6), (5, 6)),
        (LambdaLayer(4, input_size=(5, 6), position="absolute"), (5, 6)),
        (LambdaLayer(4, position="none"), (5, 6)),
        (LambdaLayer1d(4, scope=3), (7,)),
        (LambdaLayer3d(4, scope=3), (2, 3, 4)),
        (LambdaLayer(**WIDE), (64, 64)),
    ],
    ids=["local", "global", "absolute", "none", "1d", "3d", "where an FFT is the cheapest"],
)
def test_the_older_onnx_export_loads_and_takes_any_batch(layer: LambdaLayer, size: tuple, tmp_path) -> None:
    path = tmp_path / "layer.onnx"
    layer = perturb(layer).eval()
    x = torch.randn(2, layer.dim, *size)
    torch.onnx.export(layer, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    x = torch.randn(3, layer.dim, *size)
    torch.testing.assert_close(run(path, x), layer(x).detach(), atol=1e-2, rtol=1e-3)


def test_onnx_takes_a_convolution_where_an_fft_is_the_cheapest(tmp_path) -> None:
    assert rule.choose_way((64, 64), (23, 23), 4, 16, 16, 1, backward=False).name == "fft"
    layer, x = LambdaLayer(**WIDE).eval(), torch.randn(1, 64, 64, 64)
    with torch.no_grad():
        torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=True, verbose=False)
    torch.testing.assert_close(run(tmp_path / "layer.onnx", x), layer(x).detach(), atol=1e-2, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("arguments", [{"scope": 3}, {"input_size": 16}, {"position": "none"}])
def test_a_trace_refuses_another_size(arguments: dict) -> None:
    layer = LambdaLayer(4, **arguments).eval()
    traced = torch.jit.trace(layer, torch.randn(2, 4, 8, 8))
    x = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(traced(x), layer(x), atol=1e-4, rtol=1e-4)
    for size in ((4, 16), (1, 1), (8, 4), (16, 16)):
        with pytest.raises(RuntimeError, match=r"split_sizes=\[8\]"):
            traced(torch.randn(2, 4, *size))
