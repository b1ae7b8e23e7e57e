"""Train a lambda ResNet, or its convolutional baseline, as `user_input.py` describes.

    python main_general.py                                    # CIFAR-10, λ-ResNet-50, 90 epochs
    python main_general.py --dataset digits --epochs 5        # no download, about a minute on two CPU cores
    python main_general.py --model baseline --resume          # go on with the newest run of that model

    torchrun --nproc_per_node=2 main_general.py               # two processes, on as many GPUs or on the CPU

A run writes into runs/Lambda/lambda50_cifar10_LLLL_imagenet_seed0_<date>_lr0.0005_<host>/, or Baseline/ and so on:
watch it with `tensorboard --logdir runs`.
Ctrl-C saves a checkpoint and leaves, as SIGTERM, a closed terminal and an image that cannot be read do; `--resume`
goes on from there.
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

import os

from run_state.resumption import load_settings

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    SETTINGS = None if "RANK" in os.environ else load_settings()  # torchrun's processes tell together, once

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from acceleration.devices import enough_memory, find_device, peak_memory, reset_peak_memory, set_determinism
from acceleration.distributed import hide_bar, is_main, launch, on_main, restarts, size, world
from command_line.console import lasting_console
from command_line.errors import InputError, one_line_errors
from command_line.paths import quoted, shown, typed
from command_line.settings import counted
from data_preprocessing import Data, centre_view, load_data
from fine_tuning.transfer import told_of_start
from log_data import NoLog, RunLog, start_config
from model_preparation import MakeModel, Training, build_model, first_averaged, learning_rates, prepare_training
from nntest import evaluate, evaluate_average, evaluate_in_training_mode
from nntrain import EpochProgress, TrainingStep, train_epoch
from run_state.changes import check_same_data, take_over
from run_state.checkpoints import RunState, load_checkpoint
from run_state.ending import finished_run, network_name, what_next
from run_state.initial_weights import put_weights
from run_state.interruption import StopRequest
from run_state.progress import follow
from run_state.resumption import as_begun
from run_state.run_folder import (
    best_file,
    find_launched,
    find_run,
    group_folder,
    has_checkpoint,
    locked,
    make_run_folder,
)
from run_state.saving import Saver
from scoring.evaluation import Evaluation
from scoring.writing import ImagesOfTest
from user_input import UserInput

# Of each further test in an epoch, its keys in the epoch's row: loss and top-1
ROW_KEYS = {
    "validation": ("validation_loss", "validation_top1"),
    "training_mode": ("test_loss_training_mode", "test_top1_training_mode"),
    "average": ("test_loss_average", "test_top1_average"),
}


@dataclass(frozen=True)
class RunResult:
    """What a run came to. Top-1 in percent, losses as means over images; `nan` where no epoch was done."""

    folder: Path
    epochs: int
    parameters: int
    train_loss: float  # these four of the last epoch
    train_top1: float
    test_loss: float
    test_top1: float
    best_epoch: int  # by the validation images where there are any, else by the test images; for information
    best_top1: float
    seconds: float  # training and tests of all epochs
    images_per_second: float  # in training
    stopped_by: int | None = None  # the signal that ended it early


@lasting_console()
@enough_memory()
def main(args: UserInput, make_model: MakeModel = build_model, facts: dict[str, Any] | None = None) -> RunResult:
    """Train and test one network for `args.epochs` epochs, or for what is left of them.

    `make_model` gives another network than the settings describe; `facts` join what config.json says of the run, and
    should tell of it. A run that is resumed needs the same `make_model`, and keeps its facts.

    In each of several processes, within `distributed.world()`, it does its share and gives the same result.

    Raises:
        InputError: something the user can mend; where it is the settings or the data, nothing has been written.
    """
    args = on_main(as_begun, args)
    if finished := on_main(finished_run, args):
        folder, state = finished
        result = summarise(args, folder, state)
        on_main(print, f"{quoted(folder)} is finished; nothing was done and nothing was changed")
        on_main(print, "\n".join(last_lines(args, make_model, state, result)))
        return result
    device = find_device(args.device)
    if args.also_test_in_training_mode and size() > 1:
        raise InputError("also_test_in_training_mode: takes one process, whose batches are those of the study")
    set_determinism(args.deterministic)
    data = load_data(args, device)
    if args.patience is not None and data.validation is None:
        raise InputError("patience: takes validation images: validation_fraction, or a folder val beside test")
    training = prepare_training(args, len(data.classes), device, make_model, len(data.train))
    facts = {**(facts or {}), **put_weights(args, training.model, data.classes)}
    folder = on_main(open_folder, args)
    with StopRequest() as stop, ExitStack() as main_alone:
        on_main(main_alone.enter_context, locked(folder))
        state, log = begin_or_resume(args, folder, data, training, facts)
        with log:
            train(args, data, TrainingStep(training), state, log, Saver(folder, args, state, training), stop)
            if state.ended(args):
                test_once_more(args, data, training, state, stop, log)
            result = summarise(args, folder, state, stop.signal)
            report(args, log, state, result, make_model)
    return result


def train(
    args: UserInput,
    data: Data,
    step: TrainingStep,
    state: RunState,
    log: RunLog | NoLog,
    saver: Saver,
    stop: StopRequest,
) -> None:
    """Train and test for the epochs that are left; wherever that ends between two steps, the state is saved."""
    bar = tqdm(None, "epochs", args.last_epoch, False, initial=state.epochs_done, disable=hide_bar())
    with bar:
        while not state.ended(args):
            tests = run_epoch(args, data, step, state, saver, stop, log)
            with stop.keeping_errors():
                if tests:
                    tell_epoch(args, log, state, tests)
                    bar.update()
                    bar.set_postfix_str(f"top-1 {tests['test'].top1:.2f} % (test)")
            due = bool(tests) and saver.due_by_epochs()
            if stop() or due or state.is_best or saver.due_by_minutes():
                saver.save()
            if due:  # early on almost every epoch is the best, and the pictures of large maps are megabytes
                log.embeddings(step.training.model, state.epochs_done)
            if stop():
                break


def tell_epoch(args: UserInput, log: RunLog | NoLog, state: RunState, tests: dict[str, Evaluation]) -> None:
    """Write what an epoch came to, and its predictions where the settings say so.

    With patience, every epoch may be the last: so the predictions of the last ones so far are kept.
    """
    done, kept = state.epochs_done, args.keep_predictions
    log.epoch(state.rows[-1], total_seconds(state))
    if kept and (args.patience is not None or done > args.last_epoch - kept):
        log.predictions(tests, done)
        if args.patience is not None:
            log.drop_predictions(done - kept)


def open_folder(args: UserInput) -> Path:
    """The folder of the run to go on with, or a new one.

    A run goes on where its settings say so, and where torchrun has restarted the workers that began it.
    """
    group = group_folder(args.runs_path, args.model)
    if args.resume is not None:
        return find_run(group, args.resume_path)
    return (find_launched(group, launch()) if restarts() else None) or make_run_folder(group, args)


def begin_or_resume(
    args: UserInput, folder: Path, data: Data, training: Training, facts: dict[str, Any]
) -> tuple[RunState, RunLog | NoLog]:
    """A run at its beginning, or where its newest sound checkpoint has it."""
    if not on_main(has_checkpoint, folder):
        state = RunState(on_main(start_config, args, data, training) | facts)
        log = open_log(folder, state, data)
        log.begin([*data.notes, *told_of_start(state.config.get("init"), args.frozen)])
        return state, log
    on_main(check_same_data, folder, data)
    state, lines = load_checkpoint(folder, args, training)
    lines += take_over(state.config, args, folder, data)
    log = open_log(folder, state, data)
    done = counted(state.epochs_done, "epoch"), counted(state.progress.steps, "step")
    log.say("\n".join([*lines, f"resumed after {done[0]} and {done[1]} of the next"]))
    return state, log


def open_log(folder: Path, state: RunState, data: Data) -> RunLog | NoLog:
    """The run's log, in the one process that writes it."""
    return RunLog(folder, state, data) if is_main() else NoLog()


