"""What is drawn stands where its name stands."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from evidence import drawings, figures
from evidence.figures import Curve, Interval


def test_an_interval_stands_in_the_row_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, *rest: drawn.append(figure) or "")
    one = Interval(1.0, 0.5, 1.5, 0.4, 1.6, [1.0], told_apart=True)
    other = Interval(-1.0, -2.0, 0.5, -2.0, 0.6, [-1.0], told_apart=False)
    figures.intervals({"test": {"D": one, "S − R": other}, "training": {"S − R": other}}, "", tmp_path / "x.svg")
    left, right = drawn[0].axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["D", "S − R"]

    def means(axes) -> list[tuple[float, float]]:
        return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]

    assert means(left) == [(1.0, 0.0), (-1.0, 1.0)]
    assert means(right) == [(-1.0, 1.0)]


def test_minutes_are_of_all_epochs_so_far_in_the_mean_over_the_runs(tmp_path: Path, monkeypatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, *rest: drawn.append(figure) or "")
    rows = [{"train_seconds": {0: 30.0, 1: 90.0}, "test_top1": {0: 50.0, 1: 60.0}}]  # by epoch, then by seed
    rows.append({"train_seconds": {0: 120.0, 1: 120.0}, "test_top1": {0: 70.0, 1: 70.0}})
    network = SimpleNamespace(at=lambda epoch, key: rows[epoch - 1].get(key, {}) if epoch <= len(rows) else {})
    answer = SimpleNamespace(networks={"λ": network}, columns={("λ", "evaluation")})
    drawings.DRAWERS["minutes"][1](answer, "", tmp_path / "x.svg")
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[1.0, 55.0], [3.0, 70.0]]


def test_how_many_runs_a_curve_is_of() -> None:
    def counts(*runs: int) -> str:
        nothing = [0.0] * len(runs)
        return Curve(nothing, nothing, nothing, list(runs)).counts

    assert counts(1, 1) == "1 run"
    assert counts(3, 3, 3) == "3 runs"
    assert counts(3, 3, 2, 1, 1) == "3 runs to epoch 2, 2 to 3, 1 to 5"
