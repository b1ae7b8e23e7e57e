"""The experiments: which networks are trained under which settings, with which seeds, to answer which question.

    python experiments.py --list                                  # what there is
    python experiments.py --dry-run --only study                  # what is still to do, and how long it takes here
    python experiments.py --only study ladder                     # CIFAR-10, 90 epochs: for a GPU
    python experiments.py --only study --runs lambda baseline --scale 0.08 0.2 --jobs 2      # 7 epochs, 10,000 images
    python report.py                                              # RESULTS.md out of the logs of all the runs

What is done is skipped, what was cut off is resumed, what diverged is kept as it is: the same command goes on after a
Ctrl-C. Every run is a process of its own, with its folder under results/logs/ (see `evidence/runs.py`). A scale
is part of what a run is: runs of different scales never mix. Another copy of a data set gets a name of its own:

    python experiments.py --dataset imagefolder --data_dir data/cifar10-jpeg --data_name "CIFAR-10 (JPEG copy)"
"""

import argparse
import json
import math
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from acceleration.devices import choose_precision, describe_device, find_device
from acceleration.distributed import hide_bar
from benchmarks.measuring import seconds
from command_line.errors import InputError, Parser, one_line_errors
from command_line.paths import project_path
from data_preprocessing import class_count, training_count
from evidence.networks import STUDYS_EMBEDDING
from evidence.runs import FIELDS, FOLDER, OUTPUT, Conditions, Run, Variation, vary, work
from model_preparation import prepare_training
from nntrain import TrainingStep
from run_state.checkpoints import write_atomically
from run_state.interruption import StopRequest
from run_state.run_folder import shown