def run_epoch(
    args: UserInput,
    data: Data,
    step: TrainingStep,
    state: RunState,
    saver: Saver,
    stop: StopRequest,
    log: RunLog | NoLog,
) -> dict[str, Evaluation]:
    """Train and test once and move `state` on; the tests by their names.

    No test where the epoch was left early: at a stop, or for a checkpoint, from where the next call goes on.
    """
    training, epoch, steps = step.training, state.epochs_done + 1, len(data.train)
    reset_peak_memory(training.device)
    state.progress = train_epoch(
        step,
        data.train,
        epoch,
        state.progress,
        lambda batches: follow(stop.until(saver.until_due(batches)), args, steps, state, step, log.point),
    )
    if state.progress.steps < steps:
        return {}
    tests, started = None, time.perf_counter()
    with stop.keeping_errors():
        tests = run_tests(args, data, training, epoch, stop)
    if tests is None:
        return {}
    tested_in = time.perf_counter() - started
    state.rows.append(epoch_row(epoch, args, steps, training.device, state.progress, tests, tested_in))
    state.progress = EpochProgress(skipped=state.progress.skipped)
    training.end_epoch()
    return tests


def run_tests(
    args: UserInput, data: Data, training: Training, epoch: int, stop: StopRequest
) -> dict[str, Evaluation] | None:
    """All the tests of an epoch that the settings ask for; None where `stop` ended one early."""
    passes: dict[str, Callable[[], Evaluation | None]] = {}
    if validation := data.validation:
        passes["validation"] = lambda: evaluate(training, validation, "validation", stop.until)
    passes["test"] = lambda: evaluate(training, data.test, "test", stop.until)
    if args.also_test_in_training_mode:
        passes["training_mode"] = lambda: evaluate_in_training_mode(
            training, data.test, args.batch_size, args.seed, epoch, stop.until
        )
    if average := training.average_of_epoch(epoch):
        passes["average"] = lambda: evaluate_average(training, average, data.train, data.test, epoch, stop.until)
    tests: dict[str, Evaluation] = {}
    for name, run in passes.items():
        found = run()
        if found is None:
            return None
        tests[name] = found
    return tests


