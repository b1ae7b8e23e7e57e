"""Draw what a trained network has learnt about positions: its relative position embeddings, and how far they reach.

    python draw_embeddings.py --checkpoint latest --out pictures      # a few seconds

`embeddings_<stage>.png` has a row for each lambda layer, every panel a function of the offset m − n, in whose middle is
the position itself: E for the first key channels k (and u); beside it E − E₀, what was learnt; and the root mean square
of E − E₀ over all k and u. Where that is large, the position lambdas λ_p[n] = Σ_m E[n, m] V[m] have learnt to listen.
E₀ ~ N(0, 1) is what E began as: it is drawn once more, by the run's seed, or read again from where `init_from` had it.
r is the correlation of E with E₀: near 1, E itself is still the noise that it was drawn as, and only E − E₀ shows
something. `reach.png` has both by distance.

Of an absolute embedding, the mean over all pairs of positions with the same offset is drawn. Layers on maps of 1×1,
which have one offset, are left out. During training, TensorBoard gets pictures of E every `checkpoint_every` epochs.

k key depth · u intra-depth · n query positions · m context positions · offsets: 2H−1 × 2W−1, or the scope's r × r
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

from command_line.errors import one_line_errors
from command_line.tools import read_draw

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_draw(__doc__)

from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from command_line import errors
from command_line.errors import InputError
from command_line.paths import shown
from lambda_layer import LambdaLayer
from run_state.initial_weights import put_weights
from run_state.trained_network import TrainedNetwork, load_network

STAGES = {"layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5"}
MOST_PANELS = 16  # key channels that TensorBoard's pictures have of a layer
FILE_PANELS = 8  # and the files, twice
PANEL = 45  # pixels, at least about, of a panel's side
WHITE = 255
STILL_NOISE = 0.9  # correlation of E with E₀ above which E is called noise
CHANCE = 4.0  # standard deviations of a correlation that is none

Stages = dict[str, dict[str, Tensor]]  # by stage and layer, such as `c3` and `c3.1`: E by offset (k, u, *offsets)


def main(argv: list[str] | None = None) -> None:
    """Draw the embeddings of the checkpoint that the command line names."""
    arguments = read_draw(__doc__, argv)
    network = load_network(arguments.checkpoint)
    stages = stage_embeddings(network.model)
    if not stages:
        raise InputError(f"checkpoint: {arguments.checkpoint} has no position embeddings to draw, on maps above 1×1")
    begun = stage_embeddings(as_begun(network))
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures(stages, begun, network.title):
            figure.savefig(arguments.out / name, dpi=110)
            print(shown(arguments.out / name))
    except OSError as error:
        raise InputError(f"out: {arguments.out} cannot be written ({error.strerror})") from error
    for note in notes(stages, begun):
        errors.tell(note)


def as_begun(network: TrainedNetwork) -> nn.Module:
    """The network before its first step: as its seed draws it, with the weights that its run was given.

    Where those cannot be read any more, or are of another epoch now, a line on standard error says so.
    """
    model, given = network.as_drawn(), network.config.get("init")
    if given and any(name.endswith("embedding") for name in given["taken"]):
        try:
            now = put_weights(replace(network.args, resume=None), model, network.classes)["init"]
        except InputError as error:
            errors.tell(f"E₀ is drawn by the seed, and is not what this run began with ({error})")
        else:
            if (now["run"], now["epochs"]) != (given["run"], given["epochs"]):
                errors.tell(f"E₀ is of {given['from']} as it is now, and not as this run began with it")
    return model


def notes(stages: Stages, begun: Stages) -> Iterator[str]:
    """What a reader of the pictures should know: stages that are still noise, or an E₀ that is another."""
    still = {
        stage: [correlation(embedding, begun[stage][name]) for name, embedding in layers.items()]
        for stage, layers in stages.items()
    }
    if noisy := [stage for stage, each in still.items() if min(each) > STILL_NOISE]:
        yield f"{', '.join(noisy)}: so little is learnt that E is still the noise that it was drawn as; see E − E₀"
    everything = [torch.cat([e.flatten() for layers in s.values() for e in layers.values()]) for s in (stages, begun)]
    if correlation(*everything) < CHANCE / len(everything[0]) ** 0.5:
        yield (
            "E has nothing of E₀: all was unlearnt, or it began otherwise than the seed has it here (from other "
            "weights, with another version of PyTorch), and then E − E₀ says nothing"
        )


def correlation(one: Tensor, other: Tensor) -> float:
    """Of the entries of two tensors of one shape."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def stage_embeddings(model: nn.Module) -> Stages:
    """The embeddings of a network's layers on maps above 1×1; a shared one stands once."""
    stages: Stages = {}
    seen: set[int] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, LambdaLayer) or layer.embedding is None or id(layer.embedding) in seen:
            continue
        seen.add(id(layer.embedding))
        parts = name.split(".")
        at = next(i for i, part in enumerate(parts) if part in STAGES)  # a wrapper's name may stand before
        stage, block = STAGES[parts[at]], parts[at + 1]
        embedding = by_offset(layer)
        if embedding[0, 0].numel() > 1:
            stages.setdefault(stage, {})[f"{stage}.{int(block) + 1}"] = embedding
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
    """The mean distance, in positions, of what a query's position lambda sums up, weighted by ‖E‖²; nan for 0."""
    weight = strength(embedding).square()
    return float((distances(*weight.shape) * weight).sum() / weight.sum())