WORDS = ("CCCC", "LCCC", "LLCC", "LLLC", "LLLL", "CLLL", "CCLL", "CCCL")
RATES = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)  # study, Figure 10
# (k, h, u) of the paper's Table 10 that are compared here
DEPTHS_AND_HEADS = ((8, 4, 1), (16, 4, 1), (32, 4, 1), (16, 2, 1), (16, 8, 1), (16, 4, 4), (8, 8, 8))
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "digits": 360}
ESTIMATES = "estimates.json"
CPU_BATCH = 16  # images in a measured step with the cifar stem on a CPU, whose steps take seconds and many GiB
PATIENCE = 0.5  # seconds between two looks at whether a stop is wished


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that answer it."""

    question: str
    variations: dict[str, Variation]  # by the name that a reader sees
    seeds: tuple[int, ...] = (0, 1, 2)


CIFAR_STEM = {"stem": "cifar"}
# what 200 epochs on CIFAR-10 are commonly trained with: a peak of 0.1
BEST = {"stem": "cifar", "epochs": 200, "optimizer": "sgd", "weight_decay": 5e-4}
BEST_NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-50": {"model": "baseline"},
    "λ-ResNet-50, CCLL": {"stages": "CCLL"},
    "λ-ResNet-50, LLLL, 7×7": {"scope": 7, "intra_depth": 4},
}
# The stages of docs/protocol.md. R, S and L are ResNet-50, the study's λ-ResNet-50 and ours.
STUDYS_RECIPE: dict[str, Any] = {"normalisation": "study", "also_test_in_training_mode": True}
STAGE_1 = {**STUDYS_RECIPE, "schedule": "study", "stop_after": 20, "keep_predictions": 10}
STAGE_2 = {**STUDYS_RECIPE, "schedule": "step", "epochs": 30, "keep_predictions": 5}
STAGE_3 = {**STUDYS_RECIPE, "schedule": "study", "keep_predictions": 10}


def arms(stage: str, names: str, settings: dict[str, Any]) -> dict[str, Variation]:
    """The networks of a stage of the protocol, by the letters of their arms."""
    every = {
        "R": ("ResNet-50", vary(title=f"{stage}_R", model="baseline", **settings)),
        "S": ("the study's λ-ResNet-50", vary("study", title=f"{stage}_S", **settings)),
        "L": ("λ-ResNet-50", vary(title=f"{stage}_L", **settings)),
    }
    return dict(every[name] for name in names)


EXPERIMENTS = {
    "stage_1": Experiment(
        "Does the study's network fall behind ResNet-50 as its curves did, and does ours not? The study's 90-epoch "
        "schedule, ended after 20 epochs.",
        arms("stage_1", "RSL", STAGE_1),
    ),
    "stage_2": Experiment(
        "Where do ResNet-50 and λ-ResNet-50 come after 30 epochs, annealed to 0?",
        arms("stage_2", "RL", STAGE_2),
        seeds=(0, 1, 2, 3, 4),
    ),
    "stage_3": Experiment(
        "The study's comparison itself: 90 epochs of its schedule.",
        arms("stage_3", "RSL", STAGE_3),
    ),
    "study": Experiment(
        "Does λ-ResNet-50 beat ResNet-50 as the study trained them (its Tables 1 to 3), and with larger maps?",
        {
            "ResNet-50": vary(model="baseline"),
            "λ-ResNet-50": vary(),
            "ResNet-50, cifar stem": vary(model="baseline", **CIFAR_STEM),
            "λ-ResNet-50, cifar stem": vary(**CIFAR_STEM),
        },
        seeds=(0, 1, 2, 3, 4),
    ),
    "ladder": Experiment(
        "What did each fault of the study's implementation cost? One repair after the other.",
        {  # the mode of testing is no rung: the same weights can be tested in both
            "as the study had it": vary("study"),
            "channels and positions kept apart": vary("mended-reshape", **STUDYS_EMBEDDING),
            "query norm for each head and channel": vary("mended-query-norm", **STUDYS_EMBEDDING),
            "value norm over channels": vary("mended-value-norm", **STUDYS_EMBEDDING),
            "embeddings of a stage its own": vary(**STUDYS_EMBEDDING),
            "relative embeddings": vary(share_embeddings=True),
            "per-layer embeddings": vary(),
        },
    ),
    "learning_rate": Experiment(
        "How sensitive are both to the learning rate (study, Figure 10)? Chosen on a tenth of the training images.",
        {
            f"{name}, {rate:g}": vary(model=model, initial_lr=rate, validation_fraction=0.1)
            for name, model in (("ResNet-50", "baseline"), ("λ-ResNet-50", "lambda"))
            for rate in RATES
        },
    ),
    "layers": Experiment(
        "What do other layers in the same bottlenecks come to (paper, Tables 3 and 4)?",
        {
            "convolution": vary(model="baseline", **CIFAR_STEM),
            "convolution + SE": vary("squeeze-excitation", model="baseline", **CIFAR_STEM),
            "self-attention, global": vary("self-attention", model="baseline", **CIFAR_STEM),
            "self-attention, 7×7": vary("local-self-attention", model="baseline", **CIFAR_STEM),
            "linear attention": vary("linear-attention", model="baseline", **CIFAR_STEM),
            "λ, global": vary(**CIFAR_STEM),
            "λ, 7×7": vary(scope=7, **CIFAR_STEM),
            "λ, shared embeddings": vary(share_embeddings=True, **CIFAR_STEM),
            "λ, u = 4": vary(intra_depth=4, **CIFAR_STEM),
        },
    ),
    "ablation": Experiment(
        "What does each part of the lambda layer contribute?",
        {
            "as it is": vary(**CIFAR_STEM),
            "content only": vary(position="none", **CIFAR_STEM),
            "position only": vary("position-only", **CIFAR_STEM),
            **{f"scope {r}×{r}": vary(scope=r, **CIFAR_STEM) for r in (3, 7, 15)},
            **{
                f"k = {k}, h = {h}, u = {u}": vary(key_depth=k, heads=h, intra_depth=u, **CIFAR_STEM)
                for k, h, u in DEPTHS_AND_HEADS
                if (k, h, u) != (16, 4, 1)
            },
            "keys without softmax": vary("no-softmax", **CIFAR_STEM),
            "queries not normalised": vary("no-query-norm", **CIFAR_STEM),
            "values not normalised": vary("no-value-norm", **CIFAR_STEM),
            "E starts as N(0, 0.1²)": vary("embedding-scale-0.1", **CIFAR_STEM),
            "E starts as N(0, 0.01²)": vary("embedding-scale-0.01", **CIFAR_STEM),
            "imagenet stem": vary(),
        },
    ),
    "hybrids": Experiment(
        "In which stages do lambda layers pay (paper, Table 12)? Top-1 against images per second.",
        {word: vary(stages=word) for word in WORDS},
    ),
    "best_tuning": Experiment(
        "Which learning rate do the candidates for `best` take? Chosen on a tenth of the training images.",
        {
            f"{name}, {rate:g}": vary(**BEST, **settings, initial_lr=rate, validation_fraction=0.1)
            for name, settings in BEST_NETWORKS.items()
            for rate in (0.005, 0.01, 0.02, 0.04)
        },
        seeds=(0,),
    ),
    "best": Experiment(
        "How far does a λ-ResNet-50 come, and is it above the equally tuned ResNet-50?",
        {name: vary(**BEST, **settings, initial_lr=0.02) for name, settings in BEST_NETWORKS.items()},
        seeds=(0, 1, 2, 3, 4),
    ),
}


# ---------------------------------------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; the exit code is 0 where nothing is left to do, else 1, or 128 + a signal."""
    options = parse(argv)
    if options.list:
        list_experiments(options.only)
        return 0
    conditions = find_conditions(options)
    runs = choose_runs(options, conditions)
    if options.dry_run:
        dry_run(runs, conditions, options.jobs)
        return 0
    return carry_out_all(runs, conditions, options.jobs, options.keep_checkpoints)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="experiments.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list the experiments and their runs, and leave")
    add("--dry-run", "--dry_run", action="store_true", help="list what is to do, measure how long it takes, and leave")
    add("--only", nargs="+", metavar="NAME", default=list(EXPERIMENTS), help="these experiments (default: all)")
    add("--runs", nargs="+", metavar="PATTERN", default=["*"], help="of their runs those with such a name")
    add("--without", nargs="+", metavar="PATTERN", default=[], help="and not with such a name")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="these seeds (default: those of the experiment)")
    add(
        "--scale",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="SHARE",
        help="share of the epochs and, where a second one is given, another share of the training images",
    )
    add("--jobs", type=int, default=1, help="runs at once; on the CPU they share out its cores")
    add("--dataset", default="cifar10", choices=FIELDS["dataset"].metadata["limits"]["choices"], help="as for a run")
    add("--data_dir", help="as for a run")
    add("--data_name", help="the data set's name beside every figure; an imagefolder needs one")
    add("--device", default="auto", help="as for a run")
    add("--precision", default="auto", help="as for a run")
    add("--runs_dir", type=Path, default=FOLDER, help="folder of the runs of experiments")
    add(
        "--keep_checkpoints",
        action="store_true",
        help="do not delete checkpoints and TensorBoard's pictures of embeddings of runs that are done",
    )
    options = parser.parse_args(argv)
    if unknown := set(options.only) - EXPERIMENTS.keys():
        raise InputError(
            f"only: there is no experiment {', '.join(sorted(unknown))}; there is {', '.join(EXPERIMENTS)}"
        )
    if len(options.scale) > 2 or not all(0.0 < share <= 1.0 for share in options.scale):
        raise InputError(
            "scale: takes one or two numbers above 0, at most 1: the share of the epochs, that of the images"
        )
    if options.jobs < 1:
        raise InputError(f"jobs: {options.jobs} is not allowed; takes a whole number, at least 1")
    return options


