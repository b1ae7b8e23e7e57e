import copy
from collections.abc import Callable

import lambda_networks
import pytest
import timm
import torch
from other_lambda_layers import DLi14Layer, Leaderj1001Layer
from timm.layers import make_divisible
from timm.layers.lambda_layer import LambdaLayer as TimmLayer
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from convert import from_d_li14, from_lambda_networks, from_leaderj1001, from_timm, replace_lambda_layers
from lambda_layer import LambdaLayer
from resnet_lambda import PooledLambdaLayer

SIDE = 5
LAYERS: dict[str, tuple[Callable, Callable[[], nn.Module]]] = {
    "timm, r": (from_timm, lambda: TimmLayer(8, r=3, num_heads=2, dim_head=3)),
    "timm, qk_ratio": (from_timm, lambda: TimmLayer(8, r=3, num_heads=2, dim_head=None, qk_ratio=2.0)),
    "timm, r beyond the map": (from_timm, lambda: TimmLayer(8, r=13, num_heads=2, dim_head=3)),
    "timm, feat_size": (from_timm, lambda: TimmLayer(8, r=None, feat_size=(SIDE, SIDE), num_heads=4, dim_head=3)),
    "timm, qkv_bias": (from_timm, lambda: TimmLayer(8, r=3, num_heads=2, dim_head=3, qkv_bias=True)),
    "timm, stride": (from_timm, lambda: TimmLayer(8, r=3, stride=2, num_heads=2, dim_head=3)),
    "timm, all": (
        from_timm,
        lambda: TimmLayer(8, r=None, feat_size=(SIDE, SIDE), stride=2, num_heads=1, dim_head=3, qkv_bias=True),
    ),
    "lambda-networks, n": (
        from_lambda_networks,
        lambda: lambda_networks.LambdaLayer(6, dim_out=8, dim_k=3, n=SIDE, heads=2, dim_u=3),
    ),
    "lambda-networks, r": (
        from_lambda_networks,
        lambda: lambda_networks.LambdaLayer(6, dim_out=8, dim_k=3, r=3, heads=2, dim_u=2),
    ),
    "d-li14": (from_d_li14, lambda: DLi14Layer(8, k=3, h=2, u=1, r=3)),
    "d-li14, u": (from_d_li14, lambda: DLi14Layer(8, k=3, h=2, u=3, r=5)),
    "d-li14, bias": (from_d_li14, lambda: DLi14Layer(8, k=3, h=2, u=2, r=3, bias=True)),
    "d-li14, stride": (from_d_li14, lambda: DLi14Layer(8, k=3, h=2, u=2, r=3, stride=2)),
    "leaderj1001, m": (from_leaderj1001, lambda: Leaderj1001Layer(6, 8, k=3, h=2, u=1, m=3)),
    "leaderj1001, no m": (from_leaderj1001, lambda: Leaderj1001Layer(6, 8, k=3, h=2, u=3, m=0)),
}


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter and statistic of the norms, and every bias, away from where it starts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            module.running_mean += 0.3 * torch.randn_like(module.running_mean)
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.7, 1.5)
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1.0))


def with_gradients(model: nn.Module) -> nn.Module:
    """A copy that has the gradients for parameters: what the converter makes of it is what ours shall have."""
    twin = copy.deepcopy(model)
    for parameter, original in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.data = torch.zeros_like(original) if original.grad is None else original.grad
    return twin


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_outputs_gradients_and_statistics_of_theirs(name: str, training: bool) -> None:
    convert, build = LAYERS[name]
    theirs = randomise(build().double()).train(training)
    ours = convert(theirs)
    dim = next(module.in_channels for module in theirs.modules() if isinstance(module, nn.Conv2d))
    for x in torch.randn(2, 3, dim, SIDE, SIDE, dtype=torch.float64):
        to_theirs, to_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, y = theirs(to_theirs), ours(to_ours)
        assert y.shape == expected.shape
        assert close(y, expected)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (y * weights).sum().backward()
        assert close(to_ours.grad, to_theirs.grad)
    gradients = dict(convert(with_gradients(theirs)).named_parameters())
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for key, parameter in ours.named_parameters():
        assert close(parameter.grad, gradients[key]), key
    expected_state = convert(theirs).state_dict()
    assert ours.state_dict().keys() == expected_state.keys()
    for key, value in ours.state_dict().items():
        assert close(value.double(), expected_state[key].double()), key
    assert ours.training == training