def stage_pictures(model: nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """For each stage (height, width, 3) uint8: a row for each layer, its panels as in the PNG files."""
    for stage, layers in stage_embeddings(model).items():
        rows = [np.hstack([panels(embedding), panel(strength(embedding), "viridis")]) for embedding in layers.values()]
        width = max(row.shape[1] for row in rows)
        yield stage, np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), "edge") for r in rows])


def panels(embedding: Tensor, number: int = MOST_PANELS) -> np.ndarray:
    """E (k, u, *offsets) -> (height, width, 3) uint8, panels of the first of k·u; blue below zero, red above."""
    most = deepest(embedding, number)
    return np.hstack([panel(channel, "RdBu_r", -most, most) for channel in embedding.flatten(0, 1)[:number]])


def deepest(embedding: Tensor, number: int) -> float:
    """What the panels have in their deepest colour."""
    sizes = embedding.flatten(0, 1)[:number].abs()
    return float(sizes.quantile(0.99) if sizes.numel() < 2**24 else sizes.max())  # which quantile takes at most


def panel(values: Tensor, colours: str, least: float = 0.0, most: float | None = None) -> np.ndarray:
    """(rows, columns) -> (height, width, 3) uint8, with a white line to the right and below."""
    most = float(values.max()) if most is None else most
    shares = ((values - least) / max(most - least, 1e-12)).numpy()
    pixels = (matplotlib.colormaps[colours](shares)[..., :3] * 255).astype(np.uint8)
    factor = -(-PANEL // max(values.shape))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(pixels, ((0, 2), (0, 2), (0, 0)), constant_values=WHITE)


def figures(stages: Stages, begun: Stages, title: str) -> Iterator[tuple[str, Figure]]:
    """The name and the figure of each file that the command writes."""
    for stage, layers in stages.items():
        yield f"embeddings_{stage}.png", _stage_figure(layers, begun[stage], title)
    yield "reach.png", _reach_figure(stages, begun, title)


def _stage_figure(layers: dict[str, Tensor], begun: dict[str, Tensor], title: str) -> Figure:
    figure = Figure(figsize=(16, 1.0 + 0.95 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), 3, squeeze=False, width_ratios=(FILE_PANELS, FILE_PANELS, 2))
    for axes, heading in zip(grid[0], ("E", "E − E₀: learnt", "its root mean square"), strict=True):
        axes.set_title(heading, fontsize=9)
    for (left, middle, right), (name, embedding) in zip(grid, layers.items(), strict=True):
        learnt = embedding - begun[name]
        _draw_panels(left, embedding)
        _draw_panels(middle, learnt)
        figure.colorbar(right.imshow(strength(learnt).numpy(), cmap="viridis", vmin=0), ax=right)
        sides = " × ".join(map(str, embedding.shape[2:]))
        left.set_ylabel(f"{name}\n{sides}", rotation="horizontal", ha="right", va="center")
        far = f"reach {reach(learnt):.1f}" if learnt.any() else "nothing learnt"
        right.set_xlabel(f"{far}, r {correlation(embedding, begun[name]):.2f}", fontsize=8)
        for axes in (left, middle, right):
            axes.set(xticks=[], yticks=[])
    figure.suptitle(f"{title}\nby offset m − n, a panel for each key channel", fontsize=9)
    return figure


def _draw_panels(axes: Axes, embedding: Tensor) -> None:
    most = deepest(embedding, FILE_PANELS)
    axes.imshow(panels(embedding, FILE_PANELS))
    axes.figure.colorbar(ScalarMappable(Normalize(-most, most), "RdBu_r"), ax=axes)


def _reach_figure(stages: Stages, begun: Stages, title: str) -> Figure:
    figure = Figure(figsize=(max(6.0, 3.2 * len(stages)), 5.6), layout="constrained")
    grid = figure.subplots(2, len(stages), squeeze=False, sharex="col", sharey="row")
    for (above, below), (stage, layers) in zip(grid.T, stages.items(), strict=True):
        for name, embedding in layers.items():
            above.plot(by_distance(embedding).numpy(), marker=".", label=name)
            below.plot(by_distance(embedding - begun[stage][name]).numpy(), marker=".")
        above.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
        above.set(title=stage)
        below.set(xlabel="distance from n to m, in positions", ylim=(0, None))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(layers) <= 8:
            above.legend(fontsize=7)
    grid[0, 0].set_ylabel("E (dotted: as drawn)")
    grid[1, 0].set_ylabel("E − E₀: learnt")
    figure.suptitle(f"{title}\nroot mean square by distance", fontsize=9)
    return figure


def by_distance(embedding: Tensor) -> Tensor:
    """E (k, u, *offsets) -> its root mean square at distance 0, 1, … positions, rounded."""
    far, energy = distances(*embedding.shape[2:]).round().long().flatten(), strength(embedding).square()
    return (torch.bincount(far, energy.flatten()) / torch.bincount(far)).sqrt()


if __name__ == "__main__":
    with one_line_errors():
        main()
