"""Draw the figures of the README and of `lambda_layers.md`, those with numbers from the layer itself.

python docs/draw_figures.py              # a few seconds; writes beside this file
"""

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lambda_layer import LambdaLayer, LambdaLayer1d  # noqa: E402 - found by the line above

BLUE, RED = "#2166ac", "#b2182b"
SKY, ORANGE = "#56B4E9", "#E69F00"  # seen on a white page and on a dark one
INKS = {"light": "#1f2328", "dark": "#e6edf3"}  # of letters on such a page


def main(folder: Path = HERE) -> list[Path]:
    """Write every figure into a folder."""
    figures = {"by_hand": by_hand(), "scope": scope(), "memory": memory()}
    figures |= {f"attention_and_lambda_{page}": attention_and_lambda(ink) for page, ink in INKS.items()}
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=100, transparent="attention" in path.name)
    return paths


def attention_and_lambda(ink: str) -> Figure:
    """What lies between context and output: a weight for each pair, or one small matrix for all the queries."""
    figure = Figure(figsize=(10, 2.9))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.02, wspace=0.05)
    for axes in (left, right):
        axes.set(xlim=(0, 16), ylim=(-0.4, 8.2), aspect="equal")
        axes.axis("off")
    weights = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)).softmax(1)
    left.set_title("Self-attention", color=ink, weight="bold")
    _grid(left, 0.5, 1.4, torch.full((8, 2), 0.8), ORANGE, "queries\nn × k", ink)
    _grid(left, 3.6, 1.4, (weights / weights.max()), SKY, "a weight for each pair\nn × m, per head", ink)
    _grid(left, 11.0, 1.4, torch.full((8, 2), 0.5), SKY, "values\nm × v", ink)
    _grid(left, 14.4, 1.4, torch.full((8, 1), 0.8), ORANGE, "outputs", ink)
    right.set_title("Lambda layer", color=ink, weight="bold")
    _grid(right, 0.4, 1.4, torch.full((8, 2), 0.5), SKY, "context\nm positions", ink)
    _grid(
        right,
        4.9,
        3.4,
        torch.tensor([[0.4, 0.9, 0.6], [0.7, 0.3, 0.8], [0.5, 0.6, 0.3]]),
        SKY,
        "λ: k × v, for content\nand for each position",
        ink,
    )
    _grid(right, 10.2, 1.4, torch.full((8, 2), 0.8), ORANGE, "queries\nn × k", ink)
    _grid(right, 14.4, 1.4, torch.full((8, 1), 0.8), ORANGE, "outputs", ink)
    arrows = [
        (left, 2.2, 3.5),
        (left, 9.7, 10.9),
        (left, 12.6, 14.2),
        (right, 2.0, 4.7),
        (right, 7.3, 10.0),
        (right, 12.5, 14.2),
    ]
    for axes, start, end in arrows:
        axes.annotate("", (end, 4.6), (start, 4.6), arrowprops={"arrowstyle": "->", "color": ink, "linewidth": 1.5})
    right.text(3.35, 5.0, "sum", ha="center", color=ink, fontsize=9)
    right.text(8.65, 5.0, "apply", ha="center", color=ink, fontsize=9)
    return figure


def _grid(axes: Axes, x: float, y: float, shades: Tensor, colour: str, label: str, ink: str) -> None:
    """Cells (rows, columns) of side 0.7, their opacity from 0 to 1, and a label beneath."""
    side, (rows, columns) = 0.75, shades.shape
    for row in range(rows):
        for column in range(columns):
            place = (x + side * column, y + side * (rows - 1 - row))
            axes.add_patch(
                Rectangle(place, side, side, facecolor=colour, alpha=float(shades[row, column]), linewidth=0)
            )
            axes.add_patch(Rectangle(place, side, side, fill=False, edgecolor=ink, linewidth=0.6))
    axes.text(x + side * columns / 2, y - 0.25, label, ha="center", va="top", color=ink, fontsize=9)


def example_layer() -> LambdaLayer1d:
    """The layer of the page's worked example."""
    layer = LambdaLayer1d(2, 1, key_depth=1, heads=1, scope=3).eval()
    with torch.no_grad():
        layer.to_keys.weight.copy_(torch.tensor([[1.0, 0.0]]))
        layer.to_values.weight.copy_(torch.tensor([[0.0, 1.0]]))
        layer.to_queries.weight.copy_(torch.tensor([[0.0, 1.0]]))
        layer.embedding.copy_(torch.tensor([[[1.0, 0.0, -1.0]]]))
    layer.norm_queries.eps = layer.norm_values.eps = 0.0
    return layer