def build_timm_network(name: str) -> nn.Module:
    """In float64, with statistics of random images, moved away from them."""
    options = {"img_size": 64} if name == "lambda_resnet26rpt_256" else {}
    model = timm.create_model(name, num_classes=5, **options).double().train()
    update_bn([torch.randn(4, 3, 64, 64, dtype=torch.float64)], model)  # else logits in evaluation mode overflow
    return randomise(model)


@pytest.mark.parametrize(
    ("name", "count"), [("lambda_resnet26t", 3), ("lambda_resnet26rpt_256", 3), ("lambda_resnet50ts", 5)]
)
def test_whole_networks_of_timm_give_the_same_logits_and_gradients(name: str, count: int, capsys) -> None:
    theirs = build_timm_network(name)
    ours = copy.deepcopy(theirs)
    replaced = replace_lambda_layers(ours)
    assert len(replaced) == count
    assert list(replaced) == [key for key, module in theirs.named_modules() if isinstance(module, TimmLayer)]
    assert not any(isinstance(module, TimmLayer) for module in ours.modules())
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == list(replaced)
    assert all("timm -> LambdaLayer(" in line for line in printed)

    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for training in (True, False):
        results = []
        for model in (theirs.train(training), ours.train(training)):
            model.zero_grad()
            x = images.clone().requires_grad_()
            logits = model(x)
            logits.logsumexp(1).sum().backward()
            gradients = {key: parameter.grad for key, parameter in model.named_parameters() if "self_attn" not in key}
            results.append({"logits": logits, "images": x.grad, **gradients})
        expected, actual = results
        assert expected["logits"].std() > 1e-3
        for key, value in expected.items():
            assert (actual[key] - value).abs().max() <= 1e-10 * value.abs().max(), key


def test_layers_are_replaced_wherever_they_stand_and_stay_one_where_they_were_one() -> None:
    shared = TimmLayer(8, r=3)
    model = nn.ModuleDict(
        {
            "list": nn.ModuleList([shared, nn.Conv2d(8, 8, 1)]),
            "chain": nn.Sequential(shared, nn.Sequential(lambda_networks.LambdaLayer(8, dim_k=4, r=3))),
            "others": nn.ModuleDict(
                {"d": DLi14Layer(8, 4, 2, 1, 3, stride=2), "l": Leaderj1001Layer(8, 8, 4, 2, 1, 3)}
            ),
            "ours": LambdaLayer(8, scope=3),
        }
    )
    kept = model["list"][1], model["ours"]
    replaced = replace_lambda_layers(model, verbose=False)
    assert set(replaced) == {"list.0", "chain.0", "chain.1.0", "others.d", "others.l"}
    assert all(model.get_submodule(name) is layer for name, layer in replaced.items())
    assert {name: type(layer) for name, layer in replaced.items()} == {
        **dict.fromkeys(replaced, LambdaLayer),
        "others.d": PooledLambdaLayer,
    }
    assert model["list"][0] is model["chain"][0]
    assert (model["list"][1], model["ours"]) == kept


def test_settings_come_along() -> None:
    theirs = TimmLayer(8, r=3, stride=2).to(torch.bfloat16).train()
    theirs.norm_q.eps, theirs.norm_v.momentum = 1e-3, 0.7
    theirs.norm_v.eval()
    theirs.qkv.weight.requires_grad_(False)
    theirs.conv_lambda.bias.requires_grad_(False)
    state = torch.get_rng_state()
    with torch.no_grad():
        layer, pool = from_timm(theirs)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(pool) == repr(nn.AvgPool2d(2, 2))
    assert (layer.norm_queries.eps, layer.norm_queries.momentum) == (1e-3, 0.1)
    assert (layer.norm_values.eps, layer.norm_values.momentum) == (1e-5, 0.7)
    assert (layer.training, layer.norm_queries.training, layer.norm_values.training) == (True, True, False)
    trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert trained == {f"norm_{norm}.{name}" for norm in ("queries", "values") for name in ("weight", "bias")} | {
        "embedding"
    }
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.bfloat16, torch.int64}
    theirs.qkv.weight.data.zero_()
    assert layer.to_queries.weight.any()  # a copy