def find_conditions(options: argparse.Namespace) -> Conditions:
    """Data, device, precision and scale, settled on this machine."""
    name = options.data_name or NAMES.get(options.dataset)
    if name is None:
        raise InputError(
            'data_name: an imagefolder has no name to stand beside its figures; give it one, such as "Birds"'
        )
    device = find_device(options.device)
    return Conditions(
        dataset=options.dataset,
        data_dir=project_path(options.data_dir) if options.data_dir else FIELDS["data_dir"].default,
        data=name,
        device=str(device),
        precision=choose_precision(options.precision, device),
        epochs_scale=options.scale[0],
        images_scale=options.scale[-1],
        root=options.runs_dir,
    )


def choose_runs(options: argparse.Namespace, conditions: Conditions) -> dict[Run, str]:
    """The runs that are asked for, each once, and the first experiment that has it.

    The first seed of all comes before the second of any: whenever the time is up, there is something to compare.
    """
    chosen: list[tuple[int, Run, str]] = []
    for name in options.only:
        experiment = EXPERIMENTS[name]
        for place, seed in enumerate(options.seeds or experiment.seeds):
            for variation in experiment.variations.values():
                if _matches(variation.name, options.runs) and not _matches(variation.name, options.without):
                    chosen.append((place, Run(variation, seed, conditions), name))
    if not chosen:
        raise InputError(f"runs: no run is called {' or '.join(options.runs)}; --list has their names")
    runs: dict[Run, str] = {}
    for _, run, name in sorted(chosen, key=lambda entry: entry[0]):
        runs.setdefault(run, name)
    return runs


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def list_experiments(names: Iterable[str]) -> None:
    for name in names:
        experiment = EXPERIMENTS[name]
        count = len(experiment.variations) * len(experiment.seeds)
        print(f"{name}: {experiment.question}\n  {count} runs, seeds {', '.join(map(str, experiment.seeds))}")
        for label, variation in experiment.variations.items():
            print(f"  {label:42} {variation.name}")
        print()


