"""Parts of a network that stay as they are, and the two learning rates."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from training_tools import Batches, batch

from acceleration.sync_batch_norm import synchronise
from command_line.errors import InputError
from fine_tuning.parts import FrozenBatchNorm, freeze, part_of
from model_preparation import Training, build_model, make_optimizer, make_scheduler, prepare_training
from nntest import evaluate_average, evaluate_in_training_mode
from nntrain import EpochProgress, TrainingStep, train_epoch
from user_input import PARTS, UserInput

pytestmark = pytest.mark.usefixtures("shallow")
CPU = torch.device("cpu")


def training(**settings) -> Training:
    settings = {"stages": "CCLL", "initial_lr": 0.01, **settings}
    return prepare_training(UserInput(depth=26, dataset="digits", image_size=16, device="cpu", **settings), 10, CPU)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("setting", "frozen"),
    [
        ("stem", {"stem"}),
        ("stem,c2, c4", {"stem", "c2", "c4"}),
        ("all_but_head", {"stem", "c2", "c3", "c4", "c5"}),
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_is_frozen_stays_and_the_rest_learns(setting: str, frozen: set[str], optimizer: str) -> None:
    frozen_training = training(freeze=setting, optimizer=optimizer)
    model = frozen_training.model
    before = values(model)
    train_epoch(TrainingStep(frozen_training), Batches(batch(8), batch(8, 1)), 1, EpochProgress())
    after = values(model)
    moved = {part_of(name) for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"stem", "c2", "c3", "c4", "c5", "head"} - frozen
    assert not any(torch.equal(after[name], before[name]) for name in after if part_of(name) not in frozen)
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    assert all(norm.training == (part_of(name) not in frozen) for name, norm in norms.items())
    assert list(after) == list(build_model(UserInput(depth=26, stages="CCLL", image_size=16), 10).state_dict())
    assert frozen_training.parameters() == training().parameters()


def test_frozen_norms_are_those_of_evaluation_mode_in_every_way_a_network_is_called() -> None:
    args = {"freeze": "all_but_head", "average": "exponential", "average_decay": 0.5}
    found = training(**args)
    step, loader = TrainingStep(found), Batches(batch(8), batch(8, 1))
    for norm in (one for one in found.model.modules() if isinstance(one, _BatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    statistics = values(found.model)
    plain = build_model(UserInput(depth=26, stages="CCLL", image_size=16), 10)
    plain.load_state_dict(statistics)
    images, _ = batch(8)
    with torch.no_grad():
        torch.testing.assert_close(found.model.train()(images), plain.eval()(images))
    for pixels, labels in loader.batches():
        found.model.train()
        step(pixels, labels)
        found.end_step()
    average = found.average_of_epoch(1)
    evaluate_average(found, average, loader, loader, 1)
    evaluate_in_training_mode(found, Reordered(batch(8), batch(8, 1)), 8, 0, 1)
    for model in (found.model, average.module):
        assert all(torch.equal(values(model)[name], statistics[name]) for name in statistics if "running" in name)


class Reordered(Batches):
    def reordered(self, order: torch.Tensor, batch_size: int) -> "Reordered":
        return self


def test_norms_that_others_convert_or_estimate_anew_stay_frozen() -> None:
    model = build_model(UserInput(depth=26, stages="CCLL", image_size=16), 10)
    freeze(model, ("stem", "c5"))
    before = values(model)
    clone = copy.deepcopy(model)
    update_bn([batch(8)[0]], clone)
    for name, value in before.items():
        if "running_mean" in name:
            assert torch.equal(values(clone)[name], value) == (part_of(name) in ("stem", "c5")), name
    synchronised = synchronise(build_model(UserInput(depth=26, stages="CCLL", image_size=16), 10), CPU)
    freeze(synchronised, PARTS)
    update_bn([batch(8)[0]], synchronised)  # which would take other processes, were its norms at work
    assert all(isinstance(norm, FrozenBatchNorm) for norm in synchronised.modules() if isinstance(norm, _BatchNorm))


def test_what_there_is_not_cannot_be_frozen() -> None:
    for word in ("c6", "head", "", "stem,", "fc"):
        with pytest.raises(InputError, match=f"^freeze: {word.strip(',') or 'nothing'}|^freeze: nothing"):
            UserInput(freeze=word)
    with pytest.raises(InputError, match="^freeze: this network has no part c2"):
        freeze(nn.Sequential(), ("c2",))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_two_rates_are_two_optimizers(optimizer: str) -> None:
    settings = {"optimizer": optimizer, "body_lr_factor": 0.25, "warmup_epochs": 0, "epochs": 2, "initial_lr": 0.01}
    ours, args = training(**settings), UserInput(**settings)
    ours.optimizer = make_optimizer(args, ours.model.double())
    ours.scheduler = make_scheduler(args, ours.optimizer)
    theirs = copy.deepcopy(ours.model)
    kinds = {
        "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr, (0.9, 0.9999), weight_decay=1e-4),
        "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, (0.9, 0.9999), weight_decay=1e-4),
        "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr, 0.9, weight_decay=1e-4, nesterov=True),
    }
    body = [parameter for name, parameter in theirs.named_parameters() if not name.startswith("fc")]
    for epoch, factor in ((1, 1.0), (2, 0.5)):  # half a cosine over two epochs
        if epoch == 1:
            two = [kinds[optimizer](body, 0.0025), kinds[optimizer](list(theirs.fc.parameters()), 0.01)]
        for one, rate in zip(two, (0.0025, 0.01), strict=True):
            one.param_groups[0]["lr"] = rate * factor
        images, labels = batch(8, epoch)
        images = images.double()
        train_epoch(TrainingStep(ours), Batches((images, labels)), epoch, EpochProgress())
        ours.end_epoch()
        theirs.train()
        loss = ours.loss(theirs(images), labels)
        theirs.zero_grad()
        loss.backward()
        for one in two:
            one.step()
    state = {**two[0].state, **two[1].state}
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.parameters(), strict=True):
        # Adam makes a whole step of a gradient that is nought but for its rounding: those elements say nothing
        known = state[other].get("exp_avg_sq", torch.ones_like(other)) > 1e-20
        torch.testing.assert_close(mine[known], other[known], rtol=1e-6, atol=1e-7, msg=name)


def test_of_a_frozen_body_the_head_alone_has_a_rate() -> None:
    groups = training(freeze="all_but_head", body_lr_factor=0.1).optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [2]
    assert groups[0]["initial_lr"] == 0.01
