"""`python nntest.py`: a trained network by itself, on its own test images and on others."""

import argparse
import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from run_tools import read_metrics, small_run

import nntest
import predict
from command_line.errors import InputError
from main_general import RunResult, main
from run_state.run_folder import checkpoint_files
from user_input import UserInput


@pytest.fixture(scope="module")
def photos_flat(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes alone, of which the run splits its test off."""
    return Path(shutil.copytree(photos / "train", tmp_path_factory.mktemp("flat") / "photos"))


@pytest.fixture(scope="module")
def run(shallow: None, photos_flat: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    settings = {"stages": "CCCL", "epochs": 2, "test_fraction": 0.3, "bn_momentum": 0.5}
    return main(small_run(photos_flat, tmp_path_factory.mktemp("runs"), **settings))


def of_other(run: RunResult, folder: Path) -> Path:
    """Where the test of the run's last checkpoint on the images of that folder lies."""
    (found,) = (run.folder / "tests").glob(f"epoch0002_{folder.name}-*")
    return found


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_the_runs_own_test_comes_out_as_in_the_run(
    run: RunResult, photos_flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    again = nntest.main(["--checkpoint", str(run.folder), "--device", "cpu"])
    assert (again.loss, again.top1, again.top5) == (run.test_loss, run.test_top1, None)
    said = capsys.readouterr().out
    assert f"loss {run.test_loss:.4f}, top-1 {run.test_top1:.2f} %, calibration error " in said
    folder = run.folder / "tests" / "epoch0002"
    names = ["classes.csv", "confusion.csv", "confusion.png", "mistakes.png", "predictions.csv", "test.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        if name.endswith(".csv"):
            assert (folder / name).read_bytes() == (run.folder / name).read_bytes(), name
    figures, own = (json.loads((place / "test.json").read_text()) for place in (folder, run.folder))
    assert figures.keys() - own.keys() == {"checkpoint", "dataset", "data_dir", "device"}
    assert {key: figures[key] for key in own} == own
    assert (figures["images"], figures["calibration_bins"], figures["precision"]) == (10, 15, own["precision"])

    rows = table(folder / "predictions.csv")
    paths = [str(photos_flat.parent / row["file"]) for row in rows]
    assert all(Path(path).parent.name == row["class"] for path, row in zip(paths, rows, strict=True))
    predict.main([*paths, "--checkpoint", str(run.folder), "--top", "1", "--out", str(tmp_path / "seen.csv")])
    for row, seen in zip(rows, table(tmp_path / "seen.csv"), strict=True):
        assert row["prediction"] == seen["class"]
        assert float(row["confidence"]) == pytest.approx(float(seen["confidence"]), abs=1e-5)


def test_a_file_its_folder_and_an_older_one(run: RunResult, tmp_path: Path) -> None:
    older, newest = checkpoint_files(run.folder)
    first, last = read_metrics(run.folder)
    for given, row in ((older, first), (newest, last), (newest.parent, last)):
        found = nntest.main(["--checkpoint", str(given), "--out", str(tmp_path), "--device", "cpu"])
        assert (found.loss, found.top1) == (row["test_loss"], row["test_top1"])
    alone = Path(shutil.copy(older, tmp_path / "sent.pt"))
    nntest.main(["--checkpoint", str(alone)])
    assert (tmp_path / "tests" / "sent" / "test.json").exists()


def test_the_runs_own_images_are_known_where_they_were_moved(run: RunResult, photos_flat: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(photos_flat, tmp_path / "moved")
    found = nntest.main(["--checkpoint", str(run.folder), "--data_dir", str(moved), "--out", str(tmp_path / "out")])
    assert (found.images, found.loss) == (10, run.test_loss)  # and not all 33, of which most were trained on


def test_all_of_other_images_are_tested_by_the_names_of_their_classes(
    run: RunResult, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--checkpoint", str(run.folder), "--data_dir"]
    whole = nntest.main([*words, str(photos)])  # photos/test
    assert whole.images == 15
    rows = table(of_other(run, photos) / "predictions.csv")
    assert [row["file"] for row in rows[:2]] == ["test/nought/11.png", "test/nought/12.png"]

    two = tmp_path / "two"  # class folders alone, the first of the network's classes is not among them
    for name in ("one", "two"):
        shutil.copytree(photos / "test" / name, two / name)
    part = nntest.main([*words, str(two), "--workers", "0", "--batch_size", "4"])
    assert part.labels.tolist() == [1] * 5 + [2] * 5
    seen = {row["file"]: row["prediction"] for row in rows}
    assert "trained on: class nought is no more; all 10 images are tested on, be" in capsys.readouterr().err
    found = table(of_other(run, two) / "predictions.csv")
    assert [row["prediction"] for row in found] == [seen[row["file"].replace("two/", "test/", 1)] for row in found]

    os.rename(two / "one", two / "sloth")
    with pytest.raises(InputError, match="^data_dir: class sloth is none that the network knows; .* nought, one, two"):
        nntest.main([*words, str(two)])
    os.rename(two / "two", two / "snail")
    with pytest.raises(InputError, match="^data_dir: class sloth is none that the network knows, and 1 more; it"):
        nntest.main([*words, str(two)])


def test_a_folder_that_is_nearly_the_runs_own_is_told_to_hold_images_of_the_training(
    run: RunResult, photos_flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    moved = Path(shutil.copytree(photos_flat, tmp_path / "moved"))
    shutil.copy(moved / "one" / "00.png", moved / "one" / "extra.png")
    words = ["--checkpoint", str(run.folder), "--data_dir", str(moved), "--out", str(tmp_path / "out")]
    assert nntest.main(words).images == 34
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("data_dir: "))
    assert line.endswith("there 11; all 34 images are tested on, be they trained on or not")


def test_one_class_is_enough_to_be_tested_on(run: RunResult, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "test" / "two", tmp_path / "one class" / "two")
    words = ["--checkpoint", str(run.folder), "--data_dir", str(tmp_path / "one class"), "--out", str(tmp_path / "out")]
    assert nntest.main(words).labels.tolist() == [2] * 5


def test_each_test_of_other_data_or_precision_has_a_folder_of_its_own() -> None:
    given = [
        argparse.Namespace(dataset=dataset, data_dir=folder, precision=precision)
        for dataset in (None, "imagefolder")
        for folder in (None, "/a/photos", "/b/photos")
        for precision in (None, "fp32")
    ]
    folders = [nntest.default_folder(Path("/run/checkpoints/epoch0002.pt"), each) for each in given]
    assert len(set(folders)) == len(given)
    assert {folder.parent for folder in folders} == {Path("/run/tests")}
    assert folders[0].name == "epoch0002"
    ended = argparse.Namespace(dataset=None, data_dir="/a/b/../photos/", precision=None)
    assert nntest.default_folder(Path("/run/checkpoints/epoch0002.pt"), ended) == folders[2]


def test_a_folder_for_data_that_lie_in_none_is_refused() -> None:
    args = UserInput(dataset="digits")
    arguments = argparse.Namespace(
        dataset=None, data_dir="photos", device=None, precision=None, batch_size=None, workers=None
    )
    with pytest.raises(InputError, match="data_dir: digits are in no folder; .* add --dataset imagefolder"):
        nntest.settings_of_test(args, arguments)


def test_what_cannot_be_tested_is_one_line(run: RunResult, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "train").mkdir()
    (tmp_path / "empty" / "one").mkdir(parents=True)
    (tmp_path / "empty" / "two").mkdir(parents=True)
    for words, says in {
        "--data_dir none": "there is no folder",
        f"--data_dir {tmp_path}": "there is no folder .*test beside train",
        f"--data_dir {tmp_path / 'empty'}": "holds no image",
        "--dataset cats": "dataset: cats is not allowed; takes one of",
        "--dataset digits": "class 0 is none that the network knows",
        "--device cuda:99": "device: cuda:99 is not there",
        "--device cpu --precision fp16": "precision: fp16 needs a CUDA GPU",
        "--batch_size 0": "batch_size: 0 is not allowed",
        f"--out {tmp_path / 'file'}": "out: .*file is a file; takes a folder's name",
    }.items():
        with pytest.raises(InputError, match=says):
            nntest.main(["--checkpoint", str(run.folder), *words.split()])


def test_a_picture_that_fails_leaves_the_figures(
    run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*given: object) -> None:
        raise ValueError("no picture today")

    monkeypatch.setattr(nntest.writing.confusion, "as_figure", broken)
    nntest.main(["--checkpoint", str(run.folder), "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert "confusion.png could not be made (ValueError: no picture today)" in err
    assert f"predictions.csv, mistakes.png, confusion.csv in {tmp_path}" in out


def test_data_that_are_no_longer_the_runs_are_told(
    run: RunResult, photos_flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    extra = photos_flat / "one" / "extra.png"
    shutil.copy(photos_flat / "one" / "00.png", extra)
    try:
        nntest.main(["--checkpoint", str(run.folder), "--out", str(tmp_path)])
    finally:
        extra.unlink()
    assert "the data are not those that the run was trained on: train has 12 images of one, there 11" in (
        capsys.readouterr().err
    )


def test_ten_classes_have_top_5_in_the_metrics_the_table_and_the_test(shallow: None, tmp_path: Path) -> None:
    settings = {"model": "baseline", "dataset": "digits", "image_size": 8, "training_images": 200}
    args = small_run(tmp_path, tmp_path, **settings, validation_fraction=0.1, batch_size=128, epochs=2, stop_after=1)
    folder = main(args).folder
    main(dataclasses.replace(args, stop_after=None, resume=str(folder)))  # the rows count as the run's own
    found = nntest.main(["--checkpoint", str(folder), "--device", "cpu"])
    rows = read_metrics(folder)
    assert len(rows) == 2
    assert all(row["test_top1"] < row["test_top5"] and "validation_top5" in row for row in rows)
    assert found.top5 == rows[-1]["test_top5"]
    log = (folder / "log.txt").read_text()
    assert f"top-5 {rows[0]['test_top5']:.2f} %\n" in log
    assert f"top-5 {found.top5:.2f} %, calibration error {found.calibration_error:.2f} points (15 bins)" in log
    files = [row["file"] for row in table(folder / "predictions.csv")]
    assert files == sorted(files, key=int)
    assert len(set(files)) == 360


def test_a_runs_pieces_do_not_hinder_smaller_batches() -> None:
    words = argparse.Namespace(dataset=None, device=None, precision=None, batch_size=2, workers=None, data_dir=None)
    args = nntest.settings_of_test(UserInput(batch_size=8, accumulate=4), words)
    assert (args.batch_size, args.accumulate) == (2, 1)
