"""Throw damaged and hostile checkpoints, settings, images and command lines at the project.

    python tests/fuzzing.py --cases 1000      # exit code 1 where a case did not end as it should

Every case is to be accepted, refused with one line and exit code 2, or survived by going on from an older checkpoint:
no traceback, no case longer than SECONDS, and never more than MEMORY_MIB beyond what the process held before the first
case, which the operating system enforces. What goes on from a file damaged by chance must come to the figures and
weights of the undisturbed run. The network has a few hundred parameters: it is the files that are tried here.
"""

import argparse
import dataclasses
import errno
import faulthandler
import gc
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch
from conftest import write_images
from hostile_files import (
    HOSTILE_CHECKPOINTS,
    HOSTILE_IMAGES,
    HOSTILE_VALUES,
    Gone,
    forge,
    hostile_checkpoint,
    hostile_image,
    mutate,
)
from PIL import Image
from run_tools import assert_same_training, figures, final_state, the_run
from safetensors.torch import save_file
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import main_general
import model_preparation
from command_line.errors import InputError, one_line_errors
from data_preprocessing import AugmentedLoader, load_data
from data_sources.in_memory import PlainLoader
from log_data import RunLog
from main_general import main
from run_state.initial_weights import put_weights
from run_state.resumption import load_settings
from run_state.run_folder import checkpoint_files
from user_input import UserInput

SECONDS = 20.0  # of a case
MEMORY_MIB = 1024
REFUSED, ACCEPTED, OLDER = "refused in one line", "accepted", "an older one taken"


@dataclass(frozen=True)
class Ground:
    """What the cases are made of."""

    folder: Path
    args: UserInput  # of a finished run
    run: Path  # its folder; cases are tried on copies


def small_network(args: UserInput, num_classes: int | None = None) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def prepare(folder: Path) -> Ground:
    args = UserInput(
        depth=26,
        dataset="imagefolder",
        data_dir=str(write_images(folder / "images of digits")),
        validation_fraction=0.3,
        image_size=12,
        batch_size=8,
        epochs=3,
        checkpoint_every=1,
        device="cpu",
        runs_dir=str(folder / "runs"),
    )
    with redirect_stdout(io.StringIO()):
        run = main(args).folder
    return Ground(folder, args, run)


def outcome(action: Callable[[], Any], output: Callable[[], io.StringIO] = io.StringIO) -> str:
    """How it ended, other ways than the allowed ones being errors; `output` makes its console."""
    errors = io.StringIO()
    try:
        with redirect_stdout(output()), redirect_stderr(errors), one_line_errors():
            action()
    except SystemExit as end:
        lines = errors.getvalue().splitlines()
        told = [line for line in lines if line.startswith("error: ")]
        if end.code == 0 and not lines:
            return ACCEPTED  # such as --help
        if end.code != 2 or len(told) != 1 or "Traceback" in errors.getvalue():
            raise AssertionError(f"refused with code {end.code} and {lines}") from None
        return REFUSED
    if "Traceback" in errors.getvalue():
        raise AssertionError(errors.getvalue())
    return ACCEPTED


def resume(ground: Ground, folder: Path) -> str:
    ended = outcome(lambda: main(load_settings(["--resume", str(folder), "--data_dir", ground.args.data_dir])))
    log = (folder / "log.txt").read_bytes() if (folder / "log.txt").is_file() else b""
    return OLDER if ended == ACCEPTED and b"was passed over" in log else ended


def copy_run(ground: Ground) -> Path:
    return Path(shutil.copytree(ground.run, ground.folder / "case" / "a run, copied"))


def assert_undisturbed(ground: Ground, folder: Path) -> None:
    if figures(folder) != figures(ground.run):
        raise AssertionError("the figures are not those of the undisturbed run")
    assert_same_training(final_state(folder), final_state(ground.run))


def damaged_file(ground: Ground, chance: random.Random) -> str:
    """Any file of a run's folder, damaged by chance."""
    folder = copy_run(ground)
    victims = sorted(path for path in folder.rglob("*") if path.is_file())
    victim = chance.choice([*victims, *folder.glob("checkpoints/*")])
    victim.write_bytes(mutate(victim.read_bytes(), chance))
    ended = resume(ground, folder)
    if ended != REFUSED:
        assert_undisturbed(ground, folder)
    elif victim.name != "config.json":
        raise AssertionError(f"{victim.name} was not survived")
    return ended


