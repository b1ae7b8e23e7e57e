"""Other epochs than a run was begun with, batches in pieces, and an end where validation gets no better."""

import dataclasses
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from run_tools import assert_same_run, small_run
from torch import Tensor, nn
from training_tools import Batches, batch

import main_general
from command_line.errors import InputError
from command_line.paths import PROJECT
from main_general import RunResult, main
from model_preparation import prepare_training
from nntrain import EpochProgress, TrainingStep, compute_gradients, train_epoch
from resnet_lambda import build_lambda_resnet
from run_state.resumption import load_settings, to_go_further
from run_state.run_folder import checkpoint_files, read_config
from user_input import UserInput, load_user_input

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(shallow: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    args = small_run(photos, tmp_path_factory.mktemp("runs"), stages="CCCL")
    return args, main(args)


# ------------------------------------------------------------------------------------------------- other epochs


def refusal(words: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as end:
        load_settings(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_finished_run_is_extended_by_a_new_one_that_names_it(
    finished: tuple[UserInput, RunResult], capsys: pytest.CaptureFixture
) -> None:
    args, result = finished
    error = refusal(["--resume", str(result.folder), "--epochs", "5"], capsys)
    assert "has done its 3 epochs, with which the learning rate of its schedule has come to its end. To train" in error
    assert "from its last weights, with a new schedule and in a new folder, which names this run: python mai" in error
    command = error[error.index("python main_general.py") :]
    given = load_settings(shlex.split(command)[2:])
    assert given == dataclasses.replace(args, init_from=str(result.folder), epochs=2)
    extended = main(given)
    assert (extended.folder != result.folder, extended.epochs) == (True, 2)
    began = read_config(extended.folder)["init"]
    assert (began["from"], began["run"]) == (str(result.folder), read_config(result.folder)["id"])
    assert (began["epochs"], began["left_out"], began["made_anew"]) == (3, [], [])
    assert load_settings(["--resume", str(result.folder), "--epochs", "3"]).epochs == 3


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_to_be_typed_holds_in_the_current_folder(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT if inside else tmp_path)
    runs = "kept" if inside else str(tmp_path / "runs")  # `runs` there is not the default
    args = UserInput(data_dir="my photos", runs_dir=runs, stop_after=4)
    program, script, *words = shlex.split(to_go_further(args, PROJECT / "kept" / "Lambda" / "a run"))
    assert (program, script) == ("python", "main_general.py" if inside else str(PROJECT / "main_general.py"))
    assert load_user_input(words) == dataclasses.replace(args, init_from="kept/Lambda/a run", stop_after=None)


def test_an_unfinished_run_is_not_bent(
    finished: tuple[UserInput, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args, result = finished
    early = main(dataclasses.replace(args, runs_dir=str(tmp_path), stop_after=2))
    error = refusal(["--resume", str(early.folder), "--epochs", "6"], capsys)
    assert "has done 2 of 3 epochs, on a schedule of so many, which is not bent to 6" in error
    own = f"To the end of its own schedule: python main_general.py --resume {early.folder}. "
    assert f"{own}To train for 4 more in its place" in error
    given = load_settings(shlex.split(error[error.rindex("python main_general.py") :])[2:])
    assert given == dataclasses.replace(args, runs_dir=str(tmp_path), init_from=str(early.folder), epochs=4)
    assert "has done 2 of 3 epochs already; --stop_after ends a run early" in refusal(
        ["--resume", str(early.folder), "--epochs", "1"], capsys
    )
    gone_on = main(load_settings(["--resume", str(early.folder), "--stop_after", "none"]))
    assert_same_run(gone_on.folder, result.folder)


# ------------------------------------------------------------------------------------------------- batches in pieces


class NormFree(nn.Module):
    """A network in which no image knows of another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv1(x).relu().mean((2, 3)))


def norm_free(args: UserInput, classes: int) -> nn.Module:
    return NormFree()


def norms_of_each_image(args: UserInput, classes: int) -> nn.Module:
    norms = {"norm_layer": lambda channels: nn.GroupNorm(1, channels), "zero_init_residual": False}
    return build_lambda_resnet(26, stages="CCLL", image_size=16, num_classes=classes, width=16, **norms)


@pytest.mark.parametrize("pieces", [2, 3, 8])
@pytest.mark.parametrize("make_model", [norm_free, norms_of_each_image])
def test_gradients_of_pieces_are_those_of_the_whole_batch(make_model, pieces: int) -> None:
    images, labels = batch(16)
    found = []
    for number in (1, pieces):
        args = UserInput(dataset="digits", image_size=16, device="cpu", accumulate=number, batch_size=16)
        training = prepare_training(args, 10, CPU, make_model)
        training.model.double().train()
        loss, logits = compute_gradients(training, images.double(), labels)
        found.append([loss, logits, *(parameter.grad for parameter in training.model.parameters())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_a_piece_is_what_batch_norm_and_memory_see() -> None:
    seen: list[int] = []
    training = prepare_training(
        UserInput(depth=26, dataset="digits", image_size=16, device="cpu", accumulate=3, batch_size=8), 10, CPU
    )
    training.model.bn1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    progress = train_epoch(TrainingStep(training), Batches(batch(8), batch(8, 1)), 1, EpochProgress())
    assert seen == [3, 3, 2, 3, 3, 2]
    assert (progress.steps, progress.images) == (2, 16)
    with pytest.raises(InputError, match="^accumulate: 5 pieces of a batch of 8 are too small.* takes at most 4"):
        UserInput(accumulate=5, batch_size=8)


# --------------------------------------------------------------------------------------- where it gets no better


def losses(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, validation has these losses, epoch by epoch."""
    whole = main_general.run_tests

    def run_tests(args, data, training, epoch, stop):
        tests = whole(args, data, training, epoch, stop)
        return tests and tests | {"validation": dataclasses.replace(tests["validation"], loss=values[epoch - 1])}

    monkeypatch.setattr(main_general, "run_tests", run_tests)


def test_a_run_ends_where_validation_gets_no_better_and_goes_on_at_ones_wish(
    finished: tuple[UserInput, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    args = dataclasses.replace(finished[0], validation_fraction=0.2, epochs=7, checkpoint_every=5)
    args = dataclasses.replace(args, keep_predictions=2, average="last_epochs", average_epochs=3)
    losses([math.nan, 0.5, 0.7, 0.5, 0.4, 0.6, 0.6], monkeypatch)
    whole = main(dataclasses.replace(args, runs_dir=str(tmp_path / "whole")))
    assert whole.epochs == 7  # patience is off by default
    result = main(dataclasses.replace(args, runs_dir=str(tmp_path / "runs"), patience=2))
    assert (result.epochs, result.stopped_by) == (4, None)
    assert checkpoint_files(result.folder)[-1].name == "epoch0004.pt"
    assert (result.folder / "confusion.csv").exists()
    log = (result.folder / "log.txt").read_text()
    assert "ended after 4 of 7 epochs, since the validation loss has not fallen for 2 (lowest: 0.5000, epoch 2)" in log
    assert "there is no average: last_epochs takes in epochs 5 to 7\n" in log
    assert predictions(result.folder) == ["epoch0003.npz", "epoch0004.npz"]
    assert re.search(r"go on all the same with: python main_general.py --resume \S+ --patience none\n", log)
    again = main(load_settings(["--resume", str(result.folder), "--patience", "2"]))
    assert again.epochs == 4
    gone_on = main(load_settings(["--resume", str(result.folder), "--patience", "none"]))
    assert_same_run(gone_on.folder, whole.folder)
    assert predictions(whole.folder) == ["epoch0006.npz", "epoch0007.npz"]
    assert main(load_settings(["--resume", str(whole.folder)])) == whole  # which knows its NaN again
    assert "nothing was done" in capsys.readouterr().out


def predictions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "predictions").iterdir())


def test_patience_takes_validation_images(finished: tuple[UserInput, RunResult]) -> None:
    with pytest.raises(InputError, match="^patience: takes validation images"):
        main(dataclasses.replace(finished[0], patience=3))
