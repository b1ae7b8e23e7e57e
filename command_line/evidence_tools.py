"""The command lines of what measures and reports, apart from it: so they are read before PyTorch is loaded."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line.errors import InputError, Parser
from command_line.paths import LOGS, PROJECT

BENCHMARKS = ("layer", "train", "infer", "scaling", "convert")
FIT = """Fit the costs by which `lambda_ops/rule.py` chooses among its ways to the timings of `benchmark.py layer`.

    python benchmark.py fit results/benchmarks/layer-<device>-<versions>.json

prints the two lines of `COSTS` for that device, and how the rule would choose by them, and by those that are there now.
"""
PARAMETERS = """Count the parameters of ImageNet λ-ResNets and set them beside the paper's tables.

    python benchmark.py parameters              # a few seconds; on the meta device, so no memory is taken

The paper's rows were counted with a scope of 23×23 positions for u = 1 and of 7×7 for u > 1.
"""


def read_benchmark(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """What benchmark.py's command line says; raises `InputError` for what it must not say."""
    parser = _parser(description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in BENCHMARKS:
        command = commands.add_parser(name)
        command.add_argument("--quick", action="store_true", help="a few rows, in about a minute")
        command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    raw = argparse.RawDescriptionHelpFormatter
    fit = commands.add_parser("fit", description=FIT, formatter_class=raw)
    fit.add_argument("file", type=Path, help="what `benchmark.py layer` has written")
    commands.add_parser("parameters", description=PARAMETERS, formatter_class=raw)
    return parser.parse_args(argv)


def read_experiments(
    description: str | None, datasets: Sequence[str], argv: list[str] | None = None
) -> argparse.Namespace:
    """What experiments.py's command line says; raises `InputError` for what it must not say."""
    options = _experiments(description, datasets).parse_args(argv)
    if len(options.scale) > 2 or not all(0.0 < share <= 1.0 for share in options.scale):
        raise InputError(
            "scale: takes one or two numbers above 0, at most 1: the share of the epochs, that of the images"
        )
    if options.keep_estimates and not options.dry_run:
        raise InputError("keep_estimates: takes --dry-run, which measures them")
    if options.jobs < 1:
        raise InputError(f"jobs: {options.jobs} is not allowed; takes a whole number, at least 1")
    return options


def _experiments(description: str | None, datasets: Sequence[str]) -> Parser:
    parser = Parser(
        prog="experiments.py",
        description=description,
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
    add("--only", nargs="+", metavar="NAME", help="these experiments (default: all)")
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
    add("--dataset", default="cifar10", choices=datasets, help="as for a run")
    add("--data_dir", help="as for a run")
    add("--data_name", help="the data set's name beside every figure; an imagefolder needs one")
    add("--device", default="auto", help="as for a run")
    add("--precision", default="auto", help="as for a run")
    add("--runs_dir", type=Path, default=LOGS, help="folder of the runs of experiments")
    add(
        "--keep_checkpoints",
        action="store_true",
        help="do not delete checkpoints and TensorBoard's pictures of embeddings of runs that are done",
    )
    return parser


def read_report(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """What report.py's command line says; raises `InputError` for what it must not say."""
    parser = _parser(description)
    parser.add_argument("--runs_dir", type=Path, default=LOGS, help="folder of the runs of experiments")
    parser.add_argument("--target", type=Path, default=PROJECT, help="folder for RESULTS.md and results/figures/")
    parser.add_argument("--names", action="store_true", help="list the figures for docs/conclusions.md, and leave")
    parser.add_argument("--runs", type=Path, help="a folder of runs of one's own, to be told in place of the report")
    options = parser.parse_args(argv)
    for name in ("target", "runs_dir", "runs"):
        folder = getattr(options, name)
        if folder and not folder.is_dir():
            raise InputError(f"{name}: there is no folder {folder}")
    return options


def _parser(description: str | None) -> Parser:
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
