"""Train a lambda ResNet, or its convolutional baseline, as `user_input.py` describes.

    python main_general.py                                    # CIFAR-10, λ-ResNet-50, 90 epochs
    python main_general.py --dataset digits --epochs 5        # no download, about a minute on two CPU cores
    python main_general.py --model baseline --resume          # go on with the newest run of that model

A run writes into runs/<Baseline|Lambda>/<date>_lr<lr>_<host>/: watch it with `tensorboard --logdir runs`.
Ctrl-C saves a checkpoint and leaves; `--resume` goes on from there.
"""

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoints import Position, load_checkpoint, save_checkpoint
from data_preprocessing import Data, load_data
from errors import one_line_errors
from interruption import StopRequest
from log_data import RunLog, start_config
from model_preparation import Training, find_device, peak_memory, prepare_training, set_determinism
from nntest import Evaluation, evaluate
from nntrain import EpochProgress, train_epoch
from run_folder import find_run, make_run_folder, read_config
from user_input import UserInput, load_user_input


@dataclass(frozen=True)
class RunResult:
    """What a run came to. Top-1 in percent, losses as means over images, of the last epoch that was done."""

    folder: Path
    epochs: int
    parameters: int
    train_loss: float
    train_top1: float
    test_loss: float
    test_top1: float
    best_epoch: int
    best_top1: float
    seconds: float
    images_per_second: float
    stopped_by: int | None = None  # the signal that ended it early


def main(args: UserInput) -> RunResult:
    """Train and test one network for `args.epochs` epochs, or for what is left of them.

    Raises:
        InputError: something the user can mend; where it is the settings or the data, nothing has been written.
    """
    device = find_device(args.device)
    set_determinism(args.deterministic)
    data = load_data(args, device)
    training = prepare_training(args, len(data.classes), device)
    with StopRequest() as stop:
        folder, position, log = start_or_resume(args, data, training)
        with log:
            bar = tqdm(total=args.epochs, initial=position.epochs_done, desc="epochs", leave=False, disable=None)
            while position.epochs_done < args.epochs:
                row = run_epoch(data, training, position, stop)
                if row is not None:
                    log.epoch(row)
                    bar.update()
                if stop() or position.epochs_done % args.checkpoint_every == 0 or position.epochs_done == args.epochs:
                    save_checkpoint(folder, args, data, training, position)
                if stop():
                    break
            bar.close()
            result = summarise(
                folder, training, position, log, stop.signal if position.epochs_done < args.epochs else None
            )
            report(args, log, result)
    return result


def start_or_resume(args: UserInput, data: Data, training: Training) -> tuple[Path, Position, RunLog]:
    """A new run folder with all that is fixed from the start, or an old one and where it stands."""
    if args.resume is not None:
        folder = find_run(args)
        position, passed_over = load_checkpoint(folder, args, training)
        log = RunLog(folder, position.epochs_done)
        for line in passed_over:
            log.say(line)
        log.say(f"resumed after {position.epochs_done} epochs and {position.progress.steps} steps of the next")
        return folder, position, log
    started = datetime.now()
    folder = make_run_folder(args, started)
    log = RunLog(folder, 0)
    log.begin(args, data, start_config(args, data, training, started))
    return folder, Position(), log


def run_epoch(data: Data, training: Training, position: Position, stop: StopRequest) -> dict[str, Any] | None:
    """Train and test once and move `position` on; None where `stop` ended the epoch early."""
    epoch = position.epochs_done + 1
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(training.device)
    position.progress = train_epoch(training, data.train, epoch, position.progress, stop)
    if position.progress.steps < len(data.train):
        return None
    validation = evaluate(training, data.validation, "validation", stop) if data.validation else None
    test = evaluate(training, data.test, "test", stop)
    if test is None or (data.validation and validation is None):
        return None
    row = epoch_row(epoch, training, position.progress, validation, test)
    judged = validation or test
    if judged.top1 > position.best_top1:
        position.best_epoch, position.best_top1 = epoch, judged.top1
    training.end_epoch()
    position.epochs_done, position.progress = epoch, EpochProgress()
    return row


def epoch_row(
    epoch: int, training: Training, trained: EpochProgress, validation: Evaluation | None, test: Evaluation
) -> dict[str, Any]:
    """The epoch's line of metrics.jsonl."""
    row = {
        "epoch": epoch,
        "learning_rate": training.learning_rate,
        "train_loss": trained.loss,
        "train_top1": trained.top1,
        "test_loss": test.loss,
        "test_top1": test.top1,
        "train_seconds": trained.seconds,
        "test_seconds": test.seconds,
        "images_per_second": trained.images_per_second,
        "peak_memory_gib": peak_memory(training.device) / 2**30,
    }
    if validation:
        row |= {"validation_loss": validation.loss, "validation_top1": validation.top1}
    return row


def summarise(folder: Path, training: Training, position: Position, log: RunLog, stopped_by: int | None) -> RunResult:
    """The run's figures; not a number where no epoch was done."""
    nothing = dict.fromkeys(("train_loss", "train_top1", "test_loss", "test_top1"), float("nan"))
    last = log.rows[-1] if log.rows else nothing
    train_seconds = sum(row["train_seconds"] for row in log.rows)
    images = sum(row["train_seconds"] * row["images_per_second"] for row in log.rows)
    return RunResult(
        folder=folder,
        epochs=position.epochs_done,
        parameters=training.parameters(),
        **{name: last[name] for name in nothing},
        best_epoch=position.best_epoch,
        best_top1=position.best_top1,
        seconds=log.total_seconds(),
        images_per_second=images / train_seconds if train_seconds else 0.0,
        stopped_by=stopped_by,
    )


def report(args: UserInput, log: RunLog, result: RunResult) -> None:
    """Say what the run came to, and what to do next."""
    if result.epochs < args.epochs:
        log.say(f"stopped after {result.epochs} of {args.epochs} epochs; go on with: --resume {result.folder}")
        return
    log.end(read_config(result.folder))
    log.say(
        f"{result.parameters:,} parameters, top-1 {result.test_top1:.2f} % (test), {result.seconds:.0f} s, "
        f"{result.images_per_second:.0f} images/s\n{result.folder}\ntensorboard --logdir {args.runs_path}"
    )


if __name__ == "__main__":
    with one_line_errors():
        try:
            outcome = main(load_user_input())
        except KeyboardInterrupt:
            sys.exit(130)  # as a shell reports an end by SIGINT
    sys.exit(0 if outcome.stopped_by is None else 128 + outcome.stopped_by)