def forged_checkpoint(ground: Ground, chance: random.Random) -> str:
    """The newest checkpoint made by somebody: whole by its checksums, with something else in it."""
    folder, marker = copy_run(ground), ground.folder / "code was run"
    victim = checkpoint_files(folder)[-1]
    sound = victim.read_bytes()
    if chance.random() < 0.25:
        victim.unlink()
        hostile_checkpoint(victim, sound, marker, chance.randrange(HOSTILE_CHECKPOINTS))
    else:
        torch.save(forge(torch.load(victim, weights_only=True), chance), victim)
    if chance.random() < 0.2:  # as the only one there is
        for path in [*checkpoint_files(folder)[:-1], folder / "checkpoints" / "best.pt"]:
            path.unlink()
    ended = resume(ground, folder)
    if marker.exists():
        raise AssertionError("a checkpoint ran code")
    return ended


def forged_config(ground: Ground, chance: random.Random) -> str:
    """The settings of a run made by somebody."""
    folder = copy_run(ground)
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps(forge(config, chance)) if chance.random() < 0.9 else "[" * chance.choice((10, 10**6))
    (folder / "config.json").write_text(text)
    return resume(ground, folder)


def bad_image(ground: Ground, chance: random.Random) -> str:
    """One image of a data set."""
    images = Path(shutil.copytree(ground.args.data_dir, ground.folder / "case" / "bilder ü"))
    victim = images / "train" / "one" / "03.png"
    with Image.open(victim) as image:
        ending = chance.choice(("png", "jpeg", "bmp", "tiff", "webp", "ppm"))
        replaced = victim.with_suffix(f".{ending}")
        victim.unlink()
        image.save(replaced)
    if chance.random() < 0.2:
        replaced.unlink()
        hostile_image(victim, chance.randrange(HOSTILE_IMAGES))
    else:
        replaced.write_bytes(mutate(replaced.read_bytes(), chance))
    args = dataclasses.replace(
        ground.args, data_dir=str(images), workers=0, memory_gib=chance.choice((2.0, 0.0)), validation_fraction=0.0
    )

    def read() -> None:
        data = load_data(args, torch.device("cpu"))
        for loader in (data.train, data.test):
            for _ in loader.batches(epoch=1):
                pass

    return outcome(read)


def foreign_weights(ground: Ground, chance: random.Random) -> str:
    """A file of weights to start from, made by somebody or damaged by chance."""
    model, marker = small_network(ground.args), ground.folder / "code was run"
    ending = chance.choice(("pt", "pth", "safetensors"))
    victim = ground.folder / "case" / f"weights.{ending}"
    if ending == "safetensors":
        save_file(model.state_dict(), victim)
    elif chance.random() < 0.5:
        torch.save(forge({"model": dict(model.state_dict())}, chance), victim)
    else:
        torch.save(model.state_dict(), victim, _use_new_zipfile_serialization=chance.random() < 0.5)
    if chance.random() < 0.2:
        sound = io.BytesIO()
        torch.save(model.state_dict(), sound)
        victim.unlink()
        hostile_checkpoint(victim, sound.getvalue(), marker, chance.randrange(HOSTILE_CHECKPOINTS))
    elif chance.random() < 0.6:
        victim.write_bytes(mutate(victim.read_bytes(), chance))
    args = dataclasses.replace(ground.args, init_from=str(victim))
    ended = outcome(lambda: put_weights(args, model, ("nought", "one", "two")))
    if marker.exists():
        raise AssertionError("weights ran code")
    return ended


def command_line(ground: Ground, chance: random.Random) -> str:
    """Flags and values, each of which may fit or not."""
    fields = dataclasses.fields(UserInput)
    values = ["0", "-1", "3", "1e400", "nan", "none", "LLLL", "--", "-", "cpu", "0x10", "1_0", "\udcff", "latest"]
    values += [str(value) for value in HOSTILE_VALUES if not (type(value) is int and value > 2**100)]
    values += [
        "--help",
        str(ground.run),
        f"{ground.run} ",
        str(ground.folder / "a b"),
        "--no-compile",
        "--help me",
        "--=",
        "=1",
    ]
    line: list[str] = []
    for _ in range(chance.randrange(1, 5)):
        field = chance.choice(fields)
        fitting = [str(choice) for choice in field.metadata["limits"].get("choices", (field.default, 8))]
        if field.type is bool:
            line += [chance.choice(("--", "--no-")) + field.name]
        else:
            line += [f"--{field.name}", chance.choice(fitting if chance.random() < 0.7 else values)]
        if chance.random() < 0.2:
            line.insert(chance.randrange(len(line) + 1), chance.choice(values))
    return outcome(lambda: load_settings(line))


