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
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sweep_packages  # noqa: F401 - puts its cases among them
import torch
import torch.distributed as dist
from sweep_tools import (
    CASES,
    PROJECTIONS,
    SETTINGS,
    case,
    images,
    lambda_layers,
    network,
    refused,
    same,
    train_step,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from lambda_layer import LambdaLayer
from resnet_lambda import build_lambda_resnet


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
