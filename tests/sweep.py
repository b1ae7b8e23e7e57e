"""Do to lambda networks what people do to an `nn.Module` that they have taken home, and say what works.

    pip install peft torchao opacus accelerate timm
    python tests/sweep.py                     # two minutes on one CPU core; exit code 1 where a case has failed

For development alone: these packages are large, move fast and are not among the requirements. A case whose package is
missing is "not installed". What PyTorch and torchvision do by themselves, pytest tries, too; the cases here use their
recipes as they stand in their documentation.
"""

import copy
import importlib.util
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from acceleration.fast_layers import quicken
from lambda_layer import LambdaLayer
from resnet_lambda import build_lambda_resnet

CLASSES, SIDE = 3, 32
SETTINGS = {"stem": "compact", "image_size": SIDE, "num_classes": CLASSES}
PROJECTIONS = ("to_queries", "to_values")
CASES: dict[Callable[[], None], str] = {}  # each with the package that it needs


def case(package: str = "torch") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Put a function among the cases; its name is what it shows."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        CASES[function] = package
        return function

    return register


def network(**options: object) -> nn.Module:
    """A small λ-ResNet in evaluation mode, whose norms have seen images and whose branches count."""
    torch.manual_seed(0)
    model = build_lambda_resnet(26, **SETTINGS, **options)
    for name, weight in model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(weight, 0.2)
    update_bn([images(16)], model)
    return quicken(model).eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE)


def lambda_layers(model: nn.Module) -> list[LambdaLayer]:
    return [module for module in model.modules() if isinstance(module, LambdaLayer)]


def train_step(model: nn.Module, x: Tensor, rate: float = 1e-3) -> None:
    """A step of SGD, after which every parameter that is trained has a gradient."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    F.cross_entropy(model(x), torch.arange(len(x)) % CLASSES).backward()
    without = [name for name, value in trained.items() if value.grad is None or not value.grad.isfinite().all()]
    assert not without, f"no finite gradient for {len(without)} of {len(trained)}: {', '.join(without[:3])}"
    torch.optim.SGD(trained.values(), lr=rate).step()


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    """Up to a part of the expected tensor's length."""
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error <= tolerance, f"{error:.2g} away"  # which NaN is not


@case("peft")
def lora_trains_and_merges() -> None:
    from peft import LoraConfig, get_peft_model  # where it is installed

    model, x = network(), images()
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(target_modules=list(PROJECTIONS), init_lora_weights=False)
    )
    adapters = [value for name, value in adapted.named_parameters() if "lora_" in name]
    assert len(adapters) == 2 * len(PROJECTIONS) * len(lambda_layers(model))
    assert all(value.requires_grad for value in adapters)
    train_step(adapted.train(), x)
    assert all(value.grad.any() for value in adapters)
    with torch.no_grad():
        before = adapted.eval()(x)
        assert (before - model(x)).norm() > 0.01 * before.norm()
        same(adapted.merge_and_unload()(x), before)


@case("peft")
def ia3_and_lora_of_every_kind_of_layer() -> None:
    from peft import IA3Config, LoraConfig, get_peft_model  # where it is installed

    for config in (
        LoraConfig(target_modules="all-linear", use_dora=True),
        LoraConfig(target_modules=["to_keys", "conv1", "conv3"], modules_to_save=["fc"]),
        IA3Config(target_modules=list(PROJECTIONS), feedforward_modules=[]),
    ):
        adapted, x = get_peft_model(network(), config), images()
        train_step(adapted.train(), x)
        with torch.no_grad():
            before = adapted.eval()(x)
            same(adapted.merge_and_unload()(x), before)


@case("torchao")
def torchao_weights_in_eight_bits() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # where it is installed

    model, x = network(), images()
    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8WeightOnlyConfig())
    assert all(type(layer.to_values.weight) is not nn.Parameter for layer in lambda_layers(quantised))
    with torch.no_grad():
        same(quantised(x), model(x), 0.1)


@case("torchao")
def torchao_trains_with_quantisation_in_mind() -> None:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_  # where it is installed
    from torchao.quantization.granularity import PerAxis  # where it is installed
    from torchao.quantization.qat import QATConfig  # where it is installed

    model, x = network(), images()
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(model, QATConfig(config, step="prepare"))
    train_step(model.train(), x)
    with torch.no_grad():
        prepared = model.eval()(x)
        quantize_(model, QATConfig(config, step="convert"))
        same(model(x), prepared, 0.1)


@case()
def quantize_dynamic_of_torch() -> None:
    model, x = network(), images()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(layer.to_values) is nn.Linear for layer in lambda_layers(quantised))
    with torch.no_grad():
        same(quantised(x), model(x), 0.1)


