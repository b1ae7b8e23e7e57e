"""What a run tells: console, text log, metrics.jsonl, TensorBoard, and config.json at its start."""

import dataclasses
import json
import platform
import subprocess
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torchvision
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid
from tqdm import tqdm

from checkpoints import write_atomically
from data_preprocessing import Data
from model_preparation import Training, describe_device
from run_folder import CONFIG, LOG, METRICS, read_metrics, writing
from user_input import FREE_ON_RESUME, PROJECT, UserInput

GRID_IMAGES = 64  # augmented training images shown in TensorBoard
# The tag in TensorBoard of every key of a metrics.jsonl row; the part before the slash names the chart.
TAGS = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_top1": "top-1/train",
    "validation_top1": "top-1/validation",
    "test_top1": "top-1/test",
    "learning_rate": "training/learning rate",
    "images_per_second": "training/images per second",
    "train_seconds": "training/epoch seconds",
    "test_seconds": "training/test seconds",
    "peak_memory_gib": "training/peak memory GiB",
}
HEADING = "epoch  learning rate   train: loss  top-1 %    test: loss  top-1 %    train s  test s  images/s  total s"


def start_config(args: UserInput, data: Data, training: Training, started: datetime) -> dict[str, Any]:
    """All that it takes to repeat a run: settings, versions, device, commit, data."""
    return {
        "command": args.command(),
        "started": started.isoformat(timespec="microseconds"),
        "settings": dataclasses.asdict(args),
        "device": describe_device(training.device),
        "precision": training.precision,
        "parameters": training.parameters(),
        "data": {
            "train_images": data.train.images,
            "validation_images": data.validation.images if data.validation else 0,
            "test_images": data.test.images,
            "classes": list(data.classes),
            "mean": data.normalisation.mean,
            "std": data.normalisation.std,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "cuda": torch.version.cuda if training.device.type == "cuda" else None,
        },
        "platform": platform.platform(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The project's commit, marked where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class RunLog:
    """Writes one run's folder; a resumed run goes on where its checkpoint stands, with no epoch missing or double."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self.folder = folder
        self.rows = read_metrics(folder, epochs_done)
        with writing(folder):
            # rows, and TensorBoard's points, of epochs after the checkpoint will come again
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomically(folder / METRICS, lines.encode())
            self.tensorboard = SummaryWriter(str(folder), purge_step=epochs_done + 1 if epochs_done else None)

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

    def begin(self, args: UserInput, data: Data, config: dict[str, Any]) -> None:
        """Write what stands fixed before the first step: settings, images as the network gets them."""
        with writing(self.folder):
            write_atomically(self.folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
            board = self.tensorboard
            table = "\n".join(f"| {name} | {value} |" for name, value in config["settings"].items())
            board.add_text("settings", f"| setting | value |\n| --- | --- |\n{table}", 0)
            board.add_text("command", f"    {config['command']}", 0)
            images, _ = next(data.train.batches(epoch=1))
            grid = make_grid(data.normalisation.undo(images[:GRID_IMAGES]), nrow=8, padding=1)
            board.add_image("augmented training images", grid, 0)
            splits = ["train", "validation", "test"] if data.validation else ["train", "test"]
            charts = {name: ["Multiline", [f"{name}/{split}" for split in splits]] for name in ("loss", "top-1")}
            board.add_custom_scalars({"training and test": charts})
            for summary in self._hparams(config)[:2]:
                board.file_writer.add_summary(summary)
            board.flush()
        self.say(f"{config['command']}\n{config['device']}, {config['precision']}, {config['started'][:19]}")
        self.say(
            f"{config['parameters']:,} parameters, {data.train.images:,} training and {data.test.images:,} "
            f"test images of {len(data.classes)} classes a pass"
        )
        self.say(HEADING)

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the figures of an epoch that is done; `row` is its line of metrics.jsonl."""
        self.rows.append(row)
        with writing(self.folder):
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for key, tag in TAGS.items():
                if key in row:
                    self.tensorboard.add_scalar(tag, row[key], row["epoch"])
            self.tensorboard.flush()
        self.say(
            f"{row['epoch']:5d}  {row['learning_rate']:13.3g}  {row['train_loss']:12.4f}  {row['train_top1']:7.2f}"
            f"  {row['test_loss']:12.4f}  {row['test_top1']:7.2f}  {row['train_seconds']:9.1f}"
            f"  {row['test_seconds']:6.1f}  {row['images_per_second']:8.0f}  {self.total_seconds():7.1f}"
        )

    def end(self, config: dict[str, Any]) -> None:
        """Close the run's row in TensorBoard's HParams table."""
        with writing(self.folder):
            self.tensorboard.file_writer.add_summary(self._hparams(config)[2])
            self.tensorboard.flush()

    def total_seconds(self) -> float:
        """Training and test of all the epochs so far, those before a resumption included."""
        return sum(row["train_seconds"] + row["test_seconds"] for row in self.rows)

    def _hparams(self, config: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Columns, start and end of the run's row: settings, and the last values of the scalars."""
        settings = {
            name: "none" if value is None else value
            for name, value in config["settings"].items()
            if name not in FREE_ON_RESUME
        }
        figures = ("test_top1", "test_loss", "train_top1", "train_loss", "images_per_second")
        return hparams(settings, {TAGS[name]: 0.0 for name in figures})
