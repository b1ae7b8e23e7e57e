"""The confusion matrix: any number of classes, any names; nothing of it ends a run."""

import csv
import io

import numpy as np
import pytest
import torch

from scoring import confusion
from scoring.confusion import as_csv, as_figure, drawable, labels
from scoring.evaluation import Evaluation


def evaluated(labels: list[int], predicted: list[int]) -> Evaluation:
    places = torch.tensor(labels), torch.tensor(predicted), torch.ones(len(labels))
    return Evaluation(0.0, 0.0, len(labels), 0.0, *places)


def test_ten_thousand_classes_take_the_memory_of_their_images() -> None:
    classes = [f"c{number}" for number in range(10_000)]
    counts = evaluated([3, 3, 9999, 0], [3, 3, 0, 9999]).confusion_matrix(10_000)
    assert counts.values().numel() == 3
    rows = list(csv.reader(io.StringIO(as_csv(counts, classes).decode())))
    assert rows[0] == ["true class", "predicted class", "images"]
    assert rows[1:] == [["c0", "c9999", "1"], ["c3", "c3", "2"], ["c9999", "c0", "1"]]
    with pytest.raises(ValueError, match="10,000 classes are too many for a picture; at most 1,000"):
        as_figure(counts, classes)


@pytest.mark.parametrize("count", [2, 40, 200])
def test_names_of_any_kind_are_drawn(count: int) -> None:
    odd = ["$x$", "$", "a_b^{2}", r"\frac", "猫", "🐈", "café"]
    names = odd[:count] + [f"{number} $" for number in range(count - len(odd))]
    counts = evaluated([0, 1, 1], [0, 1, 0]).confusion_matrix(count)
    figure = as_figure(counts, names)
    figure.canvas.draw()
    assert figure.axes[0].get_title() == "top-1 66.67 % of 3 test images"
    (image,) = figure.axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), counts.to_dense())


def test_a_name_without_letters_in_any_font_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "fonts", lambda: ())
    assert labels(["cat", "猫", "$5", "café"]) == ["cat", "class 1", r"\$5", "café"]
    assert drawable("猫$.png", r"\u732b$.png") == r"\u732b\$.png"