@case("accelerate")
def accelerate_offloads() -> None:
    from accelerate import cpu_offload  # where it is installed

    model, x = network(share_embeddings=True), images()
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(layer.to_values.weight.device.type == "meta" for layer in lambda_layers(offloaded))
    with torch.no_grad():
        same(offloaded(x), model(x))


@case("accelerate")
def accelerate_builds_empty_and_loads() -> None:
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch  # where it is installed

    model, x = network(), images()
    with init_empty_weights():
        empty = build_lambda_resnet(26, **SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), file := Path(folder) / "model.bin")
        loaded = load_checkpoint_and_dispatch(empty, str(file), device_map={"": "cpu"}).eval()
    with torch.no_grad():
        same(loaded(x), model(x))


@case("accelerate")
def accelerate_prepares_and_accumulates() -> None:
    from accelerate import Accelerator  # where it is installed

    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = network().train()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    for _ in range(2):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(images()).float(), torch.arange(4) % CLASSES)
            accelerator.backward(loss)
            assert all(value.grad.isfinite().all() for value in model.parameters())
            optimizer.step()
            optimizer.zero_grad()


@case("opacus")
def opacus_gradients_of_each_sample() -> None:
    from opacus import GradSampleModule  # where it is installed

    layer = LambdaLayer(8, 6, scope=3, heads=2)
    layer.norm_queries, layer.norm_values = nn.GroupNorm(4, 32), nn.GroupNorm(1, 3)
    for mode in ("hooks", "functorch"):
        x, twin = torch.randn(5, 8, 4, 6), copy.deepcopy(layer)
        modes = {"force_functorch": True} if mode == "functorch" else {}
        wrapped = GradSampleModule(twin, loss_reduction="sum", strict=False, **modes)
        wrapped(x).square().sum().backward()
        for name, value in layer.named_parameters():
            each = [torch.autograd.grad(layer(one[None]).square().sum(), value)[0] for one in x]
            same(twin.get_parameter(name).grad_sample, torch.stack(each))


@case("opacus")
def opacus_trains_in_private() -> None:
    from opacus import PrivacyEngine  # where it is installed
    from opacus.validators import ModuleValidator  # where it is installed

    model = ModuleValidator.fix(nn.Sequential(nn.Conv2d(3, 8, 1), LambdaLayer(8, 64, scope=3)))
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)).train()
    assert not ModuleValidator.validate(model)
    data = torch.utils.data.TensorDataset(images(12), torch.arange(12) % CLASSES)
    loader, optimizer = torch.utils.data.DataLoader(data, batch_size=4), torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = PrivacyEngine(accountant="rdp").make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
    )
    before = [value.clone() for value in model.parameters()]
    for x, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@case("timm")
def timm_freezes_norms() -> None:
    from timm.layers import freeze_batch_norm_2d  # where it is installed

    model, x = network(), images()
    expected = model(x)
    frozen = freeze_batch_norm_2d(copy.deepcopy(model)).train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in frozen.modules())
    train_step(frozen, x, rate=0.0)
    same(frozen(x), expected)


@case("timm")
def timm_averages_weights_and_clips_gradients() -> None:
    from timm.optim import create_optimizer_v2  # where it is installed
    from timm.utils import ModelEmaV3, adaptive_clip_grad  # where it is installed

    model = network().train()
    average, optimizer = ModelEmaV3(model, decay=0.5), create_optimizer_v2(model, opt="lamb", lr=1e-3)
    F.cross_entropy(model(images()), torch.arange(4) % CLASSES).backward()
    adaptive_clip_grad(model.parameters())
    optimizer.step()
    average.update(model)
    assert average.module.eval()(images()).isfinite().all()


@case("timm")
def timm_lets_layers_learn_at_rates_of_their_own() -> None:
    from timm.optim import param_groups_weight_decay  # where it is installed

    model = network()
    groups = param_groups_weight_decay(model, weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    norms = {id(layer.norm_values.weight) for layer in lambda_layers(model)}
    assert norms <= {id(value) for group in groups if not group["weight_decay"] for value in group["params"]}


@case()
def torchvision_extracts_features() -> None:
    model, x = network(), images()
    seen: list[Tensor] = []
    handle = model.layer4[1].conv2.to_values.register_forward_hook(lambda _, __, y: seen.append(y))
    features = create_feature_extractor(model, ["layer4.1.conv2.to_values", "layer3", "fc"])(x)
    seen.clear()
    same(features["fc"], model(x))
    handle.remove()
    same(features["layer4.1.conv2.to_values"], seen[0])


@case()
def torchvision_freezes_norms_of_detection() -> None:
    model = build_lambda_resnet(26, norm_layer=FrozenBatchNorm2d, **SETTINGS)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    weights = network().state_dict()
    model.load_state_dict({key: value for key, value in weights.items() if "num_batches" not in key})
    x = images()
    same(model.train()(x), network()(x))


@case()
def torchvision_builds_a_feature_pyramid() -> None:
    from torchvision.models.detection.backbone_utils import (
        _resnet_fpn_extractor,
    )  # private, and used by all its recipes

    backbone = _resnet_fpn_extractor(network(scope=3), trainable_layers=3)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(each.shape[2:]) for each in maps.values()] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    sum(each.square().mean() for each in maps.values()).backward()
    assert backbone.body.layer4[0].conv2.embedding.grad.any()
    assert backbone.body.layer1[0].conv2.embedding.grad is None


