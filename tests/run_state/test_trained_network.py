"""What is done with a run's checkpoint: predictions, exports, pictures."""

import csv
import dataclasses
import itertools
import json
import re
import shutil
import textwrap
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import RENDER
from PIL import Image
from run_tools import small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import draw_embeddings
import export_model
import predict
from command_line.errors import InputError
from data_sources.images import read_image
from lambda_layer import LambdaLayer
from lambda_ops.rule import Way, choose_way
from main_general import RunResult, main
from model_preparation import prepare_training
from resnet_lambda import build_lambda_resnet, resnet26_lambda
from run_state.run_folder import checkpoint_files
from run_state.trained_network import Classifier, load_network
from scoring import writing
from user_input import UserInput


@pytest.fixture(scope="module")
def trained(shallow: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    """Batch norms with a momentum that lets the running statistics follow the data within a few steps."""
    settings = {"stages": "CCLL", "image_size": 40, "checkpoint_every": 2, "bn_momentum": 0.5}  # files have 12 pixels
    args = small_run(photos, tmp_path_factory.mktemp("trained"), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_png", RENDER)
        return args, main(args)


def test_predictions_of_the_test_images_come_to_the_runs_accuracy(
    trained: tuple[UserInput, RunResult], photos: Path, capsys: pytest.CaptureFixture
) -> None:
    _, result = trained
    paths = sorted((photos / "test").glob("*/*.png"))
    assert predict.main([*map(str, paths), "--checkpoint", str(result.folder), "--top", "1"]) == 0
    _, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    correct = [path.parent.name == row[1] for path, row in zip(paths, rows, strict=True)]
    assert 100 * np.mean(correct) == pytest.approx(result.test_top1)
    assert all(len(bar) == round(float(share) / 5) for _, _, share, _, bar in rows)


def test_predictions_are_drawn(trained: tuple[UserInput, RunResult], photos: Path, tmp_path: Path) -> None:
    words = [str(photos / "test"), "--checkpoint", str(trained[1].folder)]
    predict.main([*words, "--out", str(tmp_path / "seen.png"), "--out", str(tmp_path / "seen.csv")])
    assert Image.open(tmp_path / "seen.png").size > (1000, 500)
    assert len((tmp_path / "seen.csv").read_text().splitlines()) == 1 + 3 * 15
    network = load_network(trained[1].folder)
    (seen,) = predict.predict_files(network, [str(photos / "test/one/11.png")])
    figure = predict.picture([seen], network)
    bars = [bar.get_width() for bar in figure.axes[1].patches]
    assert bars == [share for _, share in seen.predictions]
    assert [text.get_text().split()[0] for text in figure.axes[1].texts] == [label for label, _ in seen.predictions]
    assert np.array_equal(figure.axes[0].images[0].get_array(), np.array(seen.view))
    assert "after epoch 3" in figure.get_suptitle()
    in_no_font = predict.picture([seen._replace(path="here/\U0010fffd.png")], network)
    assert in_no_font.axes[0].get_title() == r"\U0010fffd.png"
    (tmp_path / "a folder.png").mkdir()
    for path, says in {
        "seen.txt": r"takes a name that ends in .csv, .png",
        "absent/seen.png": "there is no folder",
        "a folder.png": "is a folder; takes a file's name",
    }.items():
        with pytest.raises(InputError, match=f"out: .*{says}"):
            predict.main([*words, "--out", str(tmp_path / path)])


def test_the_docstring_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    predictions = [("cat", 0.9310), ("dog", 0.0425), ("frog", 0.0102)]
    monkeypatch.setattr(predict, "load_network", lambda given: SimpleNamespace(classes=("automobile", "cat")))
    monkeypatch.setattr(predict, "predict_files", lambda *given: [predict.Seen("cat.jpg", None, predictions)])
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").touch()
    (words,) = re.findall(r"^    python predict.py (.*)$", predict.__doc__, re.M)
    predict.main(words.split())
    assert textwrap.indent(capsys.readouterr().out, "    ") in predict.__doc__


def test_too_little_memory_for_a_prediction_is_one_line(
    trained: tuple[UserInput, RunResult], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*given: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(predict, "predict_views", out_of_memory)
    with pytest.raises(InputError, match="^batch_size: these settings take more memory than there is .*lower batch"):
        predict.main([str(photos / "test" / "one"), "--checkpoint", str(trained[1].folder)])


def test_latest_is_the_run_that_began_last(
    trained: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, result = trained
    for group, name, started in (
        ("Lambda", "b", "2026-01-02"),
        ("Lambda", "a", "2026-01-01"),
        ("Baseline", "c", "2025"),
    ):
        copy = shutil.copytree(result.folder, tmp_path / group / name)
        config = json.loads((copy / "config.json").read_text())
        config |= {"started": started, "number": int(started[-1])}
        (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(UserInput, "runs_path", tmp_path)
    assert load_network(Path("latest")).file.parent.parent.name == "b"
    assert "latest: " in capsys.readouterr().err
    shutil.rmtree(tmp_path / "Lambda")
    assert load_network(Path("latest")).file.parent.parent.name == "c"
    monkeypatch.setattr(UserInput, "runs_path", tmp_path / "absent")
    with pytest.raises(InputError, match="checkpoint: latest is no run, since there is none with a checkpoint"):
        load_network(Path("latest"))


def test_confidences_fall_and_come_to_one(trained: tuple[UserInput, RunResult], photos: Path) -> None:
    network = load_network(checkpoint_files(trained[1].folder)[-1])
    predictions = predict.predict(network, read_image(str(photos / "test/one/11.png")), top=9)
    assert {name for name, _ in predictions} == {"nought", "one", "two"}
    shares = [share for _, share in predictions]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)


def test_what_is_no_checkpoint_is_refused(trained: tuple[UserInput, RunResult], tmp_path: Path) -> None:
    torch.save({"config": {}}, tmp_path / "other.pt")
    torch.save(print, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    saved = torch.load(checkpoint_files(trained[1].folder)[-1], weights_only=True)
    saved["config"]["data"]["classes"].append("three")
    torch.save(saved, tmp_path / "classes.pt")
    for name, says in {
        "other.pt": "no checkpoint of this version of the project",
        "code.pt": "no checkpoint of this version of the project",
        "text.pt": "is damaged, or no checkpoint",
        "classes.pt": "size mismatch",
        "absent.pt": "there is no file",
        ".": "holds no checkpoint; takes a file",
    }.items():
        with pytest.raises(InputError, match=says):
            load_network(tmp_path / name)
    for arguments, says in {
        ("a.png", "--checkpoint", ".", "--top", "0"): "top: 0 is not allowed",
        ("a.png",): "--checkpoint",
    }.items():
        with pytest.raises(InputError, match=says):
            predict.main(list(arguments))


def test_exports_give_the_networks_logits(
    trained: tuple[UserInput, RunResult],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = load_network(trained[1].folder)
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", partial(torch.export.export, strict=True))  # PyTorch 2.6's default
        program = export_model.export(network)
    norms = sum("batch_norm" in str(node.target) for node in program.graph.nodes)
    layers = sum(isinstance(module, LambdaLayer) for module in network.model.modules())
    assert norms == 3 * layers  # of queries, of values, and after the layer; those after convolutions are folded
    monkeypatch.setattr(export_model, "export", lambda network: program)  # seconds, once
    pixels = torch.randint(0, 256, (5, 40, 40, 3), dtype=torch.uint8)  # another batch than was traced
    images = pixels.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = network.model(network.normalisation.apply(pixels))
    export_model.main(["--checkpoint", str(trained[1].folder), "--to", str(tmp_path / "model.pt2")])
    export_model.main(["--checkpoint", str(trained[1].folder), "--to", str(tmp_path / "model.onnx")])
    out = capsys.readouterr().out
    assert "exporting λ-ResNet-26, imagefolder, after epoch 3" in out
    about = {"about.json": ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=about)
    told = json.loads(about["about.json"])
    torch.testing.assert_close(loaded.module()(images), expected, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    described = dict(session.get_modelmeta().custom_metadata_map)
    assert told["classes"] == json.loads(described["classes"]) == ["nought", "one", "two"]
    assert told == described | {"classes": told["classes"]}
    assert told["inputs"].startswith("images (b, 3, 40, 40) float32: RGB in 0..1, not normalised; the shorter side")
    assert f"takes {told['inputs']}" in out
    assert f"gives {told['outputs']}" in out
    for name, says in {
        "model.pb": r"takes a file name that ends in .onnx or .pt2",
        "model.pth": r"to: model.pth is not allowed; weights alone .* take .onnx or .pt2",
    }.items():
        with pytest.raises(InputError, match=says):
            export_model.main(["--checkpoint", str(trained[1].folder), "--to", name])


def test_a_checkpoint_holds_the_weights_that_a_lambda_resnet_takes(trained: tuple[UserInput, RunResult]) -> None:
    network = load_network(trained[1].folder)
    weights = torch.load(network.file, weights_only=True)["training"]["model"]
    model = resnet26_lambda(stages="CCLL", image_size=40, width=16, num_classes=3, weights=weights).eval()
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.model(images), rtol=1e-4, atol=1e-4)


def test_a_run_ends_with_its_confusion_matrix(trained: tuple[UserInput, RunResult], photos: Path) -> None:
    _, result = trained
    network = load_network(result.folder)
    header, *rows = csv.reader((result.folder / "confusion.csv").open())
    assert header == ["true class", "nought", "one", "two"]
    for name, *counts in rows:
        found = [
            predict.predict(network, read_image(str(path)), 1)[0][0] for path in (photos / "test" / name).glob("*")
        ]
        assert [int(count) for count in counts] == [found.count(one) for one in header[1:]]
    assert Image.open(result.folder / "confusion.png").size > (300, 300)


def test_tensorboard_has_the_embeddings_of_each_checkpoint_and_the_confusion(
    trained: tuple[UserInput, RunResult],
) -> None:
    board = EventAccumulator(str(trained[1].folder))
    board.Reload()
    assert [image.step for image in board.Images("visuals/position embeddings c4")] == [2, 3]
    assert [image.step for image in board.Images("visuals/confusion matrix of the test")] == [3]


def test_embeddings_are_drawn(
    trained: tuple[UserInput, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    draw_embeddings.main(["--checkpoint", str(trained[1].folder), "--out", str(tmp_path / "new")])
    names = ["embeddings_c4.png", "embeddings_c5.png", "reach.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert "c4, c5: so little is learnt that E is still the noise" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out: .*file is a file; takes a folder's name"):
        draw_embeddings.main(["--checkpoint", str(trained[1].folder), "--out", str(tmp_path / "file")])


def test_the_picture_of_an_embedding_has_its_offsets_where_they_are() -> None:
    layer = LambdaLayer(4, input_size=(3, 2), key_depth=2)
    with torch.no_grad():
        layer.embedding.zero_()[1, 0, 4, 1] = 3.0  # key channel 1, two rows below, same column
    embedding = draw_embeddings.by_offset(layer)
    picture = draw_embeddings.panels(embedding)
    rows, columns = np.nonzero((picture[..., 0] < 150) | (picture[..., 2] < 150))
    side = draw_embeddings.PANEL // 5
    width = 3 * side + 2
    assert (rows.min(), rows.max()) == (4 * side, 5 * side - 1)
    assert (columns.min(), columns.max()) == (width + side, width + 2 * side - 1)
    assert draw_embeddings.reach(embedding) == 2.0


def test_what_was_learnt_is_the_embedding_less_what_the_run_began_with(trained: tuple[UserInput, RunResult]) -> None:
    args, result = trained
    network = load_network(result.folder)
    state = torch.get_rng_state()
    begun = draw_embeddings.stage_embeddings(network.as_drawn())
    assert torch.equal(torch.get_rng_state(), state)
    first = draw_embeddings.stage_embeddings(prepare_training(args, 3, torch.device("cpu")).model)
    stages = draw_embeddings.stage_embeddings(network.model)
    assert torch.equal(begun["c4"]["c4.1"], first["c4"]["c4.1"])
    figure = dict(draw_embeddings.figures(stages, begun, network.title))["embeddings_c4.png"]
    learnt = stages["c4"]["c4.1"] - first["c4"]["c4.1"]
    (image,) = figure.axes[2].images
    np.testing.assert_allclose(image.get_array(), learnt.square().mean((0, 1)).sqrt().numpy())
    assert "after epoch 3" in figure.get_suptitle()
    assert len(figure.axes) == 3 + 3  # and a colour bar for each

    other = {stage: {name: torch.randn_like(e) for name, e in layers.items()} for stage, layers in stages.items()}
    (note,) = draw_embeddings.notes(stages, other)
    assert note.startswith("E has nothing of E₀")


def test_layers_on_maps_of_one_position_are_left_out() -> None:
    stages = draw_embeddings.stage_embeddings(build_lambda_resnet(26, image_size=32, num_classes=2))
    assert list(stages) == ["c2", "c3", "c4", "c5"]
    assert list(stages["c5"]) == ["c5.1"]  # whose second layer sees the map that the first one has pooled


def test_an_absolute_embedding_is_averaged_over_pairs_with_the_same_offset() -> None:
    layer = LambdaLayer(4, input_size=(2, 3), key_depth=2, intra_depth=2, position="absolute")
    averaged = draw_embeddings.by_offset(layer)
    table = layer.embedding.detach().view(2, 3, 2, 3, 2, 2)
    for dy, dx in itertools.product((-1, 0, 1), (-2, -1, 0, 1, 2)):
        pairs = [
            table[y, x, y + dy, x + dx]
            for y, x in itertools.product(range(2), range(3))
            if 0 <= y + dy < 2 and 0 <= x + dx < 3
        ]
        torch.testing.assert_close(averaged[:, :, dy + 1, dx + 2], torch.stack(pairs).mean(0))


def test_a_network_without_embeddings_has_nothing_to_draw(
    trained: tuple[UserInput, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = dataclasses.replace(load_network(trained[1].folder), model=torch.nn.Identity())
    monkeypatch.setattr(draw_embeddings, "load_network", lambda path: network)
    with pytest.raises(InputError, match="has no position embeddings to draw"):
        draw_embeddings.main(["--checkpoint", "x", "--out", str(tmp_path / "pictures")])
    assert not (tmp_path / "pictures").exists()


def test_an_export_has_no_fft() -> None:
    wide, narrow = LambdaLayer(64, scope=23).eval(), LambdaLayer(64, scope=23).eval()
    assert choose_way((64, 64), (23, 23), 4, 16, 16, 1, backward=False).name == "fft"
    x = torch.randn(1, 64, 64, 64)
    with torch.no_grad():
        export_model.avoid_fft(wide, x)
        export_model.avoid_fft(narrow, x[..., :8, :8])
    assert (wide._way, narrow._way) == (Way("convolution"), None)


def test_a_classifier_sees_mirrors_where_the_runs_test_does(trained: tuple[UserInput, RunResult]) -> None:
    network = load_network(trained[1].folder)
    mirrored = dataclasses.replace(network, args=dataclasses.replace(network.args, test_flips=True))
    pixels = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        one, other = (Classifier(network).eval()(each) for each in (pixels, pixels.flip(3)))
        torch.testing.assert_close(Classifier(mirrored).eval()(pixels), (one + other) / 2)


def test_an_embedding_that_has_learnt_nothing_has_no_reach() -> None:
    begun, other = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    figure = draw_embeddings._stage_figure({"a": begun, "b": other}, {"a": begun, "b": begun}, "")
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert labels[0] == "nothing learnt, r 1.00"
    assert labels[1].startswith("reach ")
