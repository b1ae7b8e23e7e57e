"""What a run tells: console, text log, metrics.jsonl, TensorBoard, and config.json at its start."""

import dataclasses
import io
import json
import platform
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.utils import make_grid
from tqdm import tqdm

from acceleration.devices import describe_device, instructions, why_precision
from acceleration.distributed import launch, size
from command_line.errors import summary
from command_line.paths import PROJECT
from command_line.settings import counted
from data_preprocessing import Data
from draw_embeddings import stage_pictures
from model_preparation import Training, learning_rates
from run_state.board import EMBEDDINGS, PICTURES, Board
from run_state.checkpoints import RunState, write_atomically
from run_state.progress import Point
from run_state.run_folder import CONFIG, LOG, METRICS, group_folder, next_number, writing
from run_state.saved_settings import saved_settings
from scoring.evaluation import Evaluation
from scoring.writing import ImagesOfTest, files, pixels
from scoring.writing import summary as summary_of_test
from user_input import UserInput, default_settings

PREDICTIONS = "predictions"
GRID_IMAGES = 64  # augmented training images shown in TensorBoard
# Of the pictures of the last test, the tags in TensorBoard
TEST_PICTURES = {"confusion.png": "confusion matrix of the test", "mistakes.png": "mistakes of the test"}
# What the log has behind an epoch's line, in percent; top-1 where it is not said
FURTHER = {"test_top5": "top-5", "test_top1_training_mode": "in training mode", "test_top1_average": "averaged"}
# The name of each test of an epoch in the file of its predictions
PREDICTED = {"test": "evaluation", "training_mode": "training_mode", "average": "average"}


