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

from command_line.errors import InputError, one_line_errors
from command_line.evidence_tools import read_experiments
from user_input import DATASETS, UserInput

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_experiments(__doc__, DATASETS)

import argparse
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase

from acceleration.devices import choose_precision, find_device
from command_line.paths import project_path
from evidence.estimates import dry_run
from evidence.processes import carry_out_all
from evidence.questions import EXPERIMENTS
from evidence.runs import NAMES, Conditions, Run


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
    """What the command line says, with the names of the experiments."""
    options = read_experiments(__doc__, DATASETS, argv)
    asked = {name: one for name, one in EXPERIMENTS.items() if one.dataset in (None, options.dataset) or options.list}
    options.only = options.only or list(asked)
    if unknown := set(options.only) - EXPERIMENTS.keys():
        raise InputError(
            f"only: there is no experiment {', '.join(sorted(unknown))}; there is {', '.join(EXPERIMENTS)}"
        )
    if others := [name for name in options.only if name not in asked]:
        raise InputError(f"only: {others[0]} is of one data set alone: add --dataset {EXPERIMENTS[others[0]].dataset}")
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
