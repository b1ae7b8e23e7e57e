import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import CPU, Batches, batch, small_training

from data_preprocessing import load_data
from LabelSmoothing import LabelSmoothing
from model_preparation import Training, build_model, evaluation_logits, make_optimizer, prepare_training
from nntest import evaluate
from nntrain import SKIPS, EpochProgress, NonFinite, TrainingStep, train_epoch
from resnet import DEPTHS
from resnet_lambda import build_lambda_resnet
from user_input import UserInput


def test_label_smoothing_is_the_formula() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
    labels, smoothing, classes = [0, 1], 0.3, 3
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        normaliser = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            target = (1 - smoothing) * (index == label) + smoothing / classes
            total -= target * (value - normaliser)
    loss = LabelSmoothing(smoothing)(logits, torch.tensor(labels))
    assert float(loss) == pytest.approx(total / 2)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_training_steps_are_those_written_by_hand(optimizer: str) -> None:
    size = {"depth": 26, "width": 16, "image_size": 16}
    args = UserInput(**size, dataset="digits", device="cpu", optimizer=optimizer, initial_lr=0.01)
    training = prepare_training(args, 10, CPU)
    training.optimizer = make_optimizer(args, training.model.double())
    torch.manual_seed(args.seed)
    model = build_lambda_resnet(**size, num_classes=10).double()
    parameters = list(model.parameters())
    plain = {
        "adam": lambda: torch.optim.Adam(parameters, 0.01, (0.9, 0.9999), weight_decay=1e-4),
        "adamw": lambda: torch.optim.AdamW(parameters, 0.01, (0.9, 0.9999), weight_decay=1e-4),
        "sgd": lambda: torch.optim.SGD(parameters, 0.01, 0.9, weight_decay=1e-4, nesterov=True),
    }[optimizer]()
    batches = [(images.double(), labels) for images, labels in (batch(6, seed) for seed in range(2))]
    losses, correct = [], 0
    for images, labels in batches:
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        plain.zero_grad()
        loss.backward()
        plain.step()
        losses.append(loss.item())
        correct += sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    progress = train_epoch(TrainingStep(training), Batches(*batches), 1, EpochProgress())
    assert (progress.steps, progress.images, progress.correct) == (2, 12, correct)
    assert progress.loss == pytest.approx(sum(losses) / 2, rel=1e-6)
    for (name, ours), theirs in zip(training.model.named_parameters(), parameters, strict=True):
        # Adam makes a whole step of a gradient that is nought but for its rounding: those elements say nothing
        known = plain.state[theirs].get("exp_avg_sq", torch.ones_like(theirs)) > 1e-20
        torch.testing.assert_close(ours[known], theirs[known], rtol=1e-6, atol=1e-7, msg=name)


def test_the_test_counts_every_image_once_and_each_alone() -> None:
    training = small_training()
    images, labels = batch(11)
    train_epoch(TrainingStep(training), Batches((images, labels)), 1, EpochProgress())
    whole = evaluate(training, Batches((images, labels)))
    parts = evaluate(training, Batches(*zip(images.split(4), labels.split(4), strict=True)))
    singles = evaluate(training, Batches(*zip(images.split(1), labels.split(1), strict=True)))
    assert whole.images == parts.images == singles.images == 11
    assert whole.top1 == parts.top1 == singles.top1
    assert parts.loss == pytest.approx(whole.loss, rel=1e-4)
    assert singles.loss == pytest.approx(whole.loss, rel=1e-4)
    with torch.no_grad():
        logits = training.model.eval()(images)
    assert whole.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert whole.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))


def test_the_test_changes_nothing() -> None:
    training = small_training()
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    evaluate(training, Batches(batch(8)))
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


