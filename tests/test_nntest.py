"""The tests of an epoch: in evaluation mode, in training mode, of averaged weights."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_preprocessing import load_data
from model_preparation import prepare_training
from nntest import (
    REESTIMATED_ON,
    batch_without_rest_of_one,
    evaluate,
    evaluate_average,
    evaluate_in_training_mode,
)
from nntrain import EpochProgress, TrainingStep, train_epoch
from user_input import UserInput

CPU = torch.device("cpu")


@pytest.fixture
def trained(small: UserInput):
    """A network after an epoch, with the averages that `small`'s settings ask for, and its data."""

    def train(**settings):
        args = UserInput(**{**vars(small), **settings})
        data = load_data(args, CPU)
        training = prepare_training(args, len(data.classes), CPU, steps=len(data.train))
        train_epoch(TrainingStep(training), data.train, 1, EpochProgress())
        return data, training

    return train


def test_predictions_stand_in_the_datas_order(trained) -> None:
    data, training = trained()
    found = evaluate(training, data.test)
    images, labels = (torch.cat(parts) for parts in zip(*data.test.batches(), strict=True))
    assert torch.equal(found.labels, labels)
    with torch.no_grad():
        assert torch.equal(found.predicted, training.model.eval()(images).argmax(1))
    assert found.top1 == pytest.approx(100 * float((found.predicted == labels).float().mean()))
    counts = found.confusion_matrix(3).to_dense()
    assert counts.tolist() == [
        [sum(1 for t, p in zip(labels, found.predicted, strict=True) if (t, p) == (i, j)) for j in range(3)]
        for i in range(3)
    ]


def test_training_mode_takes_each_batchs_statistics_and_changes_nothing(trained) -> None:
    data, training = trained()
    before = copy.deepcopy(training.model.state_dict())
    found = evaluate_in_training_mode(training, data.test, 8, 0, 1)  # 15 images: batches of 8 and 7
    after = training.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not training.model.training

    images, labels = (torch.cat(parts) for parts in zip(*data.test.batches(), strict=True))
    assert torch.equal(found.labels, labels)
    # whichever order it was: look for it among the batches' statistics by trying the one that (seed, epoch) gives
    from data_sources.batches import mix
    from nntest import REORDERED

    order = torch.randperm(15, generator=torch.Generator().manual_seed(mix(0, 1, REORDERED)))
    assert not torch.equal(order, torch.arange(15))
    plain = copy.deepcopy(training.model).train()
    with torch.no_grad():
        logits = torch.cat([plain(images[part]) for part in order.split(8)])
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels[order])), rel=1e-5)
    assert torch.equal(found.predicted[order], logits.argmax(1))
    other = evaluate_in_training_mode(training, data.test, 8, 0, 2)
    assert other.loss != found.loss  # another epoch, another order
    again = evaluate_in_training_mode(training, data.test, 8, 0, 2)
    assert again.loss == other.loss


@pytest.mark.parametrize("batch_size", [14, 2])
def test_a_last_batch_of_one_image_is_avoided(trained, batch_size: int) -> None:
    data, training = trained()
    assert evaluate_in_training_mode(training, data.test, batch_size, 0, 1).images == 15


@pytest.mark.parametrize(
    ("images", "asked", "taken"), [(15, 8, 8), (15, 14, 13), (15, 2, 3), (7, 3, 4), (13, 4, 5), (1, 4, 4)]
)
def test_the_batches_that_leave_no_lone_image_by_hand(images: int, asked: int, taken: int) -> None:
    assert batch_without_rest_of_one(images, asked) == taken


def test_the_exponential_average_is_the_formula(small: UserInput) -> None:
    args = UserInput(**{**vars(small), "average": "exponential", "average_decay": 0.9})
    data = load_data(args, CPU)
    training = prepare_training(args, 3, CPU)
    step, expected = TrainingStep(training), None
    for pixels, labels in data.train.batches(1):
        training.model.train()
        step(pixels, labels)
        training.end_step()
        now = [parameter.detach().clone() for parameter in training.model.parameters()]
        expected = now if expected is None else [0.9 * e + 0.1 * n for e, n in zip(expected, now, strict=True)]
    found = list(training.average.module.parameters())
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert training.average_of_epoch(1) is training.average


def test_the_average_of_the_last_epochs_is_their_mean_and_taken_once(small: UserInput) -> None:
    args = UserInput(**{**vars(small), "average": "last_epochs", "average_epochs": 2, "epochs": 4})
    training = prepare_training(args, 3, CPU)
    parameter = next(training.model.parameters())
    assert training.average_of_epoch(1) is None
    assert training.average_of_epoch(2) is None
    for epoch, value in ((3, 1.0), (4, 4.0)):
        nn.init.constant_(parameter, value)
        training.average_of_epoch(epoch)
        average = training.average_of_epoch(epoch)  # as where a run was stopped in the test, and resumed
    assert float(next(average.module.parameters()).detach().mean()) == pytest.approx(2.5)


def test_the_averages_batch_norms_are_estimated_on_training_images(trained) -> None:
    data, training = trained(average="exponential", average_decay=0.5)
    average = training.average_of_epoch(1)
    found = evaluate_average(training, average, data.train, data.test, 2)
    plain = copy.deepcopy(average.module).train()
    norms = [module for module in plain.modules() if isinstance(module, _BatchNorm)]
    sums = [torch.zeros_like(norm.running_mean) for norm in norms]
    batches = list(itertools.islice(data.train.batches(2), REESTIMATED_ON))
    for norm in norms:
        norm.momentum = 1.0  # keeps the last batch's statistics: their mean over the batches is taken by hand
    with torch.no_grad():
        for pixels, _ in batches:
            plain(pixels)
            for total, norm in zip(sums, norms, strict=True):
                total += norm.running_mean / len(batches)
    for total, norm in zip(
        sums, (module for module in average.modules() if isinstance(module, _BatchNorm)), strict=True
    ):
        torch.testing.assert_close(norm.running_mean, total, rtol=1e-4, atol=1e-5)
    images, labels = (torch.cat(parts) for parts in zip(*data.test.batches(), strict=True))
    with torch.no_grad():
        assert torch.equal(found.predicted, average.module.eval()(images).argmax(1))
    assert np.isfinite(found.loss)
    assert torch.equal(found.labels, labels)


def test_with_flips_an_image_and_its_mirror_count_alike(trained) -> None:
    data, training = trained(test_flips=True)
    images, labels = (torch.cat(parts) for parts in zip(*data.test.batches(), strict=True))
    with torch.no_grad():
        plain, mirrored = training.model.eval()(images), training.model(images.flip(-1))
    found = evaluate(training, data.test)
    expected = (plain + mirrored) / 2
    assert not torch.allclose(plain, mirrored)
    assert found.loss == pytest.approx(float(F.cross_entropy(expected, labels)), rel=1e-5)
    assert torch.equal(found.predicted, expected.argmax(1))