@case()
def weights_are_pruned_and_trained_on() -> None:
    model = network().train()
    targets = [(getattr(layer, name), "weight") for layer in lambda_layers(model) for name in PROJECTIONS]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=0.5)
    for _ in range(2):
        model.zero_grad()
        train_step(model, images())
    for module, name in targets:
        prune.remove(module, name)
    zero = sum((module.weight == 0).sum().item() for module, _ in targets)
    assert abs(zero / sum(module.weight.numel() for module, _ in targets) - 0.5) < 0.01


@case()
def weights_are_reparametrised() -> None:
    for parametrize in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal):
        model = network().train()
        for layer in lambda_layers(model):
            parametrize(layer.to_values)
        for _ in range(2):
            model.zero_grad()
            train_step(model, images())


@case()
def hooks_fire() -> None:
    model, seen = network().train(), []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, ___, name=name: seen.append(name))
    model(images())
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    assert set(seen) == leaves


@case()
def freezing_leaves_all_but_the_head() -> None:
    model = network().requires_grad_(False)
    model.fc.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    train_step(model, images(), rate=0.1)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"fc.weight", "fc.bias"}


@case()
def operations_are_counted() -> None:
    layer, x = LambdaLayer(16, input_size=8), torch.randn(2, 16, 8, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    n, d, h, k, v = 64, 16, 4, 16, 4
    projections, content = n * d * (h * k + k + v), n * k * v * (1 + h)
    position = counter.get_total_flops() / 4 - projections - content  # of one image, in multiplications
    assert position >= n * h * k * v, f"{position:.0f} multiplications for the position lambdas"


@case()
def weights_are_averaged() -> None:
    model = network().train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    train_step(model, images())
    average.update_parameters(model)
    assert average.eval()(images()).isfinite().all()


@case()
def activations_are_checkpointed() -> None:
    model, x, gradients = network(), images(), []
    for again in (False, True):
        model.zero_grad()
        if again:
            for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
                stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)
        model(x).square().mean().backward()
        gradients.append([value.grad.clone() for value in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        same(one, other)


@case()
def networks_are_compiled() -> None:
    model, x = network(scope=3), images()
    with torch.no_grad():
        same(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


@contextmanager
def group_of_one() -> Iterator[DeviceMesh]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@case()
def networks_are_sharded_by_fsdp2() -> None:
    with group_of_one() as mesh:
        model, x = network(), images()
        expected = model(x)
        for layer in lambda_layers(model):
            fully_shard(layer.to_queries, mesh=mesh)
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        same(model(x), expected)
        model(x).square().mean().backward()
        assert all(value.grad is not None for value in model.parameters())


@case()
def a_shared_embedding_is_sharded_in_one_group() -> None:
    with group_of_one() as mesh:
        model, x = network(share_embeddings=True), images()
        expected = model(x)
        together = copy.deepcopy(model)
        fully_shard([block.conv2 for block in together.layer1], mesh=mesh)
        for whole in (model, together):
            same(fully_shard(whole, mesh=mesh)(x), expected)
        apart = network(share_embeddings=True)
        for block in apart.layer1:
            fully_shard(block, mesh=mesh)
        refused(ValueError, lambda: fully_shard(apart, mesh=mesh)(x))


@case()
def scripts_and_strict_exports_are_refused() -> None:
    layer, x = LambdaLayer(8, scope=3).eval(), torch.randn(2, 8, 4, 4)
    refused(RuntimeError, lambda: torch.jit.script(layer))
    refused(RuntimeError, lambda: torch.export.export(layer, (x,), strict=True))
    same(torch.export.export(layer, (x,), strict=False).module()(x), layer(x))


def refused(error: type[Exception], function: Callable[[], object]) -> None:
    """What the page calls a limit is still one; else the page is to be changed."""
    try:
        function()
    except error:
        return
    raise AssertionError("a limit of the page is none any more")


def outcome(function: Callable[[], None], package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return f"not installed ({package})"
    torch.manual_seed(0)
    try:
        function()
    except Exception as error:  # a package fails as it likes
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return "passed"


def main(names: list[str]) -> int:
    failed = 0
    for function, package in CASES.items():
        if not names or function.__name__ in names:
            words = outcome(function, package)
            failed += words.startswith("failed")
            print(f"{package:10} {function.__name__:46} {words}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is fetched
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
