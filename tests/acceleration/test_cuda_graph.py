"""What surrounds the recording of a step, with a recorder that needs no GPU: it replays by taking the step again."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from training_tools import Batches, batch, small_training

from acceleration import cuda_graph
from model_preparation import Training
from nntrain import EpochProgress, TrainingStep, train_epoch

Record = Callable[[Callable[[], None]], Callable[[], None]]


def take_again(step: Callable[[], None]) -> Callable[[], None]:
    for _ in range(cuda_graph.WARM_UP):
        step()
    return step


def train(optimizer: str, epochs: int = 2, recorded: bool = True) -> tuple[Training, TrainingStep, list[float]]:
    training = small_training(stages="CCCL", optimizer=optimizer, initial_lr=2**-10, epochs=3, warmup_epochs=2)
    step, losses = TrainingStep(dataclasses.replace(training, cuda_graph=recorded)), []
    for epoch in range(1, epochs + 1):
        batches = Batches(*(batch(8, 10 * epoch + number) for number in range(3)))
        losses.append(train_epoch(step, batches, epoch, EpochProgress()).loss)
        training.end_epoch()
    return training, step, losses


def assert_same(training: Training, expected: Training) -> None:
    for (name, tensor), other in zip(
        training.model.state_dict().items(), expected.model.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_replayed_steps_are_the_steps(
    optimizer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graph, "record", take_again)
    expected, _, losses = train(optimizer, recorded=False)
    training, step, replayed_losses = train(optimizer)
    assert isinstance(step.replayed, cuda_graph.Replay)
    assert capsys.readouterr().out == ""
    # the rates are 2^-10 and 2^-9, without rounding in float32, too
    assert replayed_losses == losses
    assert_same(training, expected)
    # and what a checkpoint keeps is what any device goes on with
    state, other = training.state_dict(), expected.state_dict()
    for part in ("optimizer", "scheduler", "scaler"):
        torch.testing.assert_close(state[part], other[part], rtol=0.0, atol=0.0)
        assert str(state[part]) == str(other[part])


def test_a_batch_of_another_shape_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "record", take_again)
    _, step, _ = train("sgd", epochs=1)
    monkeypatch.setattr(step.replayed, "replay", lambda: pytest.fail("replayed"))
    before = step.parameters[0].clone()
    step(*batch(6))
    assert not torch.equal(step.parameters[0], before)


def refused(step: Callable[[], None]) -> Callable[[], None]:
    step()
    raise RuntimeError("operation not permitted when stream is capturing\nand a page about it")


def without_effect(step: Callable[[], None]) -> Callable[[], None]:
    take_again(step)
    return lambda: None


def not_twice(step: Callable[[], None]) -> Callable[[], None]:
    turns = iter(range(10**6))
    take_again(step)
    return lambda: step() if next(turns) % 2 == 0 else None


@pytest.mark.parametrize("record", [refused, without_effect, not_twice])
def test_a_recording_that_fails_or_is_wrong_is_not_used(
    record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graph, "record", record)
    assert_trains_without(monkeypatch, capsys)


def test_a_recording_of_the_same_images_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graph, "record", take_again)
    monkeypatch.setattr(cuda_graph.Replay, "__call__", lambda replay, *_: replay.replay())
    assert_trains_without(monkeypatch, capsys)


def test_a_recording_of_the_same_learning_rate_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graph, "record", take_again)
    usual = cuda_graph.Replay.__call__

    # as it would be if the rate were a number, which a recording holds as it was
    def at_the_recorded_rate(replay: cuda_graph.Replay, *given: torch.Tensor) -> None:
        groups = replay.take.__self__.training.optimizer.param_groups  # type: ignore[attr-defined]
        rates = [group["lr"].clone() for group in groups]
        for group in groups:
            group["lr"].fill_(2**-10)
        usual(replay, *given)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"].copy_(rate)

    monkeypatch.setattr(cuda_graph.Replay, "__call__", at_the_recorded_rate)
    assert_trains_without(monkeypatch, capsys)


def assert_trains_without(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """One line says so, and the run is the one that never tried."""
    training, step, losses = train("adam")
    said = capsys.readouterr().out
    assert said.startswith("CUDA graph: goes on without, since recording a step failed (RuntimeError: ")
    assert said.count("\n") == 1
    assert step.replayed == step.take
    expected, _, expected_losses = train("adam", recorded=False)
    assert losses == expected_losses
    assert_same(training, expected)
    assert str(training.optimizer.state_dict()) == str(expected.optimizer.state_dict())


def test_the_cpu_takes_steps_as_they_are() -> None:
    assert not small_training(cuda_graph=True).cuda_graph
