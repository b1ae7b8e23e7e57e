"""The lines of a run's log."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch

import log_data
from command_line.paths import PROJECT
from main_general import main
from resnet import DEPTHS
from run_state.ending import network_name, what_next
from user_input import UserInput, load_user_input

ROW = {
    "epoch": 12,
    "learning_rate": 0.0025,
    "train_loss": 1.5,
    "train_top1": 60.0,
    "validation_loss": 1.25,
    "validation_top1": 61.5,
    "test_loss": 1.125,
    "test_top1": 62.25,
    "train_seconds": 30.0,
    "test_seconds": 2.0,
    "images_per_second": 1664.0,
}


@pytest.mark.parametrize("validation", [False, True])
def test_figures_stand_under_their_headings(validation: bool) -> None:
    row = {key: value for key, value in ROW.items() if validation or not key.startswith("validation")}
    heading, line = log_data._heading(validation), log_data._line(row, 384.0)
    words = ["epoch", "learning rate", "train: loss", "top-1 %"]
    words += ["validation: loss", "top-1 %"] * validation
    words += ["test: loss", "top-1 %", "train s", "test s", "images/s", "total s"]
    assert re.split(r"  +", heading) == words
    ends = [match.end() for match in re.finditer(r"\S+(?: \S+)*", heading)]
    assert [match.end() for match in re.finditer(r"\S+", line)] == ends
    figures = [12, 0.0025, 1.5, 60.0, *[1.25, 61.5] * validation, 1.125, 62.25, 30.0, 2.0, 1664, 384.0]
    assert [float(word) for word in line.split()] == figures


def test_further_tests_stand_behind() -> None:
    line = log_data._line(ROW | {"test_top1_average": 63.0, "test_top1_training_mode": 59.5}, 1.0)
    assert line.endswith("1.0  in training mode 59.50 %  averaged 63.00 %")


def test_a_log_says_why_losses_differ_and_what_to_type_next(
    small: UserInput, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(DEPTHS, 26, (1, 1, 1, 1))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.chdir(tmp_path)
    args = dataclasses.replace(small, epochs=1, validation_fraction=0.3)
    result = main(args)
    log = (result.folder / "log.txt").read_text().splitlines()
    assert sum(line.startswith("label smoothing (0.1) is in the training loss alone") for line in log) == 1
    assert re.search(r" threads?, AVX2, fp32, 20\d\d-", log[1])
    run = result.folder.relative_to(tmp_path)
    name = "λ-ResNet-26 (CLLL, imagenet stem) on imagefolder"
    assert log[-8].startswith(f"{name}: top-1 {result.test_top1:.2f} % (test), {result.parameters:,} parameters, 1 ep")
    assert log[-7:-2] == [
        f"best by the validation images: epoch 1, top-1 {result.best_top1:.2f} %, {run}/checkpoints/best.pt",
        str(run),
        f"python {PROJECT / 'predict.py'} IMAGE --checkpoint {run}",
        f"python {PROJECT / 'draw_embeddings.py'} --checkpoint {run} --out pictures",
        "as many epochs more, in a new folder:",
    ]
    further = load_user_input(shlex.split(log[-2])[2:])
    assert further == dataclasses.replace(args, init_from=str(result.folder))
    assert log[-1] == "tensorboard --logdir runs"
    plain = dataclasses.replace(args, label_smoothing=0.0, model="baseline", stages="auto", validation_fraction=0.0)
    assert "label smoothing" not in (main(plain).folder / "log.txt").read_text()


def test_networks_are_called_by_what_they_are(tmp_path: Path) -> None:
    assert network_name(UserInput()) == "λ-ResNet-50 (LLLL, imagenet stem)"
    assert network_name(UserInput(model="baseline", depth=101, stem="cifar")) == "ResNet-101 (cifar stem)"
    lines = what_next(UserInput(), tmp_path, whole=True)
    assert not [line for line in lines if line.startswith("python")]  # there is no checkpoint