def test_an_epoch_in_two_parts_is_the_epoch_in_one() -> None:
    batches = Batches(*(batch(4, seed) for seed in range(4)))
    whole, parted = small_training(), small_training()
    expected = train_epoch(TrainingStep(whole), batches, 1, EpochProgress())
    first = train_epoch(TrainingStep(parted), batches, 1, EpochProgress(), lambda batches: itertools.islice(batches, 2))
    assert first.steps == 2
    second = train_epoch(TrainingStep(parted), batches, 1, first)
    assert dataclasses.replace(second, seconds=0.0) == dataclasses.replace(expected, seconds=0.0)
    for one, other in zip(whole.model.state_dict().values(), parted.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_is_named() -> None:
    training = small_training()
    images, labels = batch(4)
    bad = torch.full_like(images, math.inf)
    loader = Batches((images, labels), (images, labels), (bad, labels), (images, labels))
    with pytest.raises(NonFinite, match="the loss is not finite at epoch 7, step 3 of 4"):
        train_epoch(TrainingStep(training), loader, 7, EpochProgress())


class GradientOf(torch.autograd.Function):
    """The value as it is, and with it a gradient of one's own choice."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class SpoiltLoss(nn.CrossEntropyLoss):
    """A finite loss whose gradients are multiplied by one factor after the other, the last one for good."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = list(factors)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        factor = self.factors.pop(0) if len(self.factors) > 1 else self.factors[0]
        return GradientOf.apply(super().forward(logits, labels), factor)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_named(factor: float) -> None:
    training = small_training()
    training.loss = SpoiltLoss(1.0, factor, 1.0)
    with pytest.raises(NonFinite, match="the gradients are not finite at epoch 7, step 2 of 5"):
        train_epoch(TrainingStep(training), Batches(*[batch(4)] * 5), 7, EpochProgress())


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_loss_scaling_skips_steps_unmolested(optimizer: str) -> None:
    training = small_training(optimizer=optimizer)
    training.scaler, training.loss = torch.amp.GradScaler("cpu"), SpoiltLoss(math.inf, math.inf, 1.0)
    progress = train_epoch(TrainingStep(training), Batches(*[batch(4)] * 4), 1, EpochProgress())
    assert (progress.steps, progress.skipped) == (4, 0)
    assert training.scaler.get_scale() == 2.0**14


def test_loss_scaling_that_comes_to_nothing_is_named() -> None:
    training = small_training()
    training.scaler, training.loss = torch.amp.GradScaler("cpu"), SpoiltLoss(math.nan)
    before = {name: value.clone() for name, value in training.model.named_parameters()}
    progress = train_epoch(TrainingStep(training), Batches(*[batch(2)] * 30), 1, EpochProgress())
    assert progress.skipped == 30
    assert all(torch.equal(value, before[name]) for name, value in training.model.named_parameters())
    with pytest.raises(NonFinite, match=f"the gradients are not finite at epoch 2, step {SKIPS - 30 + 1} of 30"):
        train_epoch(TrainingStep(training), Batches(*[batch(2)] * 30), 2, EpochProgress(skipped=progress.skipped))


def test_bf16_trains_like_fp32() -> None:
    batches = Batches(*(batch(16, seed=1) for _ in range(4)))
    results = [
        train_epoch(TrainingStep(small_training(precision=name, width=64)), batches, 1, EpochProgress()).loss
        for name in ("fp32", "bf16")
    ]
    assert results[1] == pytest.approx(results[0], rel=0.02)
    assert results[1] != results[0]


def test_the_network_learns_from_real_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEPTHS, 26, (1, 1, 1, 1))
    args = UserInput(depth=26, stages="CCLL", dataset="digits", image_size=16, device="cpu", epochs=3, batch_size=64)
    data = load_data(args, CPU)
    training = prepare_training(args, 10, CPU)
    for epoch in range(1, 4):
        train_epoch(TrainingStep(training), data.train, epoch, EpochProgress())
        training.end_epoch()
    assert evaluate(training, data.test).top1 > 30.0  # 48 when written; 10 by chance


