"""Draw the figures of the README and of `lambda_layers.md`, for light and dark pages, numbers from the layer itself.

python docs/draw_figures.py              # a few seconds; writes beside this file
"""

import sys
from pathlib import Path

import torch
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lambda_layer import LambdaLayer, LambdaLayer1d  # noqa: E402 - found by the line above

RED = "#D55E00"
SKY, ORANGE = "#56B4E9", "#E69F00"  # seen on a white page and on a dark one
INKS = {"light": "#1f2328", "dark": "#e6edf3"}  # of letters on such a page


def main(folder: Path = HERE) -> list[Path]:
    """Write every figure into a folder, once for each kind of page."""
    paths = []
    for page, ink in INKS.items():
        inked = {f"{part}color": ink for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")}
        with rc_context(inked):  # type: ignore[arg-type]  # mypy takes no names that are put together
            for draw in (attention_and_lambda, by_hand, scope, memory):
                paths.append(folder / f"{draw.__name__}_{page}.png")
                draw().savefig(paths[-1], dpi=100, transparent=True)
    return paths


def attention_and_lambda() -> Figure:
    """What lies between context and output: a weight for each pair, or one small matrix for all the queries."""
    ink = rcParams["text.color"]
    figure = Figure(figsize=(10, 2.9))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.02, wspace=0.05)
    for axes in (left, right):
        axes.set(xlim=(0, 16), ylim=(-0.4, 8.2), aspect="equal")
        axes.axis("off")
    weights = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)).softmax(1)
    left.set_title("Self-attention", color=ink, weight="bold")
    _grid(left, 0.5, 1.4, torch.full((8, 2), 0.8), ORANGE, "queries\nN × k", ink)
    _grid(left, 3.6, 1.4, (weights / weights.max()), SKY, "a weight for each pair\nN × N, per head", ink)
    _grid(left, 11.0, 1.4, torch.full((8, 2), 0.5), SKY, "values\nN × v", ink)
    _grid(left, 14.4, 1.4, torch.full((8, 1), 0.8), ORANGE, "outputs", ink)
    right.set_title("Lambda layer", color=ink, weight="bold")
    _grid(right, 0.4, 1.4, torch.full((8, 2), 0.5), SKY, "context\nN positions", ink)
    _grid(
        right,
        4.9,
        3.4,
        torch.tensor([[0.4, 0.9, 0.6], [0.7, 0.3, 0.8], [0.5, 0.6, 0.3]]),
        SKY,
        "λ: k × v, for content\nand for each position",
        ink,
    )
    _grid(right, 10.2, 1.4, torch.full((8, 2), 0.8), ORANGE, "queries\nN × k", ink)
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
    """The layer of the page's worked example: every projection picks channels, the norms change nothing."""
    layer = LambdaLayer1d(8, 4, key_depth=2, heads=2, scope=3).eval()
    layer.norm_queries.eps = layer.norm_values.eps = 0.0
    channels = torch.eye(8)
    with torch.no_grad():
        layer.to_keys.weight.copy_(channels[:2])
        layer.to_values.weight.copy_(channels[2:4])
        layer.to_queries.weight.copy_(channels[4:])
        layer.embedding.copy_(torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]]))
    return layer


def example_input() -> tuple[Tensor, Tensor, Tensor]:
    """Keys (3, 2), values (3, 2) and queries (3, 2, 2) of three positions."""
    keys = torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 2.0]]).log()
    values = torch.tensor([[4.0, 0.0], [0.0, 4.0], [8.0, 8.0]])
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([1.0, -1.0]).expand(3, 2)
    return keys, values, torch.stack([first, second], dim=1)


def by_hand() -> Figure:
    """The worked example, a row for each position: its lambdas, and what two heads make of it."""
    keys, values, queries = example_input()
    content = keys.softmax(0).t() @ values
    nothing = torch.zeros(1, 2)
    position = torch.stack([torch.cat([nothing, values])[:3], torch.cat([values, nothing])[1:]], dim=1)  # (n, k, v)
    with torch.no_grad():
        x = torch.cat([keys, values, queries.flatten(1)], dim=1)
        output = example_layer()(x.t()[None])[0].t().unflatten(1, (2, 2))
    torch.testing.assert_close(queries @ (content + position), output)
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    grid = figure.subplots(3, 5, sharex="col")
    for n, row in enumerate(grid):
        panels = {
            r"$\lambda^c$": content,
            r"$\lambda^p_n$": position[n],
            r"$\lambda^c + \lambda^p_n$": content + position[n],
            "$Q_n$, a row for each head": queries[n],
            "$Y_n$, a row for each head": output[n],
        }
        for axes, (name, panel) in zip(row, panels.items(), strict=True):
            _draw_numbers(axes, panel)
            axes.set_title(name if n == 0 else "", fontsize=10)
        row[0].set_ylabel(f"position {n + 1}")
    return figure


def _draw_numbers(axes: Axes, panel: Tensor) -> None:
    axes.imshow(panel.numpy(), cmap="RdBu_r", vmin=-14, vmax=14, aspect="auto")
    axes.set(xticks=[], yticks=[])
    for y, row in enumerate(panel.tolist()):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:g}", ha="center", va="center", color="black" if abs(value) < 9 else "white")


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
        "attention maps: h·N²": (h * n * n, RED, "-"),
        "position lambdas: N·k·v": (n * k * d / h, SKY, "-"),
        "E of all pairs (absolute): N²·k": (n * n * k, RED, ":"),
        "E by offset (relative): (2·side−1)²·k": ((2 * sides.double() - 1) ** 2 * k, SKY, ":"),
        "input: N·d": (n * d, "grey", "--"),
    }
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, (floats, colour, line) in curves.items():
        axes.loglog(sides.numpy(), floats.numpy(), line, color=colour, label=name, base=2)
    axes.set(xlabel="side of the map, in positions", ylabel="floats (4 bytes in float32)", xticks=sides.numpy())
    axes.set_xticklabels([str(side) for side in sides.tolist()])
    axes.set_yscale("log", base=10)
    axes.legend(fontsize=8, framealpha=0.0)
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    print(*main(), sep="\n")
