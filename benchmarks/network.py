"""`python benchmark.py train` and `infer`: whole networks, ours beside the plain ones that they are to beat.

Every row is a process of its own, so that nothing which one sets for its process (how memory is kept, which kernels
were tried) helps another; the processes take turns, so that a disturbance of the machine meets them all.

Plain rows: the study's λ-ResNet and torchvision's ResNet as a user gets them, contiguous, with Adam as it comes.
Our rows: what `main_general.py` trains, on one fixed batch; "augmented" with new images from its loader in each step,
"compiled" by torch.compile, "no graph" without the CUDA graph that a GPU replays else.
"""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, repeat
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acceleration.devices import PRECISIONS, cpu_computes_in_bf16
from acceleration.fast_layers import folded
from benchmarks.measuring import Timing, peak_memory, seconds
from command_line.errors import InputError
from data_preprocessing import AugmentedLoader
from data_sources.batches import Batch
from data_sources.in_memory import PlainLoader
from data_sources.normalisation import Normalisation
from LabelSmoothing import LabelSmoothing
from model_preparation import Training, prepare_training
from nntrain import TrainingStep
from reference_networks.plain import build_plain_resnet, build_plain_study_network
from user_input import UserInput

IMAGE_SIZE, CLASSES = 32, 10
WORDS = ("LCCC", "LLCC", "LLLC", "CLLL", "CCLL", "CCCL")
WARM_UP = 2  # steps before the first turn
# Images in a step: the study's batch; with the cifar stem, whose maps are 16 times as large, fewer on a CPU
BATCH_SIZES = {"imagenet": 128, "cifar": 16}
BUDGET = 45.0  # seconds for the turns of a group of rows; a third of it with --quick
PLAIN = {
    "torchvision's ResNet-50": lambda stem: build_plain_resnet(stem=stem, num_classes=CLASSES),
    "the study's λ-ResNet-50": lambda stem: build_plain_study_network(
        image_size=IMAGE_SIZE, num_classes=CLASSES, stem=stem
    ),
}
OURS = {
    "ResNet-50": {"model": "baseline"},
    "λ-ResNet-50": {"model": "lambda"},
    **{f"hybrid {word}": {"model": "lambda", "stages": word} for word in WORDS},
}
# What is timed beside, for the networks that are compared, with the imagenet stem: the variant's settings
VARIANTS: dict[str, dict[str, Any]] = {
    "augmented": {},
    "compiled": {"compile": True},
    "no graph": {"cuda_graph": False},
}
IMAGES = 12_800  # in memory, of the augmented rows
# What stands beneath a table
MATRIX_RATE = (
    "of matrix rate: operations of a step by its time, as a share of {rate:,.0f} GFLOP/s,\n"
    "  which one large matrix product in {precision} reaches on this machine"
)
ABOVE = (
    "\n  * more than all of it: convolutions may take fewer operations than are counted (Winograd's way),"
    "\n    or the machine was slower while the product was timed"
)
COMPARED = dict.fromkeys(OURS, "torchvision's ResNet-50") | {"λ-ResNet-50": "the study's λ-ResNet-50"}


@dataclass(frozen=True)
class Row:
    """One network as it is timed."""

    network: str
    stem: str
    precision: str
    batch_size: int
    task: str  # train, infer, or infer folded: batch norms folded into the convolutions before them
    variant: str = ""  # of training; see VARIANTS

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.network, self.variant, "folded" if "folded" in self.task else "")))

    @property
    def label(self) -> str:
        return f"{self.name}, {self.stem} stem, {self.precision}"


class Prepared(NamedTuple):
    """What is timed, and the same in two other forms to measure what cannot be measured of it."""

    step: Callable[[], object]
    single: Callable[[], object]  # operation by operation, and not a CUDA graph, of whose replay no memory is seen
    plain: Callable[[], object]  # nor compiled: of that no FLOPs are seen
    model: nn.Module


class Description(NamedTuple):
    """What a row's process tells before it is timed."""

    parameters: int
    flops: int  # of a step, by PyTorch's counter
    memory: float  # MiB, highest in a step


def benchmark_train(device: torch.device, quick: bool) -> dict[str, Any]:
    """Steps of training: forward, loss, backward, optimizer."""
    return _benchmark(device, quick, ["train"])


def benchmark_infer(device: torch.device, quick: bool) -> dict[str, Any]:
    """Logits of a batch in evaluation mode."""
    return _benchmark(device, quick, ["infer", "infer folded"])


