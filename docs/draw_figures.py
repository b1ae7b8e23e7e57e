"""Draw the figures of `lambda_layers.md` from the layer itself.

python docs/draw_figures.py              # a few seconds; writes beside this file
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lambda_layer import LambdaLayer, LambdaLayer1d  # noqa: E402 - found by the line above

BLUE, RED = "#2166ac", "#b2182b"


def main(folder: Path = HERE) -> list[Path]:
    """Write every figure into a folder."""
    figures = {"by_hand": by_hand(), "scope": scope(), "memory": memory()}
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=100)
    return paths


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
