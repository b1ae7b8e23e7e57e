"""A run goes on with its own data alone, with its own settings, and its end loses nothing."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import write_images
from PIL import Image
from run_tools import read_metrics, small_run

import log_data
import user_input
from command_line.errors import InputError
from command_line.settings import setting
from main_general import RunResult, main
from run_state.resumption import load_settings
from run_state.run_folder import checkpoint_files
from run_state.saved_settings import saved_settings
from run_state.trained_network import load_network
from scoring import confusion, mistakes
from user_input import UserInput

pytestmark = pytest.mark.usefixtures("shallow")


def settings(data: Path, runs: Path, **changes) -> UserInput:
    return small_run(data, runs, **{"stages": "CCCL", "epochs": 2, **changes})


@pytest.fixture(scope="module")
def begun(shallow: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run that has done one of its two epochs."""
    return main(settings(photos, tmp_path_factory.mktemp("begun"), stop_after=1))


@pytest.fixture
def copied(begun: RunResult, photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The run's folder, and its data, to be changed."""
    return (
        Path(shutil.copytree(begun.folder, tmp_path / "run")),
        Path(shutil.copytree(photos, tmp_path / "photos")),
    )


def renamed(data: Path) -> None:
    for part in ("train", "test"):
        (data / part / "one").rename(data / part / "won")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "class": (renamed, "class two is no more|class 1 is two, there one|class 2 is won, there two"),
    "image": (
        lambda data: shutil.copy(data / "train/one/00.png", data / "train/one/new.png"),
        "train has 12 images of one, there 11",
    ),
    "content": (
        lambda data: Image.new("RGB", (12, 12)).save(data / "test/two/11.png"),
        "the files of test have other names or sizes",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_with_other_data(change: str, copied: tuple[Path, Path]) -> None:
    run, data = copied
    change_data, says = CHANGES[change]
    change_data(data)
    args = load_settings(["--resume", str(run), "--data_dir", str(data), "--stop_after", "none"])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"^data_dir: the data are not those that .*begun with: .*({says})"):
        main(args)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_is_resumed_with_its_data_elsewhere(copied: tuple[Path, Path]) -> None:
    run, data = copied
    args = load_settings(["--resume", str(run), "--data_dir", str(data), "--stop_after", "none"])
    assert main(args).epochs == 2


def test_a_run_without_a_fingerprint_goes_on(copied: tuple[Path, Path]) -> None:
    run, data = copied
    config = json.loads((run / "config.json").read_text())
    del config["data"]["fingerprint"], config["defaults"]
    (run / "config.json").write_text(json.dumps(config))
    checkpoint = torch.load(checkpoint_files(run)[-1], weights_only=True)
    torch.save(checkpoint | {"config": config}, checkpoint_files(run)[-1])
    shutil.copy(data / "test/one/11.png", data / "test/one/new.png")
    args = load_settings(["--resume", str(run), "--data_dir", str(data), "--stop_after", "none"])
    assert main(args).epochs == 2
    says = "begun with 32 training and 15 test images; there are 32 and 16 now"
    assert says in (run / "log.txt").read_text()


def test_an_edit_of_user_input_counts_as_a_flag(begun: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Edited(UserInput):
        heads: int = setting(8, "edited")
        checkpoint_every: int = setting(7, "edited", free=True)

    monkeypatch.setattr(user_input, "UserInput", Edited)
    with pytest.raises(SystemExit) as refused:
        load_settings(["--resume", str(begun.folder)])
    assert refused.value.code == 2
    args = load_settings(["--resume", str(begun.folder), "--heads", "4"])
    assert (args.heads, args.checkpoint_every, args.batch_size) == (4, 7, 8)  # given; edited, and free; the run's


def config_of(**data) -> dict:
    known = dataclasses.asdict(UserInput(image_size=32))
    del known["augmentation"]
    return {"settings": known | data.pop("settings", {}), "data": {"train_images": 100, "test_images": 9} | data}


def test_small_images_that_streamed_in_an_earlier_version_are_seen_as_they_were() -> None:
    imagenet, other = [0.485, 0.456, 0.406], [0.5, 0.5, 0.5]

    def crops(config: dict) -> str:
        return saved_settings(config, Path("config.json")).crops

    assert crops(config_of(mean=imagenet)) == "resized_crop"
    assert crops(config_of(mean=other)) == "crop"
    assert crops(config_of(mean=other, settings={"normalisation": "study", "memory_gib": 0.0})) == "resized_crop"
    assert crops(config_of(mean=other, settings={"normalisation": "study"})) == "crop"
    assert crops(config_of(mean=other, settings={"image_size": 96})) == "resized_crop"
    with pytest.raises(InputError, match="config.json cannot be read"):
        crops(config_of(mean=3))


def test_the_newest_sound_checkpoint_is_taken_and_said(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    run, _ = copied
    (newest,) = checkpoint_files(run)
    assert load_network(newest.parent).epochs_done == 1
    assert capsys.readouterr().err == ""
    shutil.copy(newest, newest.with_name("best.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert load_network(run).epochs_done == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("epoch0001.pt was passed over: ")
    newest.unlink()
    assert load_network(run).epochs_done == load_network(newest.parent).epochs_done == 1
    newest.with_name("best.pt").unlink()
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_network(run)


def test_class_names_of_any_kind_come_to_a_confusion_matrix_and_go_on(
    photos: Path, tmp_path: Path, rendered: None
) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "photos"))
    for part in ("train", "test"):
        for name, new in (("nought", b"$x$"), ("one", b"caf\xe9\n"), ("two", "猫".encode())):
            os.rename(data / part / name, os.path.join(os.fsencode(data / part), new))
    early = main(settings(data, tmp_path / "runs", stop_after=1))
    result = main(load_settings(["--resume", str(early.folder), "--stop_after", "none"]))
    assert result.epochs == 2
    header = (result.folder / "confusion.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == r"true class,$x$,café\n,猫"
    assert (result.folder / "confusion.png").exists()
    assert "could not be made" not in (result.folder / "log.txt").read_text()


def test_pictures_that_fail_end_no_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise ValueError("no picture today")

    monkeypatch.setattr(confusion, "as_figure", broken)
    monkeypatch.setattr(mistakes, "as_figure", broken)
    monkeypatch.setattr(log_data, "stage_pictures", broken)
    result = main(settings(photos, tmp_path / "runs", stop_after=1))
    log = (result.folder / "log.txt").read_text()
    for name in ("confusion.png", "mistakes.png"):
        assert f"{name} could not be made (ValueError: no picture today); the run itself is whole" in log
    assert "pictures of the position embeddings could not be made" in log
    assert (result.folder / "confusion.csv").read_text().startswith("true class,nought,one,two\n")


def test_validation_images_of_ones_own_choose_the_best(photos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "photos"))
    shutil.copytree(data / "test", data / "val")
    result = main(settings(data, tmp_path / "runs"))
    config = json.loads((result.folder / "config.json").read_text())
    assert config["data"]["validation_images"] == 15
    assert (result.folder / "checkpoints" / "best.pt").exists()
    assert all(row["validation_top1"] == row["test_top1"] for row in read_metrics(result.folder))
    with pytest.raises(InputError, match="validation_fraction: data_dir has a folder of validation images"):
        main(settings(data, tmp_path / "runs", validation_fraction=0.2))


def test_folder_settings_are_for_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="test_fraction and skip_bad_images are for imagefolder, and not for digits"):
        main(UserInput(dataset="digits", test_fraction=0.5, runs_dir=str(tmp_path)))


def test_a_photo_that_has_become_unreadable_at_the_end_loses_nothing(tmp_path: Path) -> None:
    data = write_images(tmp_path / "photos")
    args = settings(data, tmp_path / "runs", augmentation="resized_crop", workers=0)
    real = log_data.RunLog.epoch

    def damage(log, row, seconds) -> None:
        real(log, row, seconds)
        if row["epoch"] == 2:
            (data / "test/one/11.png").write_text("no image")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_data.RunLog, "epoch", damage)
        result = main(args)
    assert result.epochs == 2
    assert "the last test could not be made (data_dir: " in (result.folder / "log.txt").read_text()