def test_once_more(
    args: UserInput, data: Data, training: Training, state: RunState, stop: StopRequest, log: RunLog | NoLog
) -> None:
    """For all that is kept of the last test; where an image has become unreadable, the run is whole all the same."""
    last = evaluate(training, data.test, "last test", stop.until)
    if last:
        log.tested(last, ImagesOfTest(data.test_images, data.classes, centre_view(args)), state.epochs_done)
    elif isinstance(stop.error, InputError) and size() == 1:  # of several processes, the others are waiting
        log.say(f"the last test could not be made ({stop.error}); the run itself is whole")
        stop.error = None


def epoch_row(
    epoch: int,
    args: UserInput,
    steps: int,
    device: torch.device,
    trained: EpochProgress,
    tests: dict[str, Evaluation],
    tested_in: float,
) -> dict[str, Any]:
    """The epoch's line of metrics.jsonl; the learning rate is that of the first of its `steps`.

    All its tests together took `tested_in` seconds.
    """
    row = {
        "epoch": epoch,
        "learning_rate": learning_rates(args, steps)[epoch - 1][0],
        "train_loss": trained.loss,
        "train_top1": trained.top1,
        "test_loss": tests["test"].loss,
        "test_top1": tests["test"].top1,
        "train_seconds": trained.seconds,
        "test_seconds": tested_in,
        "images_per_second": trained.images_per_second,
        "peak_memory_gib": peak_memory(device) / 2**30,
        "finished": time.time(),
    }
    for name, keys in ROW_KEYS.items():
        if name in tests:
            row |= {keys[0]: tests[name].loss, keys[1]: tests[name].top1}
    top5 = {f"{name}_top5": tests[name].top5 for name in ("validation", "test") if name in tests}
    return row | {key: share for key, share in top5.items() if share is not None}