def command(conditions: Conditions, *words: str) -> str:
    """The command line with these words under these conditions."""
    words = list(words)
    if conditions.scale != "full":
        words += ["--scale", f"{conditions.epochs_scale:g}", f"{conditions.images_scale:g}"]
    if conditions.dataset != "cifar10":
        words += ["--dataset", conditions.dataset]
    if conditions.data_dir != FIELDS["data_dir"].default:
        words += ["--data_dir", conditions.data_dir]
    if conditions.data != NAMES.get(conditions.dataset):
        words += ["--data_name", conditions.data]
    words += ["--device", torch.device(conditions.device).type, "--precision", conditions.precision]
    return "python experiments.py " + shlex.join(words)


# ------------------------------------------------------------------------------------------------------ the runs


def carry_out_all(runs: dict[Run, str], conditions: Conditions, jobs: int, keep_checkpoints: bool) -> int:
    """Do all the runs, `jobs` at a time, each in a process; the exit code."""
    waiting = [run for run in runs if state(run) in ("to do", "cut off")]
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done; into {shown(conditions.folder)}")
    context, failed, told = multiprocessing.get_context("spawn"), 0, False
    active: dict[BaseProcess, Run] = {}
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="runs", unit="run", disable=hide_bar())
    with StopRequest() as stop, bar:
        while active or (waiting and not stop() and not failed):
            while waiting and len(active) < jobs and not stop() and not failed:
                run = waiting.pop(0)
                arguments = (run, threads(conditions, jobs), facts(run, runs[run], jobs), keep_checkpoints)
                process = context.Process(target=work, args=arguments)
                process.start()
                active[process] = run
            bar.set_postfix_str(", ".join(run.label for run in active.values()))
            if stop() and not told:
                told = True  # once: a second signal ends a run without a checkpoint
                for process in active:
                    process.terminate()
            wait([process.sentinel for process in active], timeout=PATIENCE)
            for process in [process for process in active if not process.is_alive()]:
                process.join()
                failed += not ended(active.pop(process), process)
                bar.update()
    if stop.signal:
        say("stopped; the same command goes on")
        return 128 + stop.signal
    return 1 if failed else 0