class Fault:
    """Fails at call number `at` of what it stands for, and never again."""

    def __init__(self, usual: Callable, at: int, error: Exception) -> None:
        self.usual, self.left, self.error = usual, at, error

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def called(self, *arguments: Any, **options: Any) -> Any:
        self.count()
        return self.usual(*arguments, **options)

    def iterated(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        for item in self.usual(*arguments, **options):
            self.count()
            yield item


def ended_run(ground: Ground, chance: random.Random) -> str:
    """A run that something ends, wherever it is: what it has saved leads to the undisturbed one."""
    args = dataclasses.replace(ground.args, runs_dir=str(ground.folder / "case" / "runs"), checkpoint_every=3)
    refused = InputError("data_dir: 03.png is no readable image")
    full = OSError(errno.ENOSPC, "No space left on device")
    owner, name, way, calls, error = chance.choice(
        [
            (AugmentedLoader, "batches", "iterated", range(2, 13), refused),  # the first is drawn, before any step
            (PlainLoader, "batches", "iterated", range(1, 24), refused),
            (main_general, "evaluate", "called", range(1, 7), torch.OutOfMemoryError("CUDA out of memory.")),
            (RunLog, "epoch", "called", range(1, 4), InputError("log.txt cannot be written (No space left on device)")),
            (SummaryWriter, "add_scalar", "called", range(1, 40), full),
        ]
    )
    fault, console = Fault(getattr(owner, name), chance.choice(calls), error), chance.choice((Gone, io.StringIO))
    replaced = getattr(fault, way)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *arguments, **options: replaced(*arguments, **options))
        ended = outcome(lambda: main(args), console)
    folder = the_run(args)
    if ended == REFUSED and not checkpoint_files(folder):
        raise AssertionError(f"nothing was saved when {name} failed")
    if resume(ground, folder) == REFUSED:
        raise AssertionError("it could not be resumed")
    assert_undisturbed(ground, folder)
    return ended


KINDS: dict[str, Callable[[Ground, random.Random], str]] = {
    "damaged files": damaged_file,
    "forged checkpoints": forged_checkpoint,
    "forged settings": forged_config,
    "images": bad_image,
    "command lines": command_line,
    "weights": foreign_weights,
    "ends of runs": ended_run,
}


def run_case(ground: Ground, kind: str, number: int, seed: int) -> str:
    case = ground.folder / "case"
    case.mkdir()
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    try:
        return KINDS[kind](ground, random.Random(f"{seed} {kind} {number}"))
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(case)


def memory_mib(name: str) -> float:
    """`VmData`, what limits count, or `VmHWM`, the most that was resident."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


@contextmanager
def limited_memory() -> Iterator[None]:
    """Within this context, an allocation that goes beyond the bound fails."""
    usual = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int((memory_mib("VmData") + MEMORY_MIB) * 2**20), usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, usual)


@contextmanager
def small_networks() -> Iterator[None]:
    usual, model_preparation.build_model = model_preparation.build_model, small_network
    try:
        yield
    finally:
        model_preparation.build_model = usual


def show(counts: dict[str, Counter], failures: int) -> None:
    ways = (REFUSED, ACCEPTED, OLDER)
    print(f"{'':20}" + "".join(f"{name:>22}" for name in ("cases", *ways)))
    for kind, ended in counts.items():
        print(f"{kind:20}" + "".join(f"{count:22}" for count in (ended.total(), *(ended[way] for way in ways))))
    parts = ", ".join(f"{ended.total()} {kind}" for kind, ended in counts.items())
    print(f"{sum(ended.total() for ended in counts.values())} cases fuzzed ({parts}), {failures} failures", flush=True)


def fuzz(cases: int, seed: int) -> int:
    """Try so many cases, in turns of each kind; returns how many did not end as they should."""
    counts: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    failures, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as name, small_networks():
        ground = prepare(Path(name))
        before = memory_mib("VmHWM")
        with limited_memory():
            for number in range(cases):
                kind = list(KINDS)[number % len(KINDS)]
                gc.collect()  # of what the errors of the case before hold on to: memory is a case's own
                started = time.monotonic()
                try:
                    counts[kind][run_case(ground, kind, number, seed)] += 1
                except Exception:
                    failures += 1
                    counts[kind]["failed"] += 1
                    print(f"case {number}, {kind}, seed {seed}:\n{traceback.format_exc()}", flush=True)
                slowest = max(slowest, time.monotonic() - started)
        print(f"the slowest case took {slowest:.1f} s; allowed are {SECONDS:.0f}")
        print(f"memory went up by {memory_mib('VmHWM') - before:.0f} MiB; allowed are {MEMORY_MIB}")
    show(counts, failures)
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many to try (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the cases (default: 0)")
    options = parser.parse_args()
    sys.exit(1 if fuzz(options.cases, options.seed) else 0)
