"""The fast layers give what the plain ones give: values, gradients, running statistics and state dicts."""

import copy
import platform

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import ResNet

from acceleration.fast_layers import FastConv2d, folded, keep_freed_memory, quicken
from resnet import build_resnet
from resnet_lambda import build_lambda_resnet

CPU = torch.device("cpu")
STAGES = ("CCCC", "LLLL", "CCLL")
STEMS = ("imagenet", "cifar")


def make_network(stages: str = "CCCC", stem: str = "imagenet", size: int = 32, seed: int = 0) -> ResNet:
    """A thin network of plain modules, no branch of which starts at zero."""
    torch.manual_seed(seed)
    options = {"num_classes": 10, "stem": stem, "zero_init_residual": False, "width_per_group": 16}
    if stages == "CCCC":
        model = build_resnet(26, **options)
    else:
        model = build_lambda_resnet(26, stages=stages, image_size=size, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for momentum in (1.0, 0.1):  # the statistics of one batch keep the maps of evaluation mode at a sound scale
        for norm in norms:
            norm.momentum = momentum
        with torch.no_grad():
            model.train()(torch.randn(16, 3, size, size))
    return model


def compare(plain: nn.Module, fast: nn.Module, x: Tensor, tolerance: float, gradients: float | None = None) -> None:
    """Outputs, gradients to the input and to every parameter, and buffers of both on x are equal.

    `tolerance` is of the largest value; `gradients`, where given, of the norm of a gradient instead.
    """
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [module(given) for module, given in zip((plain, fast), inputs, strict=True)]
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()

    def check(a: Tensor, b: Tensor, name: str, of_norm: float | None = None) -> None:
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        if of_norm is not None:
            assert (b - a).norm() <= of_norm * a.norm(), name
        else:
            assert (b - a).abs().max() <= tolerance * max(1.0, a.abs().max().item()), name

    check(*outputs, "output")
    check(inputs[0].grad, inputs[1].grad, "gradient of the input", gradients)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert b.grad is not None, name
        check(a.grad, b.grad, f"gradient of {name}", gradients)
    for (name, a), b in zip(plain.named_buffers(), fast.buffers(), strict=True):
        check(a, b, name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("stages", STAGES)
def test_network_equals_plain_in_double(stages: str, stem: str, training: bool) -> None:
    size = 32 if stem == "imagenet" else 12
    plain = make_network(stages, stem, size).double().train(training)
    fast = quicken(copy.deepcopy(plain))
    compare(plain, fast, torch.randn(6, 3, size, size, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("stages", STAGES)
def test_network_equals_plain_in_single(stages: str) -> None:
    plain = make_network(stages).train()
    fast = quicken(copy.deepcopy(plain)).to(memory_format=torch.channels_last)
    # a rounding that carries one of a million ReLUs across zero changes a gradient by more than a rounding
    compare(plain.eval(), fast.eval(), torch.randn(8, 3, 32, 32), 1e-4, gradients=2e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 3), (5, 2), (7, 4), (8, 8)])
def test_convolution_equals_plain(size: tuple, kernel: int, stride: int | tuple, bias: bool, memory_format) -> None:
    plain = nn.Conv2d(6, 10, kernel, stride, padding=kernel // 2, bias=bias).double()
    fast = quicken(copy.deepcopy(plain))
    assert type(fast) is FastConv2d
    compare(plain, fast, torch.randn(3, 6, *size, dtype=torch.float64).contiguous(memory_format=memory_format), 1e-12)


@pytest.mark.parametrize(("kernel", "size"), [(1, 1), (1, 8), (3, 1), (3, 2), (3, 5)])
def test_convolution_equals_plain_in_single(kernel: int, size: int) -> None:
    plain = nn.Conv2d(48, 64, kernel, padding=kernel // 2)
    compare(plain, quicken(copy.deepcopy(plain)), torch.randn(16, 48, size, size), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "groups": 2, "padding": 1},
        {"kernel_size": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (1, 3), "padding": (0, 1)},
    ],
)
def test_unusual_convolution_equals_plain(options: dict) -> None:
    plain = nn.Conv2d(4, 6, **options).double()
    compare(plain, quicken(copy.deepcopy(plain)), torch.randn(2, 4, 2, 2, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_other_channels_are_refused_as_the_plain_convolution_does(size: int) -> None:
    fast = quicken(nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, bias=False)))
    for channels in (3, 12):
        with pytest.raises(RuntimeError, match="to have 6 channels"):
            fast(torch.randn(2, channels, size, size))


def test_unbatched_map_equals_plain() -> None:
    plain = nn.Conv2d(4, 6, 1).double()
    compare(plain, quicken(copy.deepcopy(plain)), torch.randn(4, 5, 3, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize(("kernel", "size"), [(1, 3), (3, 1), (3, 2)])
def test_gradients_of_gradients(kernel: int, size: int) -> None:
    conv = quicken(nn.Conv2d(2, 3, kernel, padding=kernel // 2).double())
    x = torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)
    assert torch.autograd.gradgradcheck(conv, x)


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
def test_batched_gradients_are_those_of_the_plain_network_one_by_one() -> None:
    plain = make_network().double().eval()
    fast, x = quicken(copy.deepcopy(plain)), torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    grads = torch.randn(3, 2, 10, dtype=torch.float64)
    batched = torch.autograd.grad(fast(x), [x, *fast.parameters()], grads, is_grads_batched=True)
    y, inputs = plain(x), [x, *plain.parameters()]
    single = [torch.autograd.grad(y, inputs, one, retain_graph=True) for one in grads]
    for together, *alone in zip(batched, *single, strict=True):
        expected = torch.stack(alone)
        assert (together - expected).abs().max() <= 1e-10 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("stages", STAGES)
def test_state_dict_loads_both_ways(stages: str) -> None:
    plain, fast = make_network(stages), quicken(make_network(stages, seed=1))
    keys = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name: tensor.shape for name, tensor in fast.state_dict().items()} == keys
    plain.load_state_dict(fast.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-4)
    fast.load_state_dict(make_network(stages).state_dict(), strict=True)
    torch.testing.assert_close(fast.eval()(x), make_network(stages).eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stages", STAGES)
def test_autocast_equals_plain(stages: str) -> None:
    plain = make_network(stages).train()
    fast = quicken(copy.deepcopy(plain))
    x = torch.randn(16, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = plain(x), fast(x)
    assert a.dtype == b.dtype == torch.bfloat16
    exact = plain(x)
    assert (b.float() - exact).norm() < 2.0 * (a.float() - exact).norm()  # both are rounded, each in its own way
    b.float().logsumexp(1).mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in fast.parameters())


def test_features_are_extracted_by_tracing() -> None:
    plain = make_network().eval()
    names = {"layer1.0.conv1": "conv", "layer4": "last"}
    extractor = create_feature_extractor(quicken(copy.deepcopy(plain)), names)
    x = torch.randn(2, 3, 32, 32)
    expected = create_feature_extractor(plain, names)(x)
    for name, feature in extractor(x).items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)


def test_synchronised_norms_keep_working() -> None:
    plain = make_network()
    fast = nn.SyncBatchNorm.convert_sync_batchnorm(quicken(copy.deepcopy(plain))).eval()
    assert any(type(module) is nn.SyncBatchNorm for module in fast.modules())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fast(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stages", STAGES)
def test_synchronised_norms_are_folded(stages: str) -> None:
    plain = make_network(stages).double()
    smaller = folded(nn.SyncBatchNorm.convert_sync_batchnorm(quicken(copy.deepcopy(plain))))
    left = {name.split(".")[-1] for name, module in smaller.named_modules() if type(module) is nn.SyncBatchNorm}
    assert left <= {"bn2", "norm_queries", "norm_values"}  # bn2 where a lambda layer is before it
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), plain.eval()(x), rtol=1e-9, atol=1e-9)


def test_hooks_see_every_convolution() -> None:
    fast = quicken(make_network())
    seen = []
    convolutions = [module for module in fast.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    fast(torch.randn(2, 3, 32, 32))
    assert len(seen) == len(convolutions)


def test_export_keeps_the_network() -> None:
    fast = quicken(make_network()).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(fast, (x,)).module()
    torch.testing.assert_close(exported(x), fast(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("stages", STAGES)
def test_folded_network_equals_evaluation_mode(stages: str, stem: str) -> None:
    size = 32 if stem == "imagenet" else 12
    model = quicken(make_network(stages, stem, size)).double()
    keys = list(model.state_dict())
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        logits = folded(model)(x)
        torch.testing.assert_close(logits, model.eval()(x), rtol=1e-9, atol=1e-9)
    assert list(model.state_dict()) == keys


def test_products_are_counted() -> None:
    x = torch.randn(2, 3, 32, 32)
    counts = []
    for model in (make_network("LLLL"), quicken(make_network("LLLL"))):
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("stages", ["CCCC", "LLLL"])
def test_a_trace_is_of_plain_operations(stages, tmp_path) -> None:
    model = quicken(make_network(stages)).eval()
    torch.jit.trace(model, torch.randn(2, 3, 32, 32)).save(tmp_path / "model.pt")
    loaded, x = torch.jit.load(tmp_path / "model.pt"), torch.randn(3, 3, 32, 32)
    assert "mkldnn" not in str(loaded.inlined_graph)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-4)


def test_memory_is_kept_or_not_touched() -> None:
    kept = platform.libc_ver()[0] == "glibc"
    assert [keep_freed_memory(), keep_freed_memory()] == [kept, kept]  # a second call changes nothing
    torch.empty(1 << 21).fill_(1.0)


def test_the_gradient_of_a_strided_convolution_has_the_strides_of_its_map() -> None:
    convolution = quicken(nn.Conv2d(6, 4, 1, stride=2))
    x = torch.randn(2, 6, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    strides = []
    middle = x * 1.0
    middle.register_hook(lambda gradient: strides.append(gradient.stride()))
    convolution(middle).sum().backward()
    assert strides == [x.stride()]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_format_of_their_parameters(memory_format) -> None:
    # PyTorch's fused optimizers on the CPU pair numbers by memory order, and go wrong silently where formats differ
    model = quicken(make_network()).to(memory_format=memory_format)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.shape[2:] != (1, 1):  # whose two formats are one order
            assert parameter.grad.stride() == parameter.stride(), name


def test_what_is_not_a_plain_convolution_and_norm_is_not_folded() -> None:
    model, x = quicken(make_network("CCLL")).eval(), torch.randn(2, 3, 32, 32)
    seen = []
    model.conv1.register_forward_hook(lambda module, inputs, output: seen.append(module))
    block = model.layer1[0]
    prune.l1_unstructured(block.conv1, "weight", amount=0.5)
    parametrizations.weight_norm(block.conv3)
    block.bn2.track_running_stats, block.bn2.running_mean, block.bn2.running_var = False, None, None
    block.downsample[0] = nn.Sequential(block.downsample[0], nn.Dropout2d(0.5)).eval()
    model.layer2 = nn.SyncBatchNorm.convert_sync_batchnorm(model.layer2)
    with torch.no_grad():
        logits = model(x)
    smaller = folded(model)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), logits, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    left = {name for name, module in smaller.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert {name for name in left if not name.startswith(("layer3", "layer4"))} == {
        "bn1", *(f"layer1.0.{name}" for name in ("bn1", "bn2", "bn3", "downsample.1"))
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_pruned_convolution_is_trained(size: int) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1)
    for convolution in (plain, fast := quicken(copy.deepcopy(plain))):
        prune.l1_unstructured(convolution, "weight", amount=0.5)
    for _ in range(2):
        compare(plain, fast, torch.randn(8, 4, size, size), 1e-4)


@pytest.mark.parametrize(("kernel", "size"), [(1, 3), (3, 1), (3, 2), (3, 5)])
def test_transforms_and_empty_batches_are_those_of_the_plain_convolution(kernel: int, size: int) -> None:
    plain = nn.Conv2d(3, 4, kernel, padding=kernel // 2)
    fast, x = quicken(copy.deepcopy(plain)), torch.randn(5, 3, size, size)
    results = []
    for module in (plain, fast):
        parameters = dict(module.named_parameters())

        def loss(parameters: dict[str, Tensor], image: Tensor, module: nn.Module = module) -> Tensor:
            return torch.func.functional_call(module, parameters, (image[None],)).sin().sum()

        by_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        along = torch.func.jvp(module, (x,), (x.cos(),))[1]
        empty = x[:0].clone().requires_grad_()
        nothing = module(empty)
        nothing.sum().backward()
        results.append([*by_sample.values(), along, nothing, empty.grad, module.weight.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
