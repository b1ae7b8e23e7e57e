"""A run's TensorBoard: its tags, its charts, its row in the table of settings, and what stays when it is resumed.

TensorBoard sorts groups of tags by the alphabet: loss, top-1, training, training steps, and the pictures last.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from command_line.settings import as_word, base_type, groups, optional
from run_state.checkpoints import RunState, write_atomically
from run_state.progress import Point
from run_state.run_folder import host_name
from user_input import FREE_ON_RESUME, UserInput

EVENTS = "events.out.tfevents.*"
# The tag of every key of a metrics.jsonl row; the part before the slash names the chart.
TAGS = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_top1": "top-1/train",
    "validation_top1": "top-1/validation",
    "test_top1": "top-1/test",
    "validation_top5": "top-5/validation",
    "test_top5": "top-5/test",
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
# The tag of every field of a `Point`, over the steps of the run
STEPS = "training steps"
STEP_TAGS = {
    "loss": f"{STEPS}/loss of the epoch so far",
    "top1": f"{STEPS}/top-1 of the epoch so far",
    "learning_rate": f"{STEPS}/learning rate",
    "images_per_second": f"{STEPS}/images per second",
}
PICTURES = "visuals"
EMBEDDINGS = "position embeddings"  # in the tag of their pictures
# One layout, the same for every run, or TensorBoard would show each kind of it. Its tags are regular expressions.
LAYOUT = {
    "training, validation and test": {
        name: ["Multiline", [f"{name}/{part}$" for part in ("train", "validation", "test")]]
        for name in ("loss", "top-1")
    }
}
# In the table of settings, the first five are shown until one chooses others
FIGURES = ("test_top1", "train_top1", "test_loss", "train_loss", "validation_top1", "validation_loss")


class Board(SummaryWriter):
    """The event file of a run, with what an earlier one has beyond the run's state: pictures, points within epochs."""

    def __init__(self, folder: Path, state: RunState, steps: int) -> None:
        self.earlier = sorted(folder.glob(EVENTS))
        done = state.epochs_done * steps + state.progress.steps
        kept = list(logged_before(self.earlier, state.rows, done))
        with mock.patch("socket.gethostname", return_value=host_name()):  # TensorBoard's fails where that is no UTF-8
            # a TensorBoard that is running forgets, at this mark, the points that it has read before
            super().__init__(str(folder), purge_step=0)
        for event in kept:
            self.file.event_writer.add_event(event)
        for row in state.rows:
            self.epoch(row)

    @property
    def file(self) -> FileWriter:
        """What takes summaries and events that have no method of their own."""
        assert self.file_writer is not None  # before it is closed
        return self.file_writer

    def replace_earlier(self) -> None:
        """Let go of earlier event files, when this one has all that they had."""
        self.flush()
        for path in self.earlier:
            path.unlink()

    def settings(self, args: UserInput, command: str) -> None:
        """The settings as text, in the words of the command line, and how they are charted."""
        rows = ["| setting | value |", "| --- | --- |"]
        for heading, fields in groups(UserInput).items():
            rows.append(f"| **{heading}** | |")
            rows += [f"| {field.name} | {as_word(getattr(args, field.name))} |" for field in fields]
        self.add_text("settings", "\n".join(rows), 0)
        self.add_text("command", f"    {command}", 0)
        self.add_custom_scalars(LAYOUT)

    def begin_row(self, args: UserInput, peak: float) -> None:
        """Begin the run's row in the table of settings (HParams)."""
        columns, begin, _ = hparams(table_row(args, peak), {TAGS[name]: 0.0 for name in FIGURES})
        self.file.add_summary(columns)
        self.file.add_summary(begin)

    def end_row(self) -> None:
        """Say there that the run is done."""
        self.file.add_summary(hparams({}, {})[2])
        self.flush()

    def epoch(self, row: dict[str, Any]) -> None:
        """The figures of an epoch; `row` is its line of metrics.jsonl."""
        for key, tag in TAGS.items():
            if key in row:
                self.add_scalar(tag, row[key], row["epoch"], walltime=row["finished"])

    def point(self, point: Point) -> None:
        """How far an epoch is; on the disk at once, before any checkpoint that has these steps."""
        for name, tag in STEP_TAGS.items():
            self.add_scalar(tag, getattr(point, name), point.step)
        self.flush()


def table_row(args: UserInput, peak: float) -> dict[str, str | float]:
    """The columns of the table of settings: what most runs differ in, then every setting that defines a run's figures.

    TensorBoard sorts them by the alphabet, capital letters first.
    """
    first: dict[str, str | float] = {
        "Data set": args.dataset,
        "Depth": str(args.depth),  # a number would be shown as 50.000
        "Model": args.model,
        "Peak learning rate": peak,
        "Seed": str(args.seed),
        "Stages": args.stage_word,
        "Stem": args.stem,
    }
    told = {"dataset", "depth", "model", "seed", "stages", "stem"}
    fields = [field for field in dataclasses.fields(UserInput) if field.name not in told | FREE_ON_RESUME]
    return first | {field.name: _cell(field, getattr(args, field.name)) for field in fields}


def _cell(field: dataclasses.Field, value: Any) -> str | float:
    """A number where the column is one of numbers."""
    return value if base_type(field) in (int, float) and not optional(field) else as_word(value)


def logged_before(paths: Iterable[Path], rows: list[dict[str, Any]], steps: int) -> Iterator[Event]:
    """Pictures of these epochs and points up to that step, each once; of files that are this run's."""
    seen = set()
    for events in map(read_events, paths):
        if not _agree(events, rows):
            continue
        for event, value in events:
            within = value.tag.startswith(f"{STEPS}/") and event.step <= steps
            picture = value.HasField("image") and 0 < event.step <= len(rows)  # those of step 0 are drawn anew
            if (within or picture) and (value.tag, event.step) not in seen:
                seen.add((value.tag, event.step))
                yield event


def has_every_epoch(folder: Path, rows: list[dict[str, Any]]) -> bool:
    """Whether a run's event file has the figures of all of its epochs."""
    (events, *more) = [read_events(path) for path in folder.glob(EVENTS)] or [[]]
    there = {(value.tag, event.step) for event, value in events}
    wanted = {(tag, row["epoch"]) for row in rows for key, tag in TAGS.items() if key in row}
    return not more and wanted <= there and _agree(events, rows)


def read_events(path: Path) -> list[tuple[Event, Any]]:
    """An event file's events and what each has; of a damaged one those before the damage."""
    found: list[tuple[Event, Any]] = []
    with suppress(Exception):  # a damaged file fails in whichever way its bytes happen to
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            found += [(event, value) for value in event.summary.value]
    return found


def _agree(events: list[tuple[Event, Any]], rows: list[dict[str, Any]]) -> bool:
    """Whether an event file has no other figures of these epochs: it may be another run's."""
    figures = {(tag, row["epoch"]): row[key] for row in rows for key, tag in TAGS.items() if key in row}
    return all(
        np.array_equal(value.simple_value, np.float32(figures[value.tag, event.step]), equal_nan=True)
        for event, value in events
        if (value.tag, event.step) in figures
    )


def drop_embeddings(folder: Path) -> None:
    """Take the pictures of embeddings out of an ended run's event files: with large maps, a megabyte a checkpoint."""
    for path in folder.glob(EVENTS):
        kept = BytesIO()
        records = RecordWriter(kept)
        for record in RawEventFileLoader(str(path)).Load():
            if not any(EMBEDDINGS in value.tag for value in Event.FromString(record).summary.value):
                records.write(record)
        write_atomically(path, kept.getvalue())
