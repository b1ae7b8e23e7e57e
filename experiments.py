"""Do the runs that answer the questions of `evidence/questions.py`.

    python experiments.py --list                                  # what there is
    python experiments.py --dry-run --only study     # what is still to do, and how long it takes here; writes nothing
    python experiments.py --only study ladder                     # CIFAR-10, 90 epochs: for a GPU
    python experiments.py --only study --runs lambda baseline --scale 0.08 0.2 --jobs 2      # 7 epochs, 10,000 images
    python report.py                                              # RESULTS.md out of the logs of all the runs

What is done is skipped, what was cut off is resumed, what diverged is kept as it is: the same command goes on after a
Ctrl-C. Every run is a process of its own, with its folder under results/logs/ (see `evidence/runs.py`). A scale
is part of what a run is: runs of different scales never mix. Another copy of a data set gets a name of its own:

    python experiments.py --dataset imagefolder --data_dir data/cifar10-jpeg --data_name "CIFAR-10 (JPEG copy)"
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

import argparse
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from acceleration.devices import choose_precision, find_device
from command_line.errors import InputError, Parser, one_line_errors
from command_line.paths import project_path
from evidence.estimates import dry_run
from evidence.processes import carry_out_all
from evidence.questions import EXPERIMENTS
from evidence.runs import FIELDS, FOLDER, NAMES, Conditions, Run
from user_input import UserInput


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; the exit code is 0 where nothing is left to do, else 1, or 128 + a signal."""
    options = parse(argv)
    if options.list:
        list_experiments(options.only)
        return 0
    conditions = find_conditions(options)
    runs = choose_runs(options, conditions)
    if options.dry_run:
        dry_run(runs, conditions, options.jobs, options.keep_estimates)
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
    add(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="list what is to do, measure how long it takes (seconds for each network), and leave; writes nothing",
    )
    add("--keep_estimates", action="store_true", help="with --dry-run: keep the hours beside the logs, for report.py")
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
    if options.keep_estimates and not options.dry_run:
        raise InputError("keep_estimates: takes --dry-run, which measures them")
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
        data_dir=project_path(options.data_dir) if options.data_dir else UserInput.data_dir,
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


if __name__ == "__main__":
    with one_line_errors():
        try:
            code = main()
        except KeyboardInterrupt:
            code = 130
    sys.exit(code)