def say(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()


def state(run: Run) -> str:
    """`to do`, or what its record says."""
    record = run.record()
    return record.state if record else "to do"


def ended(run: Run, process: BaseProcess) -> bool:
    """Tell how a run's process came out; False where it ended for no reason that is a result."""
    record = run.record()
    if record and record.state == "done":
        row = record.rows[-1]
        time = sum(row["train_seconds"] + row["test_seconds"] for row in record.rows)
        say(f"{run.label}: top-1 {row['test_top1']:.2f} % (test), {time:.0f} s")
        return True
    if record and record.failure:
        say(f"{run.label}: {record.failure['kind']}: {record.failure['message']}")
        return True
    if process.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
        return True
    lines = (run.folder / OUTPUT).read_text(encoding="utf-8").strip().splitlines()
    last = lines[-1] if lines else "nothing was printed"
    say(f"{run.label} ended with exit code {process.exitcode}: {last} ({shown(run.folder / OUTPUT)})")
    return False


def threads(conditions: Conditions, jobs: int) -> int | None:
    """Threads of each of several runs at once on a CPU."""
    if conditions.device != "cpu":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def facts(run: Run, experiment: str, jobs: int) -> dict[str, Any]:
    """What config.json says of a run beside its settings."""
    conditions = run.conditions
    return {
        "command": command(conditions, "--only", experiment, "--runs", run.variation.name, "--seeds", str(run.seed)),
        "experiment": {
            "run": run.variation.name,
            "network": run.variation.network,
            "data": conditions.data,
            "epochs_scale": conditions.epochs_scale,
            "images_scale": conditions.images_scale,
            "jobs": jobs,
        },
    }


# ------------------------------------------------------------------------------------------------ the estimate


def dry_run(runs: dict[Run, str], conditions: Conditions, jobs: int) -> None:
    """Print what is to do and how long it takes here, and keep the estimate for the report."""
    device = torch.device(conditions.device)
    number = threads(conditions, jobs)
    if number:
        torch.set_num_threads(number)
    variations = list(dict.fromkeys(run.variation for run in runs))
    first = {run.variation: run for run in reversed(runs)}
    estimates = {}
    for variation in tqdm(variations, "measuring", leave=False, disable=hide_bar()):
        estimates[variation.name] = estimate(first[variation], device)
    width = max(len(variation.name) for variation in variations)
    print(f"{'run':{width}}{'seeds: done':>12}{'to do':>7}{'epochs':>8}{'s / epoch':>11}{'h / run':>9}")
    total = 0.0
    for variation in variations:
        states = [state(run) for run in runs if run.variation == variation]
        to_do = sum(name in ("to do", "cut off") for name in states)
        epochs, each = first[variation].args.epochs, estimates[variation.name]
        hours = epochs * each / 3600
        total += 0.0 if math.isnan(hours) else to_do * hours
        print(f"{variation.name:{width}}{len(states) - to_do:>12}{to_do:>7}{epochs:>8}{each:>11.1f}{hours:>9.2f}")
    shared = f", {jobs} at once" if jobs > 1 else ""
    cpu = conditions.device == "cpu"
    # several runs on a GPU may be done sooner than one after the other, and never much later
    together = jobs if cpu else 1
    print(f"about {total / together:.1f} h on {describe_device(device)}{shared}; nan: it does not fit into memory")
    content = {
        "device": describe_device(device),
        "jobs": jobs,
        "hours_per_run": {
            variation.name: first[variation].args.epochs * estimates[variation.name] / 3600 / together
            for variation in variations
        },
    }
    _keep_estimates(conditions.folder / ESTIMATES, content)


def _keep_estimates(path: Path, content: dict[str, Any]) -> None:
    """Write the estimates, beside those of other runs on the same device."""
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if (old["device"], old["jobs"]) == (content["device"], content["jobs"]):
            content["hours_per_run"] = old["hours_per_run"] | content["hours_per_run"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def estimate(run: Run, device: torch.device) -> float:
    """Seconds of an epoch: as its logs have it, or from a few measured steps; nan where memory does not suffice."""
    record = run.record()
    if record and record.rows:
        return statistics.mean(row["train_seconds"] + row["test_seconds"] for row in record.rows)
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


if __name__ == "__main__":
    with one_line_errors():
        try:
            code = main()
        except KeyboardInterrupt:
            code = 130
    sys.exit(code)
