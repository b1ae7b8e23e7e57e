"""The layer's projections are called wherever it makes a difference: hooks, adapters, other weights count."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, prune

from lambda_layer import LambdaLayer
from lambda_ops.modules import is_plain

PROJECTIONS = ("to_queries", "to_values", "to_keys")


class Adapted(nn.Module):
    """A projection with a low-rank adapter, as fine-tuning puts it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


class Elsewhere(Tensor):
    """A weight of another kind, as quantised and sharded ones are: every operation on it goes through a hook."""

    seen: list[object] = []  # noqa: RUF012 - of all the weights together

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, arguments, keywords or {})


def with_bias(linear: nn.Linear) -> nn.Module:
    return nn.Linear(linear.in_features, linear.out_features)


def sequence(linear: nn.Linear) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), linear, nn.Linear(linear.out_features, linear.out_features, bias=False))


def pruned(linear: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(linear, "weight", amount=0.5)


def offloaded(linear: nn.Linear) -> nn.Module:
    """The weight is fetched when the module is called, and not there before."""
    linear.fetched = linear.weight
    linear.weight = nn.Parameter(torch.full_like(linear.weight, torch.nan), requires_grad=False)
    linear.forward = lambda x: F.linear(x, linear.fetched)
    return linear


CHANGES = {
    "adapter": Adapted,
    "bias": with_bias,
    "sequence": sequence,
    "pruning": pruned,
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "forward of its own": offloaded,
}


def affine(module: nn.Module, dim: int) -> tuple[Tensor, Tensor]:
    """(out, dim) weight and (out,) bias of a module that is an affine map."""
    bias = module(torch.zeros(1, dim))[0]
    return (module(torch.eye(dim)) - bias).t(), bias


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", ["to_queries", "to_values"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_done_to_a_projection_counts_in_every_step(change, name: str) -> None:
    layer = LambdaLayer(8, scope=3).eval()
    plain, x = copy.deepcopy(layer), torch.randn(2, 8, 4, 5)
    setattr(layer, name, change(getattr(layer, name)).eval())
    trained = [p for p in getattr(layer, name).parameters() if p.requires_grad]
    norm = getattr(plain, name.replace("to", "norm"))
    for _ in range(2):
        with torch.no_grad():
            weight, bias = affine(getattr(layer, name), 8)
            getattr(plain, name).weight.copy_(weight)
            norm.running_mean.copy_(-bias)  # which adds it
        y = layer(x)
        torch.testing.assert_close(y, plain(x), atol=1e-4, rtol=1e-4)
        layer.zero_grad()
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        torch.optim.SGD(trained, lr=1e-3).step()


@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_every_hook_fires_once_for_every_projection(kind: str, everywhere: bool) -> None:
    layer, seen, handles = LambdaLayer(8, scope=3), [], []
    x = torch.randn(2, 8, 4, 5, requires_grad=True)
    expected = layer(x)
    projections = [getattr(layer, name) for name in PROJECTIONS]

    def hook(module: nn.Module, *_: object) -> None:
        seen.extend([module] if module in projections else [])

    try:
        if everywhere:
            handles += [getattr(global_hooks, f"register_module_{kind}")(hook)]
        else:
            handles += [getattr(module, f"register_{kind}")(hook) for module in projections]
        y = layer(x)
        y.sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(map(id, seen)) == sorted(map(id, projections))
    torch.testing.assert_close(y, expected)
    assert all(is_plain(module, nn.Linear) for module in projections)  # once they are removed


def test_a_weight_of_another_kind_is_left_to_its_module() -> None:
    layer, x = LambdaLayer(8, scope=3), torch.randn(2, 8, 4, 5)
    expected = layer(x)
    for name in PROJECTIONS:
        linear = getattr(layer, name)
        linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Elsewhere))
    Elsewhere.seen.clear()
    torch.testing.assert_close(layer(x).as_subclass(Tensor), expected)
    assert Elsewhere.seen.count(F.linear) == 3
    assert torch.cat not in Elsewhere.seen


def test_weights_of_two_types_are_refused_as_by_the_modules() -> None:
    layer = LambdaLayer(8, scope=3).double()
    layer.to_values.float()
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        layer(torch.randn(2, 8, 4, 5, dtype=torch.float64))


def test_a_trace_has_the_projections_as_modules() -> None:
    traced = torch.fx.symbolic_trace(LambdaLayer(8, scope=3))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert called == {*PROJECTIONS, "norm_queries", "norm_values"}
