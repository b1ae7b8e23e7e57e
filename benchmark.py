"""Timings and peak memory on this machine: a table for people, and a JSON file with the device and versions.

    python benchmark.py layer            # every way of computing the lambda layer; two CPU cores: about ten minutes
    python benchmark.py train            # training steps of whole networks, beside plain ones; about fifteen
    python benchmark.py infer            # the same without gradients; about fifteen
    python benchmark.py scaling          # how time and memory grow, beside attention and convolution; about five
    python benchmark.py convert          # timm's and lambda-networks' layers beside ours in their place; about ten

Each with `--quick` gives an answer in about a minute. The files go to results/benchmarks/.
"""

import argparse

import torch

from benchmarks.converted import benchmark_convert
from benchmarks.layer import benchmark_layer
from benchmarks.measuring import write_report
from benchmarks.network import benchmark_infer, benchmark_train
from benchmarks.scaling import benchmark_scaling, plot
from command_line.errors import InputError, Parser, one_line_errors
from model_preparation import describe_device, find_device

BENCHMARKS = {
    "layer": benchmark_layer,
    "train": benchmark_train,
    "infer": benchmark_infer,
    "scaling": benchmark_scaling,
    "convert": benchmark_convert,
}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark that the command line names."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="a few rows, in about a minute")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    arguments = parser.parse_args(argv)
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    content = BENCHMARKS[arguments.benchmark](device, arguments.quick)
    name = arguments.benchmark + ("-quick" if arguments.quick else "")
    command = f"python benchmark.py {name.replace('-', ' --')}"
    path = write_report(name, command, device, content)
    if arguments.benchmark == "scaling":
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
