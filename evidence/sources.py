"""What the two sources report, to stand beside figures of ours: the study on CIFAR-10, the paper on ImageNet."""

import csv
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

CURVES = Path(__file__).with_name("study_curves.csv")
RATES = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)  # study, Figure 10
R, S = "ResNet-50", "λ-ResNet-50"  # as the study calls them
STUDYS_RATES = {
    R: dict(zip(RATES, (84.5, 84.6, 82.2, 69.5, 60.5), strict=True)),
    S: dict(zip(RATES, (80.2, 81.4, 80.6, 71.0, 64.7), strict=True)),
}
# Top-1 on ImageNet (ResNet-50, 224×224), where ours has the same layer in its place. The paper's linear attention and
# global self-attention were added to convolutions, and ours replace them: they are no counterparts.
PAPER = {
    "layers": {
        "convolution": "76.9",
        "convolution + SE": "77.6",
        "self-attention, 7×7": "77.4",
        "λ, global": "78.4",
        "λ, 7×7": "78.1",
        "λ, shared embeddings": "78.0",
        "λ, u = 4": "78.9",
    },
    "ablation": {"as it is": "78.4", "content only": "68.8", "position only": "78.1"},
    "hybrids": {
        "CCCC": "76.9",
        "LCCC": "77.3",
        "LLCC": "77.2",
        "LLLC": "77.8",
        "LLLL": "78.4",
        "CLLL": "78.3",
        "CCLL": "78.3",
        "CCCL": "77.3",
    },
}
# The study's two runs under the labels of the experiments that repeat them
STUDYS_RUNS = {"R": R, "S": S, "ResNet-50": R, "λ-ResNet-50": S}
REPEATED = ("stage_1", "stage_3", "study")  # with its schedule of 90 epochs


@cache
def study_curve(network: str, part: str) -> tuple[float, ...]:
    """Top-1 in percent after each of the 90 epochs, one seed, both parts in training mode.

    Args:
        network: as the study calls it.
        part: `test` or `train`.
    """
    with open(CURVES, encoding="utf-8", newline="") as file:
        return tuple(float(row[f"{part}_top1"]) for row in csv.DictReader(file) if row["model"] == network)


def study_mean(network: str, part: str, epochs: Sequence[int]) -> float:
    """Mean of that curve over these epochs, the first of which is 1."""
    curve = study_curve(network, part)
    return statistics.mean(curve[epoch - 1] for epoch in epochs)


def text() -> str:
    """The section of RESULTS.md."""
    rates = "\n".join(
        f"| top-1 test at initial learning rate {rate:g} (%) | {STUDYS_RATES[R][rate]} | {STUDYS_RATES[S][rate]} |"
        for rate in RATES
    )
    paper = "\n".join(
        f"- {part}: {', '.join(f'{name} {value}' for name, value in values.items())}" for part, values in PAPER.items()
    )
    return f"""## Figures of the study and of the paper

For the eye, not for comparison with other data than theirs. The study, CIFAR-10, 90 epochs, one seed:

| | {R} | {S} |
| --- | --- | --- |
| top-1 test / training (%) | 84.6 / 95.6 | 81.4 / 94.2 |
| loss test / training | 0.54 / 0.61 | 0.64 / 0.64 |
| parameters (M) | 23.5 | 12.8 |
| epoch in its text (s) | 50.92 | 38.96 |
| epoch in its log (s) | 51.6 | 79.7 |
{rates}

The learning rates are read off its Figure 10. Its curves, epoch by epoch, are in `evidence/study_curves.csv`.

The paper, top-1 on ImageNet (%), where ours has a counterpart:

{paper}
"""
