"""Small real data for the tests: digits that scikit-learn carries, written as tinted PNG files of three classes."""

import dataclasses
import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once; before PyTorch is imported

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from run_tools import small_run
from sklearn.datasets import load_digits

from acceleration import devices
from evidence import figures
from evidence.pinned import pinned
from main_general import RunResult, main
from resnet import DEPTHS
from scoring import writing
from user_input import UserInput

SIDE = 12
RENDER = writing._png
TRAIN, TEST = 11, 5  # images of each class


def set_defaults(values: dict[str, Any]) -> None:
    """Do what an edit of user_input.py does."""
    for field in dataclasses.fields(UserInput):
        field.default = values[field.name]
        setattr(UserInput, field.name, field.default)
    UserInput.__init__.__defaults__ = tuple(values[field.name] for field in dataclasses.fields(UserInput))


if threading.current_thread() is threading.main_thread():
    # Behind a shell's `&` the one is ignored, under nohup the other, and then by the tests' own processes too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

set_defaults(pinned())  # what is tested holds whatever user_input.py has been edited to


def write_images(folder: Path, side: int = SIDE) -> Path:
    digits = load_digits()
    for label, name in enumerate(("nought", "one", "two")):
        images = digits.images[digits.target == label][: TRAIN + TEST]
        for i, image in enumerate(images):
            part = folder / ("train" if i < TRAIN else "test") / name
            part.mkdir(parents=True, exist_ok=True)
            grey = (image * (255 / 16)).astype(np.uint8)
            tinted = np.stack([grey, 255 - grey, grey // (label + 1)], axis=-1)
            Image.fromarray(tinted).resize((side, side)).save(part / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 training and 15 test images of 12×12 pixels."""
    return write_images(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def small(photos: Path, tmp_path: Path) -> UserInput:
    """In which every kind of layer has its part."""
    return small_run(photos, tmp_path / "runs", stages="CLLL")


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Networks of depth 26 with one block in each stage, for what any depth has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEPTHS, 26, (1, 1, 1, 1))
        yield


@pytest.fixture(scope="session")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UserInput, RunResult]:
    """A run that has done its four epochs, and its settings; tests work on copies of its folder."""
    args = small_run(photos, tmp_path_factory.mktemp("undisturbed"), stages="CLLL", epochs=4, checkpoint_every=2)
    return args, main(args)


@pytest.fixture(scope="session", autouse=True)
def _cpus_alike() -> Iterator[None]:
    """Whatever this CPU computes in, `auto` is fp32: the same figures on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_computes_in_bf16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _figures_blank() -> Iterator[None]:
    """A run's figures are built, but not rendered, which takes longer than a small run; `rendered` does."""
    blank = io.BytesIO()
    Image.new("RGB", (8, 8)).save(blank, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_png", lambda figure: blank.getvalue())
        yield


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_png", RENDER)


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's figures are drawn and closed, but not written."""

    def digest_alone(figure: Figure, place: str, path: Path, numbers: Any) -> str:
        plt.close(figure)
        return figures.digest(numbers)

    monkeypatch.setattr(figures, "save", digest_alone)


@pytest.fixture(autouse=True)
def _fresh_generators() -> None:
    torch.manual_seed(0)