def rows(device: torch.device, quick: bool, tasks: list[str]) -> list[Row]:
    """The rows of a benchmark; `quick` keeps the two networks and their plain counterparts, in float32."""
    if quick:
        networks, stems, precisions = [*PLAIN, "ResNet-50", "λ-ResNet-50"], ["imagenet"], ["fp32"]
    else:
        networks, stems = [*PLAIN, *OURS], ["imagenet", "cifar"]
        precisions = precisions_of(device)
    return [
        Row(network, stem, precision, 128 if device.type == "cuda" else BATCH_SIZES[stem], task, variant)
        for stem in stems
        for precision in precisions
        for task in tasks
        for network in networks
        # the plain rows are what a plain user has: float32, nothing folded
        if network in OURS or (precision == "fp32" and "folded" not in task)
        for variant in ("", *(_variants(device, precision) if (task, stem) == ("train", "imagenet") else ()))
        if not variant or (network in ("ResNet-50", "λ-ResNet-50") and not quick)
    ]


def precisions_of(device: torch.device) -> list[str]:
    """Those that the device computes in: a CPU that only imitates bf16 would take minutes for a step."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"]
    return ["fp32", "bf16"] if cpu_computes_in_bf16() else ["fp32"]


def _variants(device: torch.device, precision: str) -> list[str]:
    if device.type == "cuda":
        return list(VARIANTS)
    return ["augmented", "compiled"] if precision == "fp32" else []


def _benchmark(device: torch.device, quick: bool, tasks: list[str]) -> dict[str, Any]:
    results = []
    everything = rows(device, quick, tasks)
    if not quick and "bf16" not in precisions_of(device):
        print("bf16 is left out: this CPU does not compute in it")
    # a group takes turns: as many processes as the memory must hold at once
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in everything:
        groups.setdefault((row.stem, row.precision), []).append(row)
    rates = {name: matrix_rate(device, name) for name in {row.precision for row in everything}}
    for group in groups.values():
        results += measure_rows(group, device, BUDGET / 3 if quick else BUDGET)
        print_rows(results[-len(group) :], rates)
    summary = compare(results)
    for line, ratio in summary.items():
        print(f"{line}: {ratio:.2f} times as fast")
    return {
        "unit": "milliseconds per step of a batch: median, lower and upper quartile",
        "memory": "highest in one step, MiB",
        "matrix_products_per_second": rates,
        "summary": summary,
        "rows": results,
    }


# ------------------------------------------------------------------------------------------------- the processes


def measure_rows(group: list[Row], device: torch.device, budget: float) -> list[dict[str, Any]]:
    """Time the rows in turns, each in its process: a step at a time, 4 to 50 turns within about `budget` seconds.

    Raises:
        InputError: a row's process has ended.
    """
    timed = [RowProcess(row, device) for row in group]
    times, started = timed[0].times, time.perf_counter()
    while len(times) < 4 or (len(times) < 50 and time.perf_counter() - started < budget):
        for each in timed:
            each.times.append(each.answer("time"))
    for each in timed:
        each.end()
    return [result(each.row, each.description, each.times) for each in timed]


class RowProcess:
    """A row's process as its parent sees it: it is there, and has taken its first steps, when this is made."""

    def __init__(self, row: Row, device: torch.device) -> None:
        self.row = row
        self.times: list[float] = []  # milliseconds
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = theirs, row, str(device), torch.get_num_threads()
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # as long as it is open here, too, the end of the process is not seen
        self.description: Description = self.answer()  # awaited: the rows' first steps shall not disturb each other

    def answer(self, question: str | None = None) -> Any:
        """What the process says, to a question or of itself.

        Raises:
            InputError: it has ended.
        """
        try:
            if question is not None:
                self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            raise InputError(
                f"{self.row.label}: its process has ended with code {self.process.exitcode}; what it said stands "
                "above, and -9 without a word is mostly a lack of memory: close other programs, or take --quick"
            ) from error

    def end(self) -> None:
        self.pipe.send("end")
        self.process.join()


