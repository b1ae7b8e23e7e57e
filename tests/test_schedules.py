"""The learning rate of every epoch and step: the formulas by hand, and PyTorch's own scheduler."""

import itertools
import math

import pytest
import torch
from torch import nn

from model_preparation import learning_rate_factor, learning_rates, prepare_training
from user_input import UserInput

CPU = torch.device("cpu")


def test_the_studys_learning_rates() -> None:
    rates = [0.0005 * learning_rate_factor(done, 90, 5) for done in range(90)]
    assert rates[:6] == pytest.approx([0.0005, 0.0010, 0.0015, 0.0020, 0.0025, 0.0025])
    # half a cosine over 85 epochs: a third of the way is at 3/4 of the peak, half at a half, two thirds at a quarter
    assert learning_rate_factor(5 + 85, 90, 5) == pytest.approx(0.0, abs=1e-12)
    assert rates[47] == pytest.approx(0.00125 * (1 + math.cos(math.pi * 42 / 85)))
    assert rates[89] == pytest.approx(0.0025 * math.sin(math.pi / 170) ** 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[5:]))


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [1.0]),
        (3, [1.0, 5.0, 2.5]),
        (5, [1.0, 5.0, 5 * (2 + 2**0.5) / 4, 2.5, 5 * (2 - 2**0.5) / 4]),
        (10, [1.0, 5.0, 5.0]),
        (20, [1.0, 1 + 4 / 3, 1 + 8 / 3, 5.0, 5.0]),
        (25, [1.0, 2.0, 3.0, 4.0, 5.0, 5.0]),
    ],
)
def test_short_runs_warm_up_for_a_fifth_of_their_epochs(epochs: int, expected: list[float]) -> None:
    factors = [learning_rate_factor(done, epochs, 5) for done in range(epochs)]
    assert factors[: len(expected)] == pytest.approx(expected)


def test_warm_up_follows_its_setting() -> None:
    assert [learning_rate_factor(done, 90, 3) for done in range(4)] == pytest.approx([1.0, 2.0, 3.0, 3.0])
    assert learning_rate_factor(0, 90, 0) == 1.0


def test_the_scheduler_gives_the_rates_to_the_optimizer() -> None:
    args = UserInput(depth=26, stages="CCCL", dataset="digits", image_size=16, epochs=90)
    training = prepare_training(args, 10, CPU)
    seen = []
    for _ in range(6):
        seen.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        training.scheduler.step()
    assert seen == pytest.approx([0.0005, 0.0010, 0.0015, 0.0020, 0.0025, 0.0025])


def test_the_studys_own_schedule_is_one_epoch_further_on() -> None:
    rates = [0.0005 * learning_rate_factor(done, 90, 5, "study") for done in range(90)]
    assert rates[:5] == pytest.approx([0.0005, 0.0010, 0.0015, 0.0020, 0.0025])
    # a cosine over 85 epochs that starts at its peak in epoch 6, one step further on; the last epoch has 0
    assert rates[5] == pytest.approx(0.00125 * (1 + math.cos(math.pi / 85)))
    assert rates[89] == pytest.approx(0.0, abs=1e-18)
    assert rates[5:89] == pytest.approx([0.0005 * learning_rate_factor(done, 90, 5) for done in range(6, 90)])


def test_a_schedule_by_step_rises_to_the_peak_and_falls_to_0() -> None:
    factors = [learning_rate_factor(done, 10, 5, "step", 4) for done in range(41)]
    # two of ten epochs of four steps: from 1 to 5 in eight equal parts
    assert factors[:9] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0])
    assert factors[24] == pytest.approx(2.5)  # half of the 32 steps that are left
    assert factors[40] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[8:]))


def test_the_rate_changes_after_each_step_or_each_epoch_as_the_table_of_rates_says() -> None:
    for schedule in ("epoch", "study", "step"):
        args = UserInput(depth=26, stages="CCCL", dataset="digits", image_size=16, epochs=3, schedule=schedule)
        training = prepare_training(args, 10, CPU, steps=2)
        seen = []
        for _ in range(args.epochs):
            for _ in range(2):
                seen.append(training.optimizer.param_groups[0]["lr"])
                training.optimizer.step()
                training.end_step()
            training.end_epoch()
        assert seen == pytest.approx([rate for pair in learning_rates(args, 2) for rate in pair])


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(10, 2, 7), (90, 5, 3), (3, 1, 50)])
def test_one_cycle_is_pytorchs(epochs: int, warmup: int, steps: int) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=warmup * 0.1, total_steps=epochs * steps, pct_start=warmup / epochs, div_factor=warmup
    )
    for done in range(epochs * steps):
        rate = 0.1 * learning_rate_factor(done, epochs, warmup, "one_cycle", steps)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if done + 1 < epochs * steps:
            scheduler.step()
