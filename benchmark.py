"""Timings and peak memory on this machine: a table for people, and a JSON file with the device and versions.

    python benchmark.py layer            # every way of computing the lambda layer; two CPU cores: about fifteen minutes
    python benchmark.py train            # training steps of whole networks, beside plain ones; about fifteen
    python benchmark.py infer            # the same without gradients; about fifteen
    python benchmark.py scaling          # how time and memory grow, beside attention and convolution; about five
    python benchmark.py convert          # timm's and lambda-networks' layers beside ours in their place; about ten

The files go to results/benchmarks/, to be committed. Each with `--quick` gives an answer in about a minute, with a few
rows and turns; its file goes to results/quick/, which Git ignores.

    python benchmark.py fit FILE         # the costs of the layer's ways that a file of `layer` shows; seconds
    python benchmark.py parameters       # parameters of ImageNet λ-ResNets beside the paper's counts; seconds
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

from command_line.errors import InputError, one_line_errors
from command_line.evidence_tools import BENCHMARKS, read_benchmark

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_benchmark(__doc__)

import torch

from acceleration.devices import describe_device, find_device
from benchmarks import fit_costs, parameter_table
from benchmarks.converted import benchmark_convert
from benchmarks.layer import benchmark_layer
from benchmarks.measuring import write_report
from benchmarks.network import benchmark_infer, benchmark_train
from benchmarks.scaling import benchmark_scaling, plot

MEASURE = (benchmark_layer, benchmark_train, benchmark_infer, benchmark_scaling, benchmark_convert)
FUNCTIONS = dict(zip(BENCHMARKS, MEASURE, strict=True))


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, or make the table, that the command line names."""
    arguments = read_benchmark(__doc__, argv)
    if arguments.command == "fit":
        fit_costs.print_costs(arguments.file)
    elif arguments.command == "parameters":
        parameter_table.print_table()
    else:
        measure(arguments.command, arguments.quick, choose_device(arguments.device))


def measure(benchmark: str, quick: bool, device: torch.device) -> None:
    """Run a benchmark, and write what it has found."""
    torch.manual_seed(0)
    content = FUNCTIONS[benchmark](device, quick)
    path = write_report(benchmark, quick, device, content)
    if benchmark == "scaling":
        plot(content, describe_device(device), path.with_suffix(".svg"))
    print(f"\nPeak memory: {content['memory']}.\nWritten to {path}")


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes cuda where there is one, else the CPU."""
    device = find_device(name)
    if device.type == "mps":  # PyTorch does not tell its peak memory
        if name != "auto":
            raise InputError(f"device: {name} cannot be measured; takes auto, cpu, cuda or cuda:<index>")
        device = torch.device("cpu")
    return device


if __name__ == "__main__":
    with one_line_errors():
        main()