def total_seconds(state: RunState) -> float:
    """Training and tests of all the epochs so far, those before a resumption included."""
    return sum(row["train_seconds"] + row["test_seconds"] for row in state.rows)


def summarise(args: UserInput, folder: Path, state: RunState, stopped_by: int | None = None) -> RunResult:
    """The figures of a run that is done, or stopped."""
    data = state.config["data"]
    none = {"epoch": 0} | dict.fromkeys(
        ("train_loss", "train_top1", "test_loss", "test_top1", "validation_top1"), math.nan
    )
    rows = state.rows or [none]
    judge = "validation_top1" if data["validation_images"] else "test_top1"
    best = max(rows, key=lambda row: row[judge])
    train_seconds = sum(row["train_seconds"] for row in state.rows)
    return RunResult(
        folder=folder,
        epochs=state.epochs_done,
        parameters=state.config["parameters"],
        **{name: rows[-1][name] for name in ("train_loss", "train_top1", "test_loss", "test_top1")},
        best_epoch=best["epoch"],
        best_top1=best[judge],
        seconds=total_seconds(state),
        images_per_second=state.epochs_done * data["train_images"] / train_seconds if train_seconds else 0.0,
        stopped_by=None if state.ended(args) else stopped_by,
    )


def report(args: UserInput, log: RunLog | NoLog, state: RunState, result: RunResult, make_model: MakeModel) -> None:
    """Say what the run came to, and what to do next."""
    if not state.ended(args):
        command = f"{typed('main_general.py')} --resume {quoted(result.folder)}"
        log.say(f"stopped after {result.epochs} of {args.epochs} epochs; go on with: {command}")
        return
    log.end()
    log.say("\n".join(last_lines(args, make_model, state, result)))


def last_lines(args: UserInput, make_model: MakeModel, state: RunState, result: RunResult) -> list[str]:
    """What a run that is done came to, and what to type next."""
    own = make_model is build_model  # no command gives another network
    name = network_name(args) if own else "the network"
    lines = [
        f"{name} on {args.dataset}: top-1 {result.test_top1:.2f} % (test), {result.parameters:,} parameters, "
        f"{counted(result.epochs, 'epoch')} in {result.seconds:.0f} s, {result.images_per_second:.0f} images/s"
    ]
    if best_file(result.folder).exists():
        best = f"epoch {result.best_epoch}, top-1 {result.best_top1:.2f} %"
        lines.append(f"best by the validation images: {best}, {shown(best_file(result.folder))}")
    if args.average == "last_epochs" and result.epochs < (first := first_averaged(args)):
        lines.append(f"there is no average: last_epochs takes in epochs {first} to {args.epochs}")
    run, lowest = quoted(result.folder), state.lowest_loss
    if lowest and state.out_of_patience(args):
        lines.append(
            f"ended after {result.epochs} of {args.epochs} epochs, since the validation loss has not fallen for "
            f"{args.patience} (lowest: {lowest['validation_loss']:.4f}, epoch {lowest['epoch']}); go on all the same "
            f"with: {typed('main_general.py')} --resume {run} --patience none"
        )
    elif result.epochs < args.epochs:
        lines.append(
            f"done with {result.epochs} of {args.epochs} epochs, as stop_after says; go on to the end with: "
            f"{typed('main_general.py')} --resume {run} --stop_after none"
        )
    return lines + what_next(args, result.folder, whole=own and result.epochs >= args.epochs)


if __name__ == "__main__":
    with world(), one_line_errors():
        try:
            outcome = main(SETTINGS or on_main(load_settings))
        except KeyboardInterrupt:
            sys.exit(130)  # as a shell reports an end by SIGINT
    sys.exit(0 if outcome.stopped_by is None else 128 + outcome.stopped_by)
