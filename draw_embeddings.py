"""Draw what a trained network has learnt about positions: its relative position embeddings, and how far they reach.

    python draw_embeddings.py --checkpoint runs/Lambda/<run> --out pictures      # a few seconds

`embeddings_<stage>.png` has a row for each lambda layer: E as a function of the offset m − n, whose middle is the
position itself, one panel for each of the k key channels (and u), then its root mean square over k and u. Where that is
large, the position lambdas λ_p[n] = Σ_m E[n, m] V[m] listen. Embeddings are drawn from N(0, 1), the same at every
offset, so what stands out has been learnt. `reach.png` has that root mean square by distance. Of an absolute
embedding, the mean over all pairs of positions with the same offset is drawn. During training, TensorBoard gets the
pictures every `checkpoint_every` epochs, under Images.

k key depth · u intra-depth · n query positions · m context positions · offsets: 2H−1 × 2W−1, or the scope's r × r
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from command_line.errors import InputError, Parser, one_line_errors
from lambda_layer import LambdaLayer
from run_state.run_folder import shown
from run_state.trained_network import load_network

STAGES = {"layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5"}
MOST_PANELS = 16  # key channels that are drawn of a layer
PANEL = 45  # pixels, at least about, of a panel's side
WHITE = 255


def main(argv: list[str] | None = None) -> None:
    """Draw the embeddings of the checkpoint that the command line names."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint, or a run's folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the pictures into")
    arguments = parser.parse_args(argv)
    stages = stage_embeddings(load_network(arguments.checkpoint).model)
    if not stages:
        raise InputError(f"checkpoint: {arguments.checkpoint} has no position embeddings to draw")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures(stages):
            figure.savefig(arguments.out / name, dpi=110)
            print(shown(arguments.out / name))
    except OSError as error:
        raise InputError(f"out: {arguments.out} cannot be written ({error.strerror})") from error


def stage_embeddings(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """By stage and layer, such as `c3` and `c3.1`, E by offset (k, u, *offsets); a shared one stands once."""
    stages: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, LambdaLayer) or layer.embedding is None or id(layer.embedding) in seen:
            continue
        seen.add(id(layer.embedding))
        parts = name.split(".")
        at = next(i for i, part in enumerate(parts) if part in STAGES)  # a wrapper's name may stand before
        stage, block = STAGES[parts[at]], parts[at + 1]
        stages.setdefault(stage, {})[f"{stage}.{int(block) + 1}"] = by_offset(layer)
    return stages


def by_offset(layer: LambdaLayer) -> Tensor:
    """A layer's embedding by the offset m − n: (k, u, *offsets), on the CPU."""
    embedding = layer.embedding.detach().float().cpu()
    if layer.position == "relative":
        return embedding
    size = layer.input_size or ()
    sides = [2 * length - 1 for length in size]
    positions = torch.cartesian_prod(*map(torch.arange, size))  # (n, 2)
    offsets = positions[None] - positions[:, None] + torch.tensor(size) - 1  # (n, m, 2), from 0
    index = (offsets[..., 0] * sides[1] + offsets[..., 1]).flatten()
    pairs = torch.bincount(index, minlength=sides[0] * sides[1])
    sums = torch.zeros(len(pairs), *embedding.shape[2:]).index_add_(0, index, embedding.flatten(0, 1))
    return (sums / pairs[:, None, None]).permute(1, 2, 0).unflatten(2, sides)


def strength(embedding: Tensor) -> Tensor:
    """E (k, u, *offsets) -> its root mean square over k and u, (*offsets)."""
    return embedding.square().mean((0, 1)).sqrt()


def distances(rows: int, columns: int) -> Tensor:
    """(rows, columns): how far, in positions, each offset is from the middle one."""
    y, x = torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2
    return torch.hypot(y[:, None].float(), x[None].float())


def reach(embedding: Tensor) -> float:
    """The mean distance, in positions, of what a query's position lambda sums up, weighted by ‖E‖²."""
    weight = strength(embedding).square()
    return float((distances(*weight.shape) * weight).sum() / weight.sum())


def stage_pictures(model: nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """For each stage (height, width, 3) uint8: a row for each layer, its panels as in the PNG files."""
    for stage, layers in stage_embeddings(model).items():
        rows = [np.hstack([panels(embedding), panel(strength(embedding), "viridis")]) for embedding in layers.values()]
        width = max(row.shape[1] for row in rows)
        yield stage, np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), "edge") for r in rows])


def panels(embedding: Tensor) -> np.ndarray:
    """E (k, u, *offsets) -> (height, width, 3) uint8, a panel for each of k·u; blue below zero, red above."""
    channels = embedding.flatten(0, 1)[:MOST_PANELS]
    most = channels.abs().quantile(0.99) if channels.numel() < 2**24 else channels.abs().max()
    return np.hstack([panel(channel, "RdBu_r", -float(most), float(most)) for channel in channels])


def panel(values: Tensor, colours: str, least: float = 0.0, most: float | None = None) -> np.ndarray:
    """(rows, columns) -> (height, width, 3) uint8, with a white line to the right and below."""
    most = float(values.max()) if most is None else most
    shares = ((values - least) / max(most - least, 1e-12)).numpy()
    pixels = (matplotlib.colormaps[colours](shares)[..., :3] * 255).astype(np.uint8)
    factor = -(-PANEL // max(values.shape))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(pixels, ((0, 2), (0, 2), (0, 0)), constant_values=WHITE)


def figures(stages: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, Figure]]:
    """The name and the figure of each file that the command writes."""
    for stage, layers in stages.items():
        yield f"embeddings_{stage}.png", _stage_figure(layers)
    yield "reach.png", _reach_figure(stages)


def _stage_figure(layers: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(13, 0.5 + 0.95 * len(layers)), layout="constrained")
    axes = figure.subplots(len(layers), 2, squeeze=False, width_ratios=(MOST_PANELS, 2))
    for (left, right), (name, embedding) in zip(axes, layers.items(), strict=True):
        left.imshow(panels(embedding))
        rows, columns = embedding.shape[2:]
        left.set_ylabel(f"{name}\n{rows} × {columns}", rotation="horizontal", ha="right", va="center")
        image = right.imshow(strength(embedding).numpy(), cmap="viridis", vmin=0)
        figure.colorbar(image, ax=right)
        right.set_title(f"mean reach {reach(embedding):.1f}", fontsize=8)
        for one in (left, right):
            one.set(xticks=[], yticks=[])
    figure.suptitle("E by offset, a panel for each key channel; right: their root mean square", fontsize=9)
    return figure


def _reach_figure(stages: dict[str, dict[str, Tensor]]) -> Figure:
    figure = Figure(figsize=(3.2 * len(stages), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    for axes, (stage, layers) in zip(all_axes, stages.items(), strict=True):
        for name, embedding in layers.items():
            far, energy = distances(*embedding.shape[2:]).round().long().flatten(), strength(embedding).square()
            mean = torch.bincount(far, energy.flatten()) / torch.bincount(far)
            axes.plot(mean.sqrt().numpy(), marker=".", label=name)
        axes.set(title=stage, xlabel="distance from n to m, in positions")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
        if len(layers) <= 8:
            axes.legend(fontsize=7)
    all_axes[0].set_ylabel("root mean square of E (1: as drawn)")
    return figure


if __name__ == "__main__":
    with one_line_errors():
        main()
