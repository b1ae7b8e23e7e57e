"""What a run tells: console, text log, metrics.jsonl, TensorBoard, and config.json at its start."""

import dataclasses
import io
import json
import platform
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid
from tqdm import tqdm

from acceleration.devices import describe_device, why_precision
from acceleration.distributed import launch, size
from command_line.errors import summary
from command_line.paths import PROJECT
from data_preprocessing import Data
from draw_embeddings import stage_pictures
from model_preparation import Training, learning_rates
from nntest import Evaluation
from run_state.checkpoints import RunState, write_atomically
from run_state.confusion import as_csv, as_figure
from run_state.run_folder import CONFIG, LOG, METRICS, group_folder, host_name, next_number, writing
from user_input import FREE_ON_RESUME, UserInput, default_settings

CONFUSION = Path("confusion")
PREDICTIONS = "predictions"
EMBEDDINGS = "position embeddings"  # the tag of their pictures in TensorBoard
EVENTS = "events.out.tfevents.*"
GRID_IMAGES = 64  # augmented training images shown in TensorBoard
# The tag in TensorBoard of every key of a metrics.jsonl row; the part before the slash names the chart.
TAGS = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_top1": "top-1/train",
    "validation_top1": "top-1/validation",
    "test_top1": "top-1/test",
    "test_loss_training_mode": "loss/test in training mode",
    "test_top1_training_mode": "top-1/test in training mode",
    "test_loss_average": "loss/test of averaged weights",
    "test_top1_average": "top-1/test of averaged weights",
    "learning_rate": "training/learning rate",
    "images_per_second": "training/images per second",
    "train_seconds": "training/epoch seconds",
    "test_seconds": "training/test seconds",
    "peak_memory_gib": "training/peak memory GiB",
}
# TensorBoard's HParams table shows the first five columns of the alphabet until one chooses others. These are in it for
# every run, the other settings where they are not at their defaults.
COLUMNS = ("dataset", "depth", "epochs", "initial_lr", "model")
FURTHER = {"test_top1_training_mode": "in training mode", "test_top1_average": "averaged"}  # top-1, as the log has it
# The name of each test of an epoch in the file of its predictions
PREDICTED = {"test": "evaluation", "training_mode": "training_mode", "average": "average"}
HEADING = "epoch  learning rate   train: loss  top-1 %    test: loss  top-1 %    train s  test s  images/s  total s"


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
    """`90 epochs of 390 steps; learning rate 0.0005 … in epoch 1, at most 0.0025 in epoch 5, 0 in epoch 90`."""
    rates, settings = config["learning_rates"], config["settings"]
    steps = config["data"]["train_images"] // settings["batch_size"]
    highest = max(range(len(rates)), key=lambda epoch: max(rates[epoch]))
    text = (
        f"{len(rates)} epochs of {max(1, steps)} steps; learning rate {rates[0][0]:.3g} at the first step, at most "
        f"{max(rates[highest]):.3g} (epoch {highest + 1}), {rates[-1][1]:.3g} at the last step"
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
            for old in folder.glob(EVENTS):
                old.unlink()
            # a TensorBoard that is running forgets, at this mark, the points that it has read before
            with mock.patch(
                "socket.gethostname", return_value=host_name()
            ):  # TensorBoard's, which fails where that is no UTF-8
                self.tensorboard = SummaryWriter(str(folder), purge_step=0)
            self._describe(data)
            for row in state.rows:
                self._plot(row)
            self.tensorboard.flush()

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
        self.say(f"{config['command']}\n{config['device']}, {precision}, {config['started']}")
        self.say(
            f"{config['parameters']:,} parameters, {data['train_images']:,} training and {data['test_images']:,} "
            f"test images of {len(data['classes'])} classes"
        )
        self.say("\n".join([*notes, _schedule(config), HEADING]))

    def epoch(self, row: dict[str, Any], total_seconds: float) -> None:
        """Write the figures of an epoch that is done; `row` is its line of metrics.jsonl."""
        with writing(self.folder):
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self._plot(row)
            self.tensorboard.flush()
        self.say(
            f"{row['epoch']:5d}  {row['learning_rate']:13.3g}  {row['train_loss']:12.4f}  {row['train_top1']:7.2f}"
            f"  {row['test_loss']:12.4f}  {row['test_top1']:7.2f}  {row['train_seconds']:9.1f}"
            f"  {row['test_seconds']:6.1f}  {row['images_per_second']:8.0f}  {total_seconds:7.1f}"
            + "".join(f"  {words} {row[key]:.2f} %" for key, words in FURTHER.items() if key in row)
        )

    def embeddings(self, model: nn.Module, epochs_done: int) -> None:
        """Draw the learnt position embeddings of each stage; about 10 ms a layer."""
        with self.attempting("pictures of the position embeddings"):
            for stage, picture in stage_pictures(model):
                self.tensorboard.add_image(f"{EMBEDDINGS}/{stage}", picture, epochs_done, dataformats="HWC")

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
            write_atomically(folder / f"epoch{epoch:04d}.npz", content.getvalue())

    @contextmanager
    def attempting(self, what: str) -> Iterator[None]:
        """What may come after the last epoch ends no run: where it fails, a line says so."""
        try:
            yield
        except Exception as error:
            self.say(f"{what} could not be made ({summary(error)}); the run itself is whole")

    def confusion(self, counts: Tensor, epochs_done: int) -> None:
        """Write confusion.csv and confusion.png; counts (true classes, predicted classes), sparse."""
        classes, picture = self.config["data"]["classes"], io.BytesIO()
        with self.attempting("confusion.csv"):
            write_atomically(self.folder / CONFUSION.with_suffix(".csv"), as_csv(counts, classes))
        with self.attempting("confusion.png"):
            as_figure(counts, classes).savefig(picture, format="png", dpi=100)
            write_atomically(self.folder / CONFUSION.with_suffix(".png"), picture.getvalue())
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            self.tensorboard.add_image("confusion matrix of the test", pixels, epochs_done, dataformats="HWC")

    def end(self) -> None:
        """Close the run's row in TensorBoard's HParams table."""
        with self.attempting("the run's row in TensorBoard's HParams table"):
            self._add(self._hparams()[2])
            self.tensorboard.flush()

    def _plot(self, row: dict[str, Any]) -> None:
        for key, tag in TAGS.items():
            if key in row:
                self.tensorboard.add_scalar(tag, row[key], row["epoch"], walltime=row["finished"])

    def _describe(self, data: Data) -> None:
        """What stands fixed before the first step: settings, charts, images as the network gets them."""
        board, config = self.tensorboard, self.config
        table = "\n".join(f"| {name} | {value} |" for name, value in config["settings"].items())
        board.add_text("settings", f"| setting | value |\n| --- | --- |\n{table}", 0)
        board.add_text("command", f"    {config['command']}", 0)
        images, _ = next(data.train.batches(epoch=1))
        grid = make_grid(data.normalisation.undo(images[:GRID_IMAGES]), nrow=8, padding=1)
        board.add_image("augmented training images", grid, 0)
        splits = ["train", "validation", "test"] if data.validation else ["train", "test"]
        charts = {name: ["Multiline", [f"{name}/{split}" for split in splits]] for name in ("loss", "top-1")}
        board.add_custom_scalars({"training and test": charts})
        for part in self._hparams()[:2]:
            self._add(part)

    def _add(self, summary: Any) -> None:
        writer = self.tensorboard.file_writer
        assert writer is not None  # before it is closed
        writer.add_summary(summary)

    def _hparams(self) -> tuple[Any, Any, Any]:
        """Columns, start and end of the run's row: settings that say something, and the last values of the scalars."""
        usual = {field.name: field.default for field in dataclasses.fields(UserInput)}
        settings = {
            name: "none" if value is None else value
            for name, value in self.config["settings"].items()
            if name in COLUMNS or (name not in FREE_ON_RESUME and value != usual[name])
        }
        figures = ("test_top1", "test_loss", "train_top1", "train_loss", "images_per_second")
        return hparams(settings, {TAGS[name]: 0.0 for name in figures})


def drop_embeddings(folder: Path) -> None:
    """Take the pictures of embeddings out of an ended run's event files: with large maps, a megabyte a checkpoint."""
    for path in folder.glob(EVENTS):
        kept = io.BytesIO()
        records = RecordWriter(kept)
        for record in RawEventFileLoader(str(path)).Load():
            if not any(value.tag.startswith(EMBEDDINGS) for value in Event.FromString(record).summary.value):
                records.write(record)
        write_atomically(path, kept.getvalue())


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

    def embeddings(self, model: nn.Module, epochs_done: int) -> None:
        pass

    def predictions(self, tests: dict[str, Evaluation], epoch: int) -> None:
        pass

    def confusion(self, counts: Tensor, epochs_done: int) -> None:
        pass

    def end(self) -> None:
        pass
