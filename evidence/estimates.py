"""How long the runs of experiments take on this machine: measured in a few steps, and kept for the report."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from acceleration.devices import describe_device
from acceleration.distributed import hide_bar
from benchmarks.measuring import seconds
from data_preprocessing import class_count, training_count
from evidence.processes import TO_DO, state, threads
from evidence.questions import EXPERIMENTS, Experiment
from evidence.runs import Conditions, Run, Variation
from model_preparation import prepare_training
from nntrain import TrainingStep
from run_state.checkpoints import write_atomically

TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "digits": 360}
ESTIMATES = "estimates.json"
CPU_BATCH = 16  # images in a measured step with the cifar stem on a CPU, whose steps take seconds and many GiB


def dry_run(runs: dict[Run, str], conditions: Conditions, jobs: int, keep: bool = False) -> None:
    """Print what is to do and how long it takes here; `keep` writes that beside the runs, for the report."""
    with _threads(threads(conditions, jobs)):
        _measure_and_tell(runs, conditions, jobs, keep)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads, as a run would have, and as many as before afterwards; None leaves PyTorch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_and_tell(runs: dict[Run, str], conditions: Conditions, jobs: int, keep: bool) -> None:
    device = torch.device(conditions.device)
    first = {run.variation: run for run in reversed(runs)}
    estimates = _estimates(dict.fromkeys(run.variation for run in runs), first, device)
    labels = {variation: _label(variation, runs[first[variation]]) for variation in estimates}
    width = max(7, *map(len, labels.values()))
    print(
        f"{'network':{width}}{'seeds: done':>13}{'to do':>7}{'epochs':>8}{'an epoch':>11}{'a run':>11}"
        "   name for --runs"
    )
    total = 0.0
    for variation, each in estimates.items():
        states = [state(run) for run in runs if run.variation == variation]
        to_do = sum(name in TO_DO for name in states)
        epochs = first[variation].args.last_epoch
        total += 0.0 if math.isnan(each) else to_do * epochs * each
        print(
            f"{labels[variation]:{width}}{len(states) - to_do:>13}{to_do:>7}{epochs:>8}"
            f"{duration(each):>11}{duration(epochs * each):>11}   {variation.name}"
        )
    shared = f", {jobs} at once" if jobs > 1 else ""
    # several runs on a GPU may be done sooner than one after the other, and never much later
    together = jobs if conditions.device == "cpu" else 1
    print(f"about {duration(total / together)} in all on {describe_device(device)}{shared}")
    if keep:
        hours = {v.name: first[v].args.last_epoch * each / 3600 / together for v, each in estimates.items()}
        content = {"device": describe_device(device), "jobs": jobs, "hours_per_run": hours}
        _keep_estimates(conditions.folder / ESTIMATES, content)


def _estimates(
    variations: Iterable[Variation], first: dict[Variation, Run], device: torch.device
) -> dict[Variation, float]:
    """Seconds of an epoch of each, behind a bar that names the one that is measured."""
    found = {}
    with tqdm(list(variations), "measuring", leave=False, disable=hide_bar()) as bar:
        for variation in bar:
            bar.set_postfix_str(variation.name)
            found[variation] = estimate(first[variation], device)
    return found


def _label(variation: Variation, experiment: str) -> str:
    """What the experiment calls it, such as `stage_1: R`."""
    names = [label for label, other in EXPERIMENTS[experiment].variations.items() if other == variation]
    return f"{experiment}: {names[0]}"


def duration(seconds: float) -> str:
    """`12 s`, `3.4 min`, `5.6 h`, `780 h`; of nan, that it does not fit into memory."""
    if math.isnan(seconds):
        return "no memory"
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * size or unit == "s":
            count = seconds / size
            break
    return f"{count:,.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"


def _keep_estimates(path: Path, content: dict[str, Any]) -> None:
    """Write the estimates, beside those of other runs on the same device."""
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if (old["device"], old["jobs"]) == (content["device"], content["jobs"]):
            content["hours_per_run"] = old["hours_per_run"] | content["hours_per_run"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def estimate(run: Run, device: torch.device) -> float:
    """Seconds of an epoch: as its logs on this device have it, or from a few measured steps; nan without the memory."""
    record = run.record()
    if record and record.rows and record.config["device"] == describe_device(device):
        return statistics.median(row["train_seconds"] + row["test_seconds"] for row in record.rows)
    try:
        return measure_epoch(run, device)
    except torch.OutOfMemoryError:
        return math.nan


def measure_epoch(run: Run, device: torch.device) -> float:
    """Seconds of an epoch, from a few steps of training and of testing on random images."""
    args = run.args
    training = prepare_training(args, class_count(args), device, run.variation.make_model)
    batch = CPU_BATCH if device.type == "cpu" and args.stem == "cifar" else args.batch_size
    images = torch.randn(batch, 3, args.image_size, args.image_size, device=device)
    images, labels = images.contiguous(memory_format=torch.channels_last), torch.zeros(batch).long().to(device)

    step = TrainingStep(training)

    def train() -> None:
        training.model.train()
        step(images, labels)

    @torch.inference_mode()
    def test() -> None:
        training.model.eval()
        with training.autocast():
            training.model(images)

    train_images = args.training_images or training_count(args)
    test_images = TEST_IMAGES.get(args.dataset, training_count(args) / 5)
    return (_median(train, device) * train_images + _median(test, device) * test_images) / batch


def _median(step: Any, device: torch.device, warm_up: int = 1, most: int = 5, budget: float = 5.0) -> float:
    """Seconds: the median of a few calls, fewer where they take long."""
    for _ in range(warm_up):
        seconds(step, device)
    times: list[float] = []
    while not times or (len(times) < most and sum(times) < budget):
        times.append(seconds(step, device))
    return statistics.median(times)


def estimated(folder: Path, experiment: Experiment, labels: Iterable[str] = ()) -> str:
    """`120 h on <device>` for all seeds of these networks, or of all, as `dry_run` has measured it; else nothing."""
    path = folder / ESTIMATES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        each, device, jobs = content["hours_per_run"], content["device"], content["jobs"]
        names = [experiment.variations[label].name for label in labels or experiment.variations]
        hours = len(experiment.seeds) * sum(each.get(name, math.nan) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged: `--dry-run` makes it anew
        return ""
    at_once = f", {jobs} runs at once" if jobs > 1 else ""
    return "" if math.isnan(hours) else f"{float(f'{hours:.2g}'):,g} h on {device}{at_once}"