def serve(pipe: Connection, row: Row, device_name: str, threads: int) -> None:
    """A row's process: describe the step, then time it whenever the parent says so."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    torch.manual_seed(0)
    prepared = prepare(row, device)
    for _ in range(WARM_UP):
        prepared.step()
    with FlopCounterMode(display=False) as counter:
        prepared.plain()
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    pipe.send(Description(parameters, counter.get_total_flops(), peak_memory(prepared.single, device)))
    while pipe.recv() == "time":
        pipe.send(1e3 * seconds(prepared.step, device))


def prepare(row: Row, device: torch.device) -> Prepared:
    """The step of a row, on one fixed batch where it is not augmented, and its network."""
    images = torch.randn(row.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.randint(CLASSES, (row.batch_size,), device=device)
    if row.network in PLAIN:
        model = PLAIN[row.network](row.stem).to(device)
        if row.task == "train":
            optimizer = torch.optim.Adam(model.parameters(), 5e-4, (0.9, 0.9999), weight_decay=1e-4)
            step = plain_step(model, images, labels, optimizer)
        else:
            step = inference(model.eval(), images, device, None)
        return Prepared(step, step, step, model)
    settings = OURS[row.network] | VARIANTS.get(row.variant, {})
    args = UserInput(stem=row.stem, precision=row.precision, dataset="digits", batch_size=row.batch_size, **settings)
    training = prepare_training(args, CLASSES, device)
    if row.task == "train":
        fixed = images.contiguous(memory_format=torch.channels_last), labels
        return training_steps(
            training, augmented(row.batch_size, device) if row.variant == "augmented" else repeat(fixed)
        )
    model = folded(training.model) if "folded" in row.task else training.model.eval()
    step = inference(model, images.contiguous(memory_format=torch.channels_last), device, PRECISIONS[row.precision])
    return Prepared(step, step, step, model)


def training_steps(training: Training, batches: Iterator[Batch]) -> Prepared:
    """A step as `main_general.py` takes it."""
    training.model.train()
    step = TrainingStep(training)
    plain = TrainingStep(dataclasses.replace(training, parallel=training.model))
    return Prepared(
        lambda: step(*next(batches)),
        lambda: step.take(*next(batches)),
        lambda: plain.take(*next(batches)),
        training.model,
    )


def augmented(batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Batches of random images from the loader of small images, epoch after epoch."""
    pixels = torch.randint(256, (IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(CLASSES, (IMAGES,), device=device)
    plain = PlainLoader(pixels, labels, batch_size, Normalisation((0.5,) * 3, (0.25,) * 3))
    loader = AugmentedLoader.of(plain, seed=0, flip=True)
    return chain.from_iterable(loader.batches(epoch) for epoch in count(1))


def plain_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer):
    """A step of training as it is commonly written."""
    loss_function = LabelSmoothing(0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss_function(model(images), labels).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: torch.Tensor, device: torch.device, dtype: torch.dtype | None):
    """The logits of one batch."""

    @torch.inference_mode()
    def step() -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return model(images)

    return step


# --------------------------------------------------------------------------------------------------- the figures


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of this machine's own matrix product, the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=PRECISIONS[precision] or torch.float32) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def result(row: Row, description: Description, times: list[float]) -> dict[str, Any]:
    median, (low, _, high) = statistics.median(times), statistics.quantiles(times, n=4)
    return {
        "row": row.label,
        **{
            name: getattr(row, name)
            for name in ("name", "network", "stem", "precision", "batch_size", "task", "variant")
        },
        "step_ms": Timing(median, low, high)._asdict(),
        "images_per_second": row.batch_size / median * 1e3,
        "parameters": description.parameters,
        "flops": description.flops,
        "peak_memory_mib": description.memory,
    }


def print_rows(results: list[dict[str, Any]], rates: dict[str, float]) -> None:
    """A table for people."""
    first = results[0]
    rate = rates[first["precision"]]
    print(f"\n{first['stem']} stem, batch {first['batch_size']}, {first['precision']}")
    print(f"  {'':34}{'step ms':>22}{'images/s':>10}{'peak MiB':>10}{'GFLOP':>8}{'of matrix rate':>16}")
    above = ""
    for row in sorted(results, key=lambda row: row["step_ms"]["median"]):
        spread = "{median:.1f} ({low:.1f} to {high:.1f})".format(**row["step_ms"])
        share = row["flops"] / row["step_ms"]["median"] * 1e3 / rate
        above = ABOVE if share > 1 else above
        print(
            f"  {row['name']:34}{spread:>22}{row['images_per_second']:>10.0f}{row['peak_memory_mib']:>10.0f}"
            f"{row['flops'] / 1e9:>8.1f}{f'{share:.0%}' + '*' * (share > 1):>16}"
        )
    print(f"  {MATRIX_RATE.format(rate=rate / 1e9, precision=first['precision'])}{above}")


def compare(results: Iterable[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast our rows are as the plain ones, of the same stem and batch."""
    results = list(results)
    plain = {
        (r["network"], r["stem"], r["batch_size"]): r["step_ms"]["median"] for r in results if r["network"] in PLAIN
    }
    lines = {}
    for row in results:
        if row["network"] in ("ResNet-50", "λ-ResNet-50"):
            other = COMPARED[row["network"]]
            reference = plain[other, row["stem"], row["batch_size"]]
            name = f"{row['row']}, batch {row['batch_size']}, against {other} in fp32"
            lines[name] = round(reference / row["step_ms"]["median"], 2)
    return lines
