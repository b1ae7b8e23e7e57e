"""The layer and the networks outside the project: torch.hub, pip, feature extraction, torch.export, ONNX."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import hubconf
import lambda_ops
import resnet_lambda
from command_line.paths import PROJECT
from lambda_layer import LambdaLayer3d
from resnet_lambda import build_lambda_resnet


def from_hub(name: str, **settings) -> nn.Module:
    return torch.hub.load(str(PROJECT), name, source="local", **settings)


def test_torch_hub_gives_every_network_that_the_project_names() -> None:
    listed = {name for name, entry in vars(hubconf).items() if callable(entry)}
    assert listed == {name for name in vars(resnet_lambda) if name.endswith("_lambda")} | {
        "lambda_layer",
        "lambda_layer_1d",
        "lambda_layer_3d",
        "resnet",
    }
    assert "share_embeddings" in hubconf.resnet420_lambda.__doc__  # which torch.hub.help prints


def test_torch_hub_loads_networks_and_layers() -> None:
    hybrid = from_hub("resnet26_lambda", stages="CCLL", image_size=32, num_classes=10).eval()
    baseline = from_hub("resnet", depth=26, stem="cifar", num_classes=7).eval()
    with torch.no_grad():
        assert hybrid(torch.randn(2, 3, 32, 32)).shape == (2, 10)
        assert baseline(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    assert from_hub("lambda_layer", dim=8, scope=3)(torch.randn(2, 8, 5, 6)).shape == (2, 8, 5, 6)
    assert isinstance(from_hub("lambda_layer_3d", dim=8, scope=3), LambdaLayer3d)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project, since a build leaves folders beside what it builds."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in [*PROJECT.glob("*.py"), *map(PROJECT.joinpath, ("pyproject.toml", "README.md", "LICENSE"))]:
        shutil.copy(path, folder)
    for room in (path.parent for path in PROJECT.glob("*/__init__.py")):
        shutil.copytree(room, folder / room.name)
    return folder


def built(kind: str, source: Path, target: Path) -> Path:
    """The archive of that kind, "sdist" or "wheel", by the project's own backend and without a network."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    target.mkdir()
    subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, check=True, capture_output=True)
    (archive,) = target.iterdir()
    return archive


def test_a_source_archive_is_built_into_the_wheel_of_a_checkout(checkout: Path, tmp_path: Path) -> None:
    archive = built("sdist", checkout, tmp_path / "sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    names = []
    for folder in (source, checkout):
        with zipfile.ZipFile(built("wheel", folder, tmp_path / f"wheel of {folder.name}")) as wheel:
            names.append(set(wheel.namelist()))
    assert names[0] == names[1]
    assert {f"lambda_resnets/{name}.py" for name in ("convert", "resnet", "resnet_lambda")} < names[0]


def test_pip_installs_the_layer_and_the_networks_alone(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "site-packages"
    # --no-build-isolation, --no-index and --no-deps: with what is here, and no network
    options = ["--quiet", "--no-build-isolation", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(checkout)], check=True)
    installed = {path.name for path in target.iterdir()} - {"__pycache__"}
    assert {name for name in installed if not name.endswith(".dist-info")} == {
        "lambda_layer.py",
        "lambda_ops",
        "lambda_resnets",
    }
    assert {path.name for path in (target / "lambda_resnets").glob("*.py")} == {
        "__init__.py",
        "convert.py",
        "resnet.py",
        "resnet_lambda.py",
    }
    code = (
        "import sys; sys.modules['torchvision'] = None\n"  # importing it is an error: the layer takes PyTorch alone
        "import lambda_layer, torch; print(lambda_layer.__file__)\n"
        "print(*lambda_layer.LambdaLayer(8, scope=3)(torch.zeros(2, 8, 4, 4)).shape)\n"
        "del sys.modules['torchvision']; from lambda_resnets import convert, resnet, resnet_lambda\n"
        "print(resnet_lambda.resnet50_lambda.args, resnet_lambda.build_resnet is resnet.build_resnet)\n"
        "print(convert.PooledLambdaLayer is resnet_lambda.PooledLambdaLayer)\n"
        "print(*(name for name in ('resnet', 'resnet_lambda', 'convert') if name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines() == [str(target / "lambda_layer.py"), "2 8 4 4", "(50,) True", "True", ""]


def test_the_layer_and_each_op_import_from_those_above_it_alone() -> None:
    order = re.findall(r"^    ([a-z]+)   +\w.*$", lambda_ops.__doc__.split("from those above it alone:")[1], re.M)
    folder = PROJECT / "lambda_ops"
    assert {f"{op}.py" for op in order} | {"__init__.py"} == {path.name for path in folder.glob("*.py")}
    for position, path in enumerate([*(folder / f"{op}.py" for op in order), PROJECT / "lambda_layer.py"]):
        allowed = {"torch", *sys.stdlib_module_names, *(f"lambda_ops.{op}" for op in order[:position])}
        imported = re.findall(r"^\s*(?:from|import) (lambda_ops\.\w+|\w+)", path.read_text(encoding="utf-8"), re.M)
        assert len(imported) > 1
        assert set(imported) <= allowed, path


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Convolutions and lambda layers with and without a pool; its batch norms have seen data."""
    torch.manual_seed(0)
    model = build_lambda_resnet(
        26, stages="CCLL", image_size=64, num_classes=5, intra_depth=2, zero_init_residual=False
    )
    model(torch.randn(4, 3, 64, 64))
    return model.eval()


def test_torchvision_extracts_features(network: nn.Module) -> None:
    nodes = {"layer2": "c3", "layer4.1.conv2": "lambda"}
    extractor = create_feature_extractor(network, nodes)
    kept = {}
    network.layer2.register_forward_hook(lambda module, inputs, output: kept.update(c3=output))
    handle = network.layer4[1].conv2.register_forward_hook(
        lambda module, inputs, output: kept.update({"lambda": output})
    )
    for side in (64, 48):  # the trace holds for any size that the network takes
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            features = extractor(images)
            network(images)
        assert features.keys() == kept.keys()
        for name, feature in features.items():
            torch.testing.assert_close(feature, kept[name], rtol=1e-4, atol=1e-5)  # products differ in rounding
    handle.remove()
    extractor.train()(torch.randn(2, 3, 64, 64))["lambda"].sum().backward()
    with pytest.raises(ValueError, match="covers .* at most: call resize_embedding"):
        extractor(torch.randn(1, 3, 128, 128))
