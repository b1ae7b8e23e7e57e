"""Training, test and prediction see the same pixels of every kind of file, wherever the images lie."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from image_kinds import KINDS
from loader_tools import gathered
from PIL import Image
from run_tools import small_run

import predict
from command_line.errors import InputError
from data_preprocessing import CroppedStream, load_data
from data_sources.images import read_image
from data_sources.in_memory import PlainLoader
from main_general import RunResult, main
from run_state.trained_network import load_network
from user_input import UserInput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, to which all kinds of files are dealt out, in training, validation and test."""
    folder = tmp_path_factory.mktemp("everything")
    for part in ("train", "val", "test"):
        for number, kind in enumerate(KINDS):
            place = folder / part / ("even", "odd")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            kind.write(place / kind.name)
    return folder


@pytest.fixture(scope="module")
def args(shallow: None, everything: Path, tmp_path_factory: pytest.TempPathFactory) -> UserInput:
    settings = {"stages": "CCCL", "batch_size": 16, "workers": 0, "epochs": 2, "bn_momentum": 0.5}
    return small_run(everything, tmp_path_factory.mktemp("runs"), **settings)


@pytest.fixture(scope="module")
def run(args: UserInput) -> RunResult:
    """Cropped, from memory."""
    return main(args)


@pytest.fixture(scope="module")
def resized(args: UserInput) -> RunResult:
    """As on ImageNet, from the disk, and tested with mirrored images."""
    return main(dataclasses.replace(args, augmentation="resized_crop", test_flips=True, epochs=1))


@pytest.mark.parametrize("which", ["run", "resized"])
def test_predictions_are_the_runs_own_confusion_matrix_for_every_kind_of_image(
    which: str, everything: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result = request.getfixturevalue(which)
    seen_in = tmp_path / "seen.csv"
    predict.main(f"{everything / 'test'} --checkpoint {result.folder} --top 1 --out {seen_in}".split())
    _, *rows = csv.reader(seen_in.open())
    header, *counts = csv.reader((result.folder / "confusion.csv").open())
    assert header == ["true class", "even", "odd"]
    pairs = [(Path(path).parent.name, label) for path, label, _ in rows]
    assert len(pairs) == len(KINDS)
    for true, *found in counts:
        assert [int(count) for count in found] == [pairs.count((true, label)) for label in ("even", "odd")]
    # two classes are soon alike by chance: so the pixels, too, one by one
    network = load_network(result.folder)
    data = load_data(network.args, CPU)
    assert network.whites == data.whites != {}
    tested, _ = gathered(data.test)
    own = [network.view(read_image(path, network.whites)) for path, *_ in rows]
    seen = network.normalisation.apply(torch.from_numpy(np.stack([np.array(image) for image in own])))
    assert sorted(image.numpy().tobytes() for image in tested) == sorted(image.numpy().tobytes() for image in seen)
    assert "turned as EXIF says" in (result.folder / "log.txt").read_text()


@pytest.mark.parametrize("normalisation", ["auto", "study", "measured"])
def test_where_images_lie_changes_no_figure(args: UserInput, normalisation: str) -> None:
    args = dataclasses.replace(args, normalisation=normalisation)
    memory, stream = load_data(args, CPU), load_data(dataclasses.replace(args, memory_gib=0.0), CPU)
    assert isinstance(memory.test, PlainLoader)
    assert isinstance(stream.train, CroppedStream)
    assert memory.normalisation == stream.normalisation
    assert (len(memory.train), memory.train.images) == (len(stream.train), stream.train.images)
    for epoch, first in ((1, 0), (2, 3)):
        torch.testing.assert_close(
            gathered(stream.train, epoch, first), gathered(memory.train, epoch, first), rtol=0, atol=0
        )
    for part in ("test", "validation"):
        torch.testing.assert_close(gathered(getattr(stream, part)), gathered(getattr(memory, part)), rtol=0, atol=0)


def test_a_run_comes_to_the_same_weights_from_memory_and_from_the_disk(args: UserInput, run: RunResult) -> None:
    memory, stream = run, main(dataclasses.replace(args, memory_gib=0.0))
    ours, theirs = (load_network(result.folder).model.state_dict() for result in (memory, stream))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (memory.train_loss, memory.test_loss) == (stream.train_loss, stream.test_loss)


def test_small_digits_are_cropped_from_the_disk_as_from_memory() -> None:
    args = UserInput(dataset="digits", image_size=8, training_images=100, workers=0)
    memory, stream = load_data(args, CPU), load_data(dataclasses.replace(args, memory_gib=0.0), CPU)
    torch.testing.assert_close(gathered(stream.train, 1), gathered(memory.train, 1), rtol=0, atol=0)


def test_large_images_may_be_cropped_and_lie_in_memory(args: UserInput) -> None:
    large = dataclasses.replace(args, image_size=70, augmentation="crop", normalisation="measured")
    memory, stream = load_data(large, CPU), load_data(dataclasses.replace(large, memory_gib=0.0), CPU)
    assert isinstance(memory.test, PlainLoader)
    assert memory.normalisation == stream.normalisation
    assert not isinstance(load_data(dataclasses.replace(large, augmentation="auto"), CPU).test, PlainLoader)


def test_prediction_goes_past_bad_images_and_says_so_at_the_end(
    run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = write_images(tmp_path / "photos") / "test" / "one"
    (folder / "bad.png").write_text("no image")
    (folder / "notes.txt").write_text("")
    words = [str(folder), "--checkpoint", str(run.folder), "--batch_size", "2", "--top", "1"]
    capsys.readouterr()
    assert predict.main(words) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 5 + 1
    assert out.endswith("1 of 6 images could not be read\n")
    assert "left out: 1 .txt files" in err
    assert re.search(r"left out: \S*bad.png is no readable image", err)
    assert predict.main([str(folder / "bad.png"), *words[1:]]) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    long = tmp_path / ("a" * 300)  # which no system has, and of which `Path.is_file` raises
    for given, says in {empty: "holds no image", tmp_path / "absent": "no file", long: "no file"}.items():
        with pytest.raises(InputError, match=says):
            predict.main([str(given), *words[1:]])


def test_pictures_of_any_size_are_seen_in_one_batch(run: RunResult, tmp_path: Path) -> None:
    network = load_network(run.folder)
    paths = []
    for size in ((12, 12), (40, 30), (5, 70)):
        Image.new("RGB", size, "red").save(tmp_path / f"{size}.png")
        paths.append(str(tmp_path / f"{size}.png"))
    together = [seen.predictions for seen in predict.predict_files(network, paths)]
    alone = [predict.predict(network, read_image(path)) for path in paths]
    for one, other in zip(together, alone, strict=True):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)