def start_config(args: UserInput, data: Data, training: Training) -> dict[str, Any]:
    """All that it takes to repeat a run, or to use its network elsewhere: the content of config.json."""
    return {
        "id": uuid.uuid4().hex,  # by which a run knows its own checkpoints
        "number": next_number(group_folder(args.runs_path, args.model)),
        "launch": launch(),  # by which torchrun's restarted workers know their run
        "processes": size(),
        "command": args.command(),
        "started": datetime.now().isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(args),
        "defaults": default_settings(),  # against which an edit of user_input.py is told when the run is resumed
        "device": describe_device(training.device),
        "instructions": instructions(training.device),
        "precision": training.precision,
        "why_precision": why_precision(args.precision, training.precision, training.device),
        "parameters": training.parameters(),
        "learning_rates": learning_rates(args, len(data.train)),  # of every epoch's first and last step
        "data": {
            "train_images": data.train.images,
            "validation_images": data.validation.images if data.validation else 0,
            "test_images": data.test.images,
            "classes": list(data.classes),
            "mean": list(data.normalisation.mean),
            "std": list(data.normalisation.std),
            "whites": data.whites,
            "fingerprint": data.fingerprint,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "cuda": torch.version.cuda if training.device.type == "cuda" else None,
        },
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _schedule(config: dict[str, Any]) -> str:
    """`90 epochs of 390 steps; learning rate 0.0005 at the first step, at most 0.0025 (epoch 5), 0 at the last`."""
    rates, settings = config["learning_rates"], config["settings"]
    steps = config["data"]["train_images"] // settings["batch_size"]
    highest = max(range(len(rates)), key=lambda epoch: max(rates[epoch]))
    text = (
        f"{counted(len(rates), 'epoch')} of {counted(max(1, steps), 'step')}; learning rate {rates[0][0]:.3g} at the "
        f"first step, at most {max(rates[highest]):.3g} (epoch {highest + 1}), {rates[-1][1]:.3g} at the last step"
    )
    stop = settings["stop_after"]
    return text if stop is None or stop >= len(rates) else f"{text}; ends after epoch {stop}"


def _commit() -> str | None:
    """The project's commit, marked where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _losses(config: dict[str, Any]) -> list[str]:
    """A word on why the loss of the test may lie below that of the training."""
    smoothing = config["settings"]["label_smoothing"]
    words = f"label smoothing ({smoothing}) is in the training loss alone: the losses of other images may lie below it"
    return [words] if smoothing else []


def _heading(validation: bool) -> str:
    """Above the lines of the epochs."""
    parts = ("train", "validation", "test") if validation else ("train", "test")
    figures = "".join(f"  {f'{part}: loss':>{_width(part)}}  top-1 %" for part in parts)
    return f"epoch  learning rate{figures}    train s  test s  images/s  total s"


def _line(row: dict[str, Any], total_seconds: float) -> str:
    """An epoch, under `_heading`."""
    parts = [part for part in ("train", "validation", "test") if f"{part}_loss" in row]
    figures = [f"{row[f'{part}_loss']:{_width(part)}.4f}  {row[f'{part}_top1']:7.2f}" for part in parts]
    further = [f"{words} {row[key]:.2f} %" for key, words in FURTHER.items() if key in row]
    times = f"{row['train_seconds']:9.1f}  {row['test_seconds']:6.1f}  {row['images_per_second']:8.0f}"
    start = f"{row['epoch']:5d}  {row['learning_rate']:13.3g}"
    return "  ".join([start, *figures, times, f"{total_seconds:7.1f}", *further])


def _width(part: str) -> int:
    return max(12, len(f"{part}: loss") + 1)


def _predictions_file(epoch: int) -> str:
    return f"epoch{epoch:04d}.npz"


class RunLog:
    """Writes one run's folder.

    All files but log.txt are written anew from the run's state when the run is resumed: so they hold what the
    checkpoint knows, with no epoch missing or double, whatever happened to them in between.
    """

    def __init__(self, folder: Path, state: RunState, data: Data) -> None:
        self.folder, self.config = folder, state.config
        lines = "".join(json.dumps(row) + "\n" for row in state.rows)
        with writing(folder):
            write_atomically(folder / CONFIG, (json.dumps(state.config, indent=2) + "\n").encode())
            write_atomically(folder / METRICS, lines.encode())
            self.tensorboard = Board(folder, state, len(data.train))
            self._describe(data)
            self.tensorboard.replace_earlier()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.tensorboard.close()
        except OSError:
            if error is None:
                raise

    def say(self, text: str) -> None:
        """A line for the console and the text log."""
        tqdm.write(text)
        with writing(self.folder / LOG), open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def begin(self, notes: Sequence[str] = ()) -> None:
        """Head the text log; `notes` are lines on the images."""
        config, data = self.config, self.config["data"]
        precision = config["precision"] + config.get("why_precision", "")
        computes = [config["device"], config.get("instructions"), precision, config["started"]]
        self.say(f"{config['command']}\n{', '.join(filter(None, computes))}")
        self.say(
            f"{config['parameters']:,} parameters, {data['train_images']:,} training and {data['test_images']:,} "
            f"test images of {len(data['classes'])} classes"
        )
        self.say("\n".join([*notes, _schedule(config), *_losses(config), _heading(data["validation_images"] > 0)]))

    def epoch(self, row: dict[str, Any], total_seconds: float) -> None:
        """Write the figures of an epoch that is done; `row` is its line of metrics.jsonl."""
        with writing(self.folder):
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.tensorboard.epoch(row)
            self.tensorboard.flush()
        self.say(_line(row, total_seconds))

    def point(self, point: Point) -> None:
        """Write how far an epoch is, for whoever watches."""
        with suppress(OSError):  # the epoch's own line will tell, where what has been done can be saved
            self.tensorboard.point(point)

    def embeddings(self, model: nn.Module, epochs_done: int) -> None:
        """Draw the learnt position embeddings of each stage; about 10 ms a layer."""
        with self.attempting("pictures of the position embeddings"):
            for stage, picture in stage_pictures(model):
                self.tensorboard.add_image(f"{PICTURES}/{EMBEDDINGS} {stage}", picture, epochs_done, dataformats="HWC")

    def predictions(self, tests: dict[str, Evaluation], epoch: int) -> None:
        """Write predictions/epoch<number>.npz: true classes and those that each test predicted, in the data's order."""
        smallest = np.min_scalar_type(len(self.config["data"]["classes"]) - 1)
        parts = {"labels": tests["test"].labels}
        parts |= {PREDICTED[name]: test.predicted for name, test in tests.items() if name in PREDICTED}
        content = io.BytesIO()
        arrays: dict[str, Any] = {name: part.numpy().astype(smallest) for name, part in parts.items()}
        np.savez_compressed(content, **arrays)
        folder = self.folder / PREDICTIONS
        with writing(folder):
            folder.mkdir(exist_ok=True)
            write_atomically(folder / _predictions_file(epoch), content.getvalue())

    def drop_predictions(self, epoch: int) -> None:
        """Let go of those of an epoch, where there are any."""
        with writing(self.folder):
            (self.folder / PREDICTIONS / _predictions_file(epoch)).unlink(missing_ok=True)

    @contextmanager
    def attempting(self, what: str) -> Iterator[None]:
        """What may come after the last epoch ends no run: where it fails, a line says so."""
        try:
            yield
        except Exception as error:
            self.say(f"{what} could not be made ({summary(error)}); the run itself is whole")

    def tested(self, found: Evaluation, tested: ImagesOfTest, epochs_done: int) -> None:
        """Write all that is kept of the last test: figures, tables, pictures."""
        about = {"epochs": epochs_done, "precision": self.config["precision"]}
        for name, content in files(found, tested, about).items():
            with self.attempting(name):
                made = content()
                write_atomically(self.folder / name, made)
                if name in TEST_PICTURES:
                    tag = f"{PICTURES}/{TEST_PICTURES[name]}"
                    self.tensorboard.add_image(tag, pixels(made), epochs_done, dataformats="HWC")
        self.say(summary_of_test(found, tested.classes))

    def end(self) -> None:
        """Close the run's row in TensorBoard's HParams table."""
        with self.attempting("the run's row in TensorBoard's HParams table"):
            self.tensorboard.end_row()

    def _describe(self, data: Data) -> None:
        """What stands fixed before the first step: settings, charts, images as the network gets them."""
        args = saved_settings(self.config, self.folder / CONFIG)
        self.tensorboard.settings(args, self.config["command"])
        self.tensorboard.begin_row(args, max(map(max, learning_rates(args, len(data.train)))))
        images, _ = next(data.train.batches(epoch=1))
        grid = make_grid(data.normalisation.undo(images[:GRID_IMAGES]), nrow=8, padding=1)
        self.tensorboard.add_image(f"{PICTURES}/augmented training images", grid, 0)


class NoLog:
    """What the processes have that do not write: all of `RunLog`'s ways to tell, and nothing told."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def begin(self, notes: Sequence[str] = ()) -> None:
        pass

    def epoch(self, row: dict[str, Any], total_seconds: float) -> None:
        pass

    def point(self, point: Point) -> None:
        pass

    def embeddings(self, model: nn.Module, epochs_done: int) -> None:
        pass

    def predictions(self, tests: dict[str, Evaluation], epoch: int) -> None:
        pass

    def drop_predictions(self, epoch: int) -> None:
        pass

    def tested(self, found: Evaluation, tested: ImagesOfTest, epochs_done: int) -> None:
        pass

    def end(self) -> None:
        pass
