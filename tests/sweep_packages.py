"""Cases of `sweep.py`: adapters, quantisers and wrappers of packages that pytest does without."""

import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sweep_tools import (
    CLASSES,
    PROJECTIONS,
    SETTINGS,
    case,
    images,
    lambda_layers,
    network,
    same,
    train_step,
)
from torch import nn

from lambda_layer import LambdaLayer
from resnet_lambda import build_lambda_resnet


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