def example_input() -> Tensor:
    """(1, 2, 4): four positions of two channels."""
    channels = torch.tensor([1.0, 2.0, 4.0, 1.0]).log(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    return torch.stack(channels)[None]


def by_hand() -> Figure:
    """The worked example: keys and values to λ_c, embedding and values to λ_p, both applied to the queries."""
    layer, x = example_layer(), example_input()
    keys, values = x[0, 0].softmax(0), x[0, 1]
    table = layer.embedding.detach()[0, 0]
    embedding = torch.stack([torch.stack([_entry(table, m - n) for m in range(4)]) for n in range(4)])
    content, position = keys @ values, embedding @ values
    with torch.no_grad():
        output = layer(x)[0, 0]
    torch.testing.assert_close((content + position) * values, output)
    panels = [
        ("softmax(K)", keys[:, None]),
        ("V", values[:, None]),
        ("E[n, m]", embedding),
        ("λ_c", content.expand(4, 1)),
        ("λ_p[n]", position[:, None]),
        ("q[n]", values[:, None]),
        ("y[n]", output[:, None]),
    ]
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=[panel.shape[1] for _, panel in panels])
    for one, (name, panel) in zip(axes, panels, strict=True):
        one.imshow(panel.numpy(), cmap="RdBu_r", vmin=-6, vmax=6)
        one.set(title=name, xticks=[], yticks=range(4) if one is axes[0] else [])
        for n, row in enumerate(panel.tolist()):
            for m, value in enumerate(row):
                one.text(m, n, f"{value:g}", ha="center", va="center", color="black" if abs(value) < 4 else "white")
    axes[0].set(ylabel="position", yticklabels=["1", "2", "3", "4"])
    return figure


def _entry(table: Tensor, offset: int) -> Tensor:
    return table[offset + 1] if abs(offset) <= 1 else torch.zeros(())


def scope() -> Figure:
    """Where a position's output comes from: gradients of two outputs of three layers, measured on a 9×9 map."""
    torch.manual_seed(0)
    kinds = {
        "scope=3, position alone": LambdaLayer(8, scope=3, content=False),
        "scope=3, with content": LambdaLayer(8, scope=3),
        "input_size=9: global": LambdaLayer(8, input_size=9),
    }
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, (name, layer) in enumerate(kinds.items()):
        for row, query in enumerate([(4, 4), (0, 1)]):
            x = torch.randn(64, 8, 9, 9, requires_grad=True)
            layer.eval()(x)[:, :, query[0], query[1]].square().sum().backward()
            influence = x.grad.square().mean((0, 1)).sqrt()
            influence[query] = 0.0  # its own, through the query, would outshine all else
            axes[row, column].imshow((influence / influence.max()).sqrt().numpy(), cmap="viridis", vmin=0, vmax=1)
            axes[row, column].plot(query[1], query[0], "s", color=RED)
            axes[row, column].set(xticks=[], yticks=[], title=name if row == 0 else None)
    return figure


def memory() -> Figure:
    """Floats an image takes, by the side of the map, from the formulas: k = 16, h = 4, d = 256, u = 1."""
    k, h, d = 16, 4, 256
    sides = torch.tensor([4, 8, 16, 32, 64, 128, 256])
    n = sides.double() ** 2
    curves = {
        "attention maps: h·n·m": (h * n * n, RED, "-"),
        "position lambdas: n·k·v": (n * k * d / h, BLUE, "-"),
        "E of all pairs (absolute): n·m·k": (n * n * k, RED, ":"),
        "E by offset (relative): (2H−1)·(2W−1)·k": ((2 * sides.double() - 1) ** 2 * k, BLUE, ":"),
        "input: n·d": (n * d, "grey", "--"),
    }
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, (floats, colour, line) in curves.items():
        axes.loglog(sides.numpy(), floats.numpy(), line, color=colour, label=name, base=2)
    axes.set(xlabel="side of the map, in positions", ylabel="floats (4 bytes in float32)", xticks=sides.numpy())
    axes.set_xticklabels([str(side) for side in sides.tolist()])
    axes.set_yscale("log", base=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    print(*main(), sep="\n")