def test_norms_without_weights_or_statistics() -> None:
    theirs = lambda_networks.LambdaLayer(8, dim_k=4, r=3, dim_u=2).double().eval()
    theirs.norm_q = nn.BatchNorm2d(16, affine=False, dtype=torch.float64).eval()
    theirs.norm_v = nn.BatchNorm2d(4, track_running_stats=False, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    assert close(from_lambda_networks(theirs)(x), theirs(x))


def test_a_position_convolution_without_bias() -> None:
    theirs = DLi14Layer(8, k=3, h=2, u=2, r=3)
    theirs.pos_conv.bias = None
    layer = from_d_li14(theirs)
    assert layer.position_bias is None
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(layer(x), theirs(x))


def test_a_layer_that_is_another_function_is_refused_and_nothing_is_changed() -> None:
    theirs = Leaderj1001Layer(8, 8, k=4, h=2, u=2, m=3)
    says = "m = 3 with u = 2 is not the lambda layer's function: the values are read as"
    with pytest.raises(ValueError, match=f"^{says}"):
        from_leaderj1001(theirs)
    model = nn.Sequential(TimmLayer(8, r=3), nn.Sequential(theirs))
    with pytest.raises(ValueError, match=f"^1.0: {says}"):
        replace_lambda_layers(model)
    assert isinstance(model[0], TimmLayer)
    assert model[1][0] is theirs


def with_part(layer: nn.Module, name: str, part: nn.Module) -> nn.Module:
    setattr(layer, name, part)
    return layer


REFUSED = {
    "a convolution": (
        from_timm,
        lambda: nn.Conv2d(8, 8, 1),
        "from_timm takes a layer of norm_q, norm_v, qkv and Conv3d ",
    ),
    "another's": (
        from_d_li14,
        lambda: TimmLayer(8, r=3),
        "conv_qkv, norm_q, norm_v and Conv3d; LambdaLayer holds Conv3d",
    ),
    "one more part": (
        from_timm,
        lambda: with_part(TimmLayer(8, r=3), "dropout", nn.Dropout()),
        "LambdaLayer holds Conv3d, dropout, norm_q",
    ),
    "another norm": (
        from_timm,
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(TimmLayer(8, r=3)),
        "a norm is SyncBatchNorm; it must be BatchNorm2d",
    ),
    "even window": (from_timm, lambda: TimmLayer(8, r=4), "scope is 4; it must be odd"),
    "another projection": (
        from_timm,
        lambda: with_part(TimmLayer(8, r=3), "qkv", nn.Sequential(nn.Conv2d(8, 82, 1))),
        "a projection is Sequential; it must be a 1×1 Conv2d",
    ),
    "unpadded": (
        from_d_li14,
        lambda: with_part(DLi14Layer(8, 3, 2, 1, 3), "pos_conv", nn.Conv3d(1, 3, (1, 3, 3))),
        "Conv3d.* is not the position convolution",
    ),
    "dilated": (
        from_d_li14,
        lambda: with_part(
            DLi14Layer(8, 3, 2, 1, 3), "pos_conv", nn.Conv3d(1, 3, (1, 3, 3), padding=(0, 2, 2), dilation=2)
        ),
        "Conv3d.* is not the position convolution",
    ),
    "parts that do not fit": (
        from_leaderj1001,
        lambda: with_part(Leaderj1001Layer(8, 8, 3, 2, 1, 3), "keys", nn.Sequential(nn.Conv2d(8, 4, 1))),
        r"a weight of shape \(4, 8\) does not fit the other parts, which need \(3, 8\)",
    ),
}


@pytest.mark.parametrize("settings", [{"count_include_pad": False}, {"divisor_override": 4}, {"ceil_mode": True}])
def test_another_pool_stays_as_it_is(settings: dict) -> None:
    theirs = with_part(DLi14Layer(8, k=3, h=2, u=2, r=3, stride=2), "pool", nn.AvgPool2d(3, 2, 1, **settings)).eval()
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(from_d_li14(theirs).eval()(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    convert, build, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        convert(build())


def test_a_layer_by_itself_is_referred_to_its_function() -> None:
    with pytest.raises(ValueError, match="the model is itself a lambda layer.*: from_lambda_networks"):
        replace_lambda_layers(lambda_networks.LambdaLayer(8, dim_k=4, r=3))


def test_a_network_without_lambda_layers_is_told_so(capsys) -> None:
    assert replace_lambda_layers(nn.Sequential(nn.Conv2d(3, 8, 1), LambdaLayer(8, scope=3))) == {}
    assert capsys.readouterr().out == "no lambda layer found of timm, lambda-networks, d-li14, leaderj1001\n"


@pytest.mark.parametrize(("heads", "dim_head", "ratio"), [(4, 16, 1.0), (4, None, 1.0), (2, None, 0.5), (3, None, 2.0)])
def test_timms_key_depth_is_what_the_page_says(heads: int, dim_head: int | None, ratio: float) -> None:
    theirs = TimmLayer(24, r=3, num_heads=heads, dim_head=dim_head, qk_ratio=ratio)
    assert from_timm(theirs).key_depth == theirs.dim_qk == (dim_head or make_divisible(24 * ratio, 8) // heads)
