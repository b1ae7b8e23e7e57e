"""The figures that are read off a test, against loops, numbers by hand and scikit-learn."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import recall_score, top_k_accuracy_score
from training_tools import Batches, small_training

from data_sources.image_set import ImageSet
from nntest import evaluate
from scoring import confusion, mistakes
from scoring.evaluation import Evaluation, calibration_error
from scoring.writing import ImagesOfTest, _mistakes, figures, files, pixels, summary

CLASSES = ("ant", "bee", "cat")


def found(labels: list[int], predicted: list[int], confidence: list[float]) -> Evaluation:
    places = torch.tensor(labels), torch.tensor(predicted), torch.tensor(confidence)
    return Evaluation(0.5, 50.0, len(labels), 0.0, *places)


EXAMPLE = found([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0], [0.9, 0.7, 0.5, 1.0, 0.8, 0.7])


def test_the_calibration_error_by_hand() -> None:
    # two bins: 0.5 (right) lies in the first, whose right edge is its own; in the second, 0.9 and 1.0 are right,
    # 0.7, 0.8, 0.7 are wrong: accuracy 2/5, confidence 4.1/5
    assert calibration_error(EXAMPLE.confidence, EXAMPLE.right, bins=2) == pytest.approx(
        100 * (1 / 6 * abs(1 - 0.5) + 5 / 6 * abs(2 / 5 - 4.1 / 5))
    )
    sure = torch.ones(4)
    assert calibration_error(sure, sure.bool()) == 0.0
    assert calibration_error(sure, ~sure.bool()) == 100.0


def test_the_calibration_error_is_the_papers_sum() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1.0, 1000)
    right = generator.uniform(size=1000) < confidence**2
    total = 0.0
    for number in range(15):
        inside = [i for i in range(1000) if number / 15 < confidence[i] <= (number + 1) / 15]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / 1000 * abs(accuracy - mean)
    assert calibration_error(torch.tensor(confidence), torch.tensor(right)) == pytest.approx(100 * total)


def test_each_classs_accuracy_is_its_recall() -> None:
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(3, size=(2, 200))
    scores = found(labels.tolist(), predicted.tolist(), [1.0] * 200).of_classes(CLASSES)
    assert [score.top1 / 100 for score in scores] == pytest.approx(recall_score(labels, predicted, average=None))
    assert [score.images for score in scores] == np.bincount(labels).tolist()
    assert EXAMPLE.of_classes(CLASSES)[2].top1 is None  # of a class without an image


def test_the_surest_mistakes_come_first() -> None:
    assert EXAMPLE.mistakes(2) == [4, 1]
    assert EXAMPLE.mistakes(9) == [4, 1, 5]  # of equals, the first in the data's order


def test_a_test_has_top_5_and_how_sure_the_network_was() -> None:
    training = small_training()
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 3, 16, 16, generator=generator), torch.randint(10, (40,), generator=generator)
    test = evaluate(training, Batches(*zip(images.split(7), labels.split(7), strict=True)))
    with torch.no_grad():
        shares = training.model.eval()(images).softmax(1)
    assert test.top5 == pytest.approx(100 * top_k_accuracy_score(labels, shares, k=5, labels=range(10)))
    assert test.top1 < test.top5 < 100
    torch.testing.assert_close(test.confidence, shares.amax(1))
    few = small_training()
    few.model.fc = torch.nn.Linear(few.model.fc.in_features, 5)
    assert evaluate(few, Batches((images, labels % 5))).top5 is None


def image(i: int) -> Image.Image:
    return Image.new("RGB", (4, 3), (i, 0, 0))


def test_all_that_is_kept_of_a_test(rendered: None) -> None:
    names = ["test/b/10.png", "test/b/9.png", "test/a/1.png", "test/a/x.png", "test/b/11.png", "test/a/2.png"]
    tested = ImagesOfTest(ImageSet(image, EXAMPLE.labels.numpy(), names.__getitem__), CLASSES, lambda image: image)
    made = {name: content() for name, content in files(EXAMPLE, tested, {"epochs": 3}).items()}
    assert json.loads(made["test.json"]) == {"epochs": 3} | figures(EXAMPLE, CLASSES)
    assert json.loads(made["test.json"])["classes"]["cat"] == {"images": 0, "top1": None}
    assert list(csv.reader(io.StringIO(made["classes.csv"].decode()))) == [
        ["class", "images", "top-1 %"],
        ["ant", "3", "66.67"],
        ["bee", "3", "33.33"],
        ["cat", "0", ""],
    ]
    header, *rows = csv.reader(io.StringIO(made["predictions.csv"].decode()))
    assert header == ["file", "class", "prediction", "confidence"]
    assert [row[0] for row in rows] == [names[i] for i in (2, 5, 3, 1, 0, 4)]
    assert rows[3] == ["test/b/9.png", "ant", "bee", "0.700000"]
    assert pixels(made["mistakes.png"]).shape[2] == 3
    assert summary(EXAMPLE, CLASSES).endswith("weakest classes: bee 33.33 %, ant 66.67 %")


def test_mistakes_are_drawn_with_both_names_whatever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "fonts", lambda: ())
    odd = ("$x$", "a very long name of a class indeed", "猫", "犬")
    tested = ImagesOfTest(ImageSet(lambda i: image(7 + i), np.array([0, 2])), odd, lambda seen: seen)
    figure = _mistakes(found([0, 2], [1, 3], [0.987, 0.5]), tested)
    figure.canvas.draw()
    (axes,) = figure.axes
    titles = [text.get_text() for text in axes.texts]
    assert titles == ["a very long name … 98.7 %\nis \\$x\\$", "class 3 50.0 %\nis class 2"]
    np.testing.assert_array_equal(axes.get_images()[1].get_array()[0, 0], [8, 0, 0])
    mistakes.as_figure([], 0, 10).canvas.draw()


def test_figures_that_are_no_numbers_are_null_in_json() -> None:
    none = dataclasses.replace(EXAMPLE, loss=float("nan"), confidence=torch.full((6,), float("nan")))
    read = json.loads(json.dumps(figures(none, CLASSES), allow_nan=False))
    assert (read["loss"], read["top1"]) == (None, 50.0)