def test_optimizers_hold_every_parameter() -> None:
    args = UserInput(depth=26, dataset="digits")
    model = build_model(args)
    held = {id(p) for group in make_optimizer(args, model).param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    assert isinstance(model, nn.Module)


def one_epoch(**settings) -> Training:
    training = small_training(stages="CCCL", batch_size=32, optimizer="sgd", **settings)
    train_epoch(TrainingStep(training), Batches(batch(32)), 0, EpochProgress())
    return training


def without_compiler(*_: object) -> None:
    raise RuntimeError("no C++ compiler\nand a page about it")


@pytest.mark.parametrize("backend", ["eager", without_compiler])
def test_a_compiled_network_trains_as_it_is_and_where_that_fails_a_line_says_so(
    backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    expected = one_epoch().model.state_dict()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    training = one_epoch(compile=True)
    for name, tensor in training.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3, msg=name)
    said = capsys.readouterr().out
    assert (training.parallel is training.model) == (backend is without_compiler)
    assert said.count("\n") == ("goes on without, since torch.compile failed" in said) == (backend is without_compiler)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_only_weights_decay_where_the_settings_say_so(optimizer: str) -> None:
    training = small_training(optimizer=optimizer, weight_decay_on="weights", weight_decay=0.1)
    decaying, others = training.optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {parameter: name for name, parameter in training.model.named_parameters()}
    groups = [{names[parameter] for parameter in group["params"]} for group in (decaying, others)]
    assert groups[0] | groups[1] == set(names.values())
    assert not groups[0] & groups[1]
    for name in groups[0]:
        assert name.endswith("weight")
        assert training.model.get_parameter(name).dim() >= 2
    assert {"fc.bias", "bn1.weight", "layer1.0.conv2.embedding", "layer1.0.conv2.norm_values.weight"} <= groups[1]


def test_long_gradients_are_shortened_and_short_ones_stay() -> None:
    def moved(clip: float | None) -> Tensor:
        training = small_training(optimizer="sgd", momentum=0.0, weight_decay=0.0, initial_lr=1.0, clip_gradients=clip)
        before = torch.cat([parameter.detach().flatten() for parameter in training.model.parameters()])
        TrainingStep(training)(*batch(8))
        return torch.cat([parameter.detach().flatten() for parameter in training.model.parameters()]) - before

    free = moved(None)
    torch.testing.assert_close(moved(float(free.norm()) * 2), free)
    torch.testing.assert_close(moved(0.01), free * (0.01 / free.norm()), rtol=1e-3, atol=1e-6)


def test_shares_of_classes_train_as_labels_do() -> None:
    pixels, labels = batch(8)
    given = labels, F.one_hot(labels, 10).float()
    steps = [TrainingStep(small_training(optimizer="sgd")) for _ in given]
    for step, each in zip(steps, given, strict=True):
        step(pixels, each)
    torch.testing.assert_close(steps[0].sums, steps[1].sums, rtol=1e-6, atol=0)
    one, other = (dict(step.training.model.named_parameters()) for step in steps)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradients_are_shortened_by_their_own_length_and_not_by_the_scaled_one() -> None:
    def moved(scale: float | None) -> Tensor:
        training = small_training(optimizer="sgd", momentum=0.0, weight_decay=0.0, initial_lr=1.0, clip_gradients=0.01)
        if scale is not None:
            training.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = torch.cat([parameter.detach().flatten() for parameter in training.model.parameters()])
        TrainingStep(training)(*batch(8))
        return torch.cat([parameter.detach().flatten() for parameter in training.model.parameters()]) - before

    torch.testing.assert_close(moved(1024.0), moved(None), rtol=1e-4, atol=1e-8)


def test_the_logits_of_an_image_and_its_mirror_are_averaged_in_float32() -> None:
    def network(pixels: Tensor) -> Tensor:
        return pixels[:, 0, :1, 0].bfloat16() if pixels.dtype == torch.float32 else pixels[:, 0, :1, 0]

    pixels = torch.tensor([1.0, 1.0078125]).expand(1, 3, 1, 2)  # next to each other in bf16
    found = evaluation_logits(network, pixels, flips=True)
    assert (found.dtype, found.item()) == (torch.float32, 1.00390625)
    assert evaluation_logits(network, pixels.double(), flips=True).dtype == torch.float64
    assert evaluation_logits(network, pixels, flips=False).dtype == torch.bfloat16
