"""Which runs an experiment asks for, that each is done once, and what the networks of its own code compute."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import experiments
import log_data
import main_general
from benchmarks.reference_networks import StudyLambdaLayer
from command_line.errors import InputError
from evidence.networks import (
    NETWORKS,
    AlwaysTraining,
    LinearAttention2d,
    LocalSelfAttention2d,
    PositionNorm,
    lambda_layers,
    plain_content,
    position_norm,
    training_mode_test,
)
from evidence.runs import Conditions, Run, carry_out, read_record, vary
from experiments import EXPERIMENTS, Experiment, choose_runs, find_conditions, parse
from lambda_layer import LambdaLayer, content_output
from model_preparation import build_model
from user_input import UserInput

CLASSES = 10
SMALL = UserInput(depth=26, dataset="digits", image_size=16, position="absolute", share_embeddings=True)


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    return Conditions("digits", "data", "digits", "cpu", "fp32", 2 / 90, 0.2, root=tmp_path)


def tiny(conditions: Conditions, **settings) -> Run:
    """Two epochs of two steps."""
    return Run(vary(depth=26, image_size=8, stages="CLCC", **settings), 3, conditions)


# --------------------------------------------------------------------------------------------------- what is asked


def test_equal_variations_are_one_run() -> None:
    assert vary(stages="LLLL", heads=4) == vary()
    assert vary(stages="CCCC") == vary(model="baseline")
    assert vary(stem="cifar", scope=7).name == vary(scope=7, stem="cifar").name == "lambda_stem-cifar_scope-7"
    shared = EXPERIMENTS["study"].variations["λ-ResNet-50"]
    assert shared == EXPERIMENTS["ladder"].variations["per-layer embeddings"]
    assert shared == EXPERIMENTS["hybrids"].variations["LLLL"]
    with pytest.raises(InputError, match="scop: no such setting"):
        vary(scop=7)


def test_every_variation_can_be_run_and_has_a_name_of_its_own(conditions: Conditions) -> None:
    everything = {variation for experiment in EXPERIMENTS.values() for variation in experiment.variations.values()}
    assert len({variation.name for variation in everything}) == len(everything)
    for variation in everything:
        assert Run(variation, 0, conditions).args.training_images in (287, 259)  # a fifth; less those held back
        assert variation.make_model in (build_model, *NETWORKS.values())


def test_runs_are_chosen_seed_by_seed_and_once_each(tmp_path: Path) -> None:
    options = parse(f"--only study ladder --without *cifar* --seeds 4 2 --dataset digits --runs_dir {tmp_path}".split())
    runs = choose_runs(options, find_conditions(options))
    assert len(runs) == 2 * (2 + 5)
    assert [run.seed for run in runs] == [4] * 7 + [2] * 7
    assert list(runs.values())[:7] == ["study"] * 2 + ["ladder"] * 5


def test_the_scale_is_part_of_a_run(tmp_path: Path) -> None:
    folders = []
    for flags in ("", "--scale 0.5", "--scale 0.5 1", "--data_name other"):
        options = parse(["--only", "best", "--dataset", "digits", "--device", "cpu", *flags.split()])
        (run, *_) = choose_runs(options, find_conditions(options))
        folders.append(run.folder.parts[-3])
        assert run.args.epochs == (100 if "0.5" in flags else 200)
        assert run.args.training_images == (718 if flags == "--scale 0.5" else None)
    full, half, half_epochs, other = "full", "scale-0.5-0.5", "scale-0.5-1", "other_cpu_fp32_full"
    assert folders == [*(f"digits_cpu_fp32_{name}" for name in (full, half, half_epochs)), other]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--only studi", "only: there is no experiment studi; there is study, ladder"),
        ("--scale 0", "scale: takes one or two numbers above 0, at most 1"),
        ("--scale .1 .1 .1", "scale: takes one or two numbers"),
        ("--jobs 0", "jobs: 0 is not allowed"),
        ("--dataset imagefolder", "data_name: an imagefolder has no name"),
        ("--dataset digits --runs resnet", "runs: no run is called resnet"),
        ("--seeds one", "invalid int value: 'one'"),
        ("--sede 1", "unrecognized arguments"),
    ],
)
def test_bad_command_lines_are_refused_in_one_line(flags: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        experiments.main(flags.split())


# ------------------------------------------------------------------------------------------------------ the runs


def test_a_stopped_run_is_resumed_and_a_done_one_is_skipped(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(conditions)

    class StopAtOnce(main_general.StopRequest):
        def __call__(self) -> bool:
            self.signal = signal.SIGTERM
            return True

    with monkeypatch.context() as patch:
        patch.setattr(main_general, "StopRequest", StopAtOnce)
        assert carry_out(run, experiments.facts(run, "study", 1)) == signal.SIGTERM
    assert experiments.state(run) == "cut off"
    assert carry_out(run) is None
    record = run.record()
    assert (record.state, record.config["settings"]["training_images"]) == ("done", 287)
    assert "resumed after 0 epochs and 1 steps" in (record.folder / "log.txt").read_text()
    assert record.config["experiment"]["data"] == "digits"
    assert "--only study --runs lambda_depth-26" in record.config["command"]
    assert not list(run.folder.glob("*/*/checkpoints"))
    assert not [tag for tag in EventAccumulator(str(record.folder)).Reload().Tags()["images"] if "embeddings" in tag]

    written = (record.folder / "metrics.jsonl").stat().st_mtime_ns
    assert carry_out(run) is None
    assert (record.folder / "metrics.jsonl").stat().st_mtime_ns == written
    config = record.config | {"settings": record.config["settings"] | {"heads": 2}}
    (record.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="was run with heads 2, and it is 4 now"):
        run.record()


def test_a_run_killed_before_its_confusion_matrix_is_finished_and_keeps_no_pictures(conditions: Conditions) -> None:
    run = tiny(conditions)
    carry_out(run, experiments.facts(run, "study", 1), keep_checkpoints=True)
    assert experiments.state(run) == "done"
    folder = run.record().folder
    drawn = EventAccumulator(str(folder)).Reload()
    log_data.drop_embeddings(folder)
    kept = EventAccumulator(str(folder)).Reload()
    left = [tag for tag in drawn.Tags()["images"] if not tag.startswith("position embeddings/c")]
    assert 0 < len(left) < len(drawn.Tags()["images"])
    assert kept.Tags() == drawn.Tags() | {"images": left}
    assert kept.Scalars("loss/train") == drawn.Scalars("loss/train")

    matrix = folder / "confusion.csv"
    counts = matrix.read_text()
    matrix.unlink()
    assert experiments.state(run) == "cut off"
    carry_out(run)
    assert (experiments.state(run), matrix.read_text()) == ("done", counts)


def test_a_diverged_run_is_kept_and_not_tried_again(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = tiny(conditions, initial_lr=2e9)
    carry_out(run, experiments.facts(run, "study", 1))
    assert experiments.state(run) == "diverged"
    assert "not finite at epoch" in read_record(run.folder).failure["message"]
    monkeypatch.setitem(EXPERIMENTS, "odd", Experiment("?", {"diverging": run.variation}, seeds=(run.seed,)))
    words = "--only odd --dataset digits --device cpu --scale 0.022222222222222223 0.2".split()
    words += ["--runs_dir", str(conditions.root)]
    assert experiments.main(words) == 0
    assert "1 runs, 1 of them done" in capsys.readouterr().out
    assert experiments.main([*words, "--dry-run"]) == 0
    assert "about 0.0 h" in capsys.readouterr().out
    assert list(json.loads((conditions.folder / "estimates.json").read_text())["hours_per_run"]) == [run.variation.name]


def test_the_command_line_does_its_runs_in_processes(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = Run(vary("position-norm", depth=26, image_size=8, position="absolute"), 0, conditions)
    monkeypatch.setitem(EXPERIMENTS, "odd", Experiment("?", {"small": run.variation}, seeds=(0,)))
    words = "--only odd --dataset digits --device cpu --scale 0.022222222222222223 0.2 --runs_dir".split()
    assert experiments.main([*words, str(conditions.root)]) == 0
    assert f"{run.label}: top-1 {run.record().rows[-1]['test_top1']:.2f} % (test)" in capsys.readouterr().out
    assert "top-1" in (run.folder / "output.txt").read_text()


# -------------------------------------------------------------------------------------------------- the networks


def seeded(make_model, args: UserInput = SMALL) -> nn.Module:
    torch.manual_seed(0)
    return make_model(args, CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_all_its_parameters(name: str) -> None:
    args = dataclasses.replace(SMALL, position="relative") if "attention" in name else SMALL
    network = seeded(NETWORKS[name], args)
    logits = network(torch.randn(3, 3, 16, 16))
    logits.square().sum().backward()
    assert logits.shape == (3, CLASSES)
    assert all(parameter.grad is not None for parameter in network.parameters())


def values_that_are_normalised(layer: nn.Module) -> Tensor:
    """What `norm_values` gets of a 2×2 map of the numbers 0, 1, 2, …, whose first two channels are the values."""
    kept = []
    layer.norm_values.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    weight = layer.to_values.weight
    weight.data = torch.eye(2, 8).view_as(weight)
    layer(torch.arange(64.0).view(2, 8, 2, 2))
    given = kept[0] if kept[0].dim() == 3 else kept[0].flatten(2).transpose(1, 2)
    return given[0]  # positions, channels of the first image


def test_the_first_repair_keeps_channels_and_positions_apart() -> None:
    study = StudyLambdaLayer(8, 8, positions=4)
    apart = LambdaLayer(8, input_size=2, position="absolute")
    assert values_that_are_normalised(study).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert values_that_are_normalised(apart).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_the_second_repair_is_the_value_norm_alone() -> None:
    norm = PositionNorm(2)
    x = torch.tensor([[1.0, 3.0], [10.0, 20.0], [5.0, 7.0], [20.0, 30.0]])  # two images of two positions
    # position 0 has 1, 3, 5, 7 (mean 4, variance 5), position 1 has 10, 20, 20, 30 (mean 20, variance 50)
    expected = torch.tensor([[-3.0, -1.0], [-10.0, 0.0], [1.0, 3.0], [0.0, 10.0]])
    expected /= torch.tensor([5.0, 50.0, 5.0, 50.0]).sqrt()[:, None]
    x, expected = (rows.view(2, 1, 2, 2).permute(0, 3, 1, 2) for rows in (x, expected))  # maps of 1×2 positions
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)
    before, after = seeded(position_norm), seeded(training_mode_test)
    sizes = [layer.norm_values.num_features for layer in lambda_layers(before)]
    assert sizes == [16, 16, 16, 4, 4, 1, 1, 1]
    one, other = before.state_dict(), after.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if "norm_values" not in name)


def test_the_third_repair_is_evaluation_mode_alone() -> None:
    before, after = seeded(training_mode_test), seeded(build_model)
    x = torch.randn(4, 3, 16, 16)
    assert isinstance(before, AlwaysTraining)
    for network in (before, after):
        nn.init.ones_(next(module for name, module in network.named_modules() if name.endswith("layer1.0.bn3")).weight)
    torch.testing.assert_close(before(x), after(x))
    in_training = after(x)
    before.eval()
    after.eval()
    torch.testing.assert_close(before(x), in_training)
    assert not torch.allclose(after(x), in_training, atol=1e-2)


def test_the_ladder_changes_one_setting_a_rung() -> None:
    rungs = list(EXPERIMENTS["ladder"].variations.values())
    settings = [dict(rung.settings) for rung in rungs]
    assert [rung.network for rung in rungs[:3]] == ["study-layer", "position-norm", "training-mode-test"]
    assert settings[0] == settings[1] == settings[2] == settings[3] | {"bn_momentum": 0.9999}
    assert settings[3] == settings[4] | {"position": "absolute"}
    assert settings[4] == settings[5] | {"share_embeddings": True}
    momenta = {
        module.momentum
        for module in seeded(position_norm, dataclasses.replace(SMALL, bn_momentum=0.9999)).modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    assert momenta == {0.9999}


def heads_of(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (n, h, d / h) of one image."""
    parts = layer.to_queries_keys_values(x)[0].flatten(1).t().chunk(3, dim=1)
    return tuple(part.unflatten(1, (layer.heads, -1)) for part in parts)


def test_local_self_attention_is_a_loop_over_positions_and_heads() -> None:
    layer = LocalSelfAttention2d(8, (3, 4), heads=2, window=3)
    nn.init.normal_(layer.bias)
    x = torch.randn(1, 8, 3, 4)
    query, key, value = heads_of(layer, x)
    y = layer(x)[0]
    for position in range(12):
        row, column = divmod(position, 4)
        near = [(r, c) for r in range(row - 1, row + 2) for c in range(column - 1, column + 2)]
        inside = [(i, 4 * r + c) for i, (r, c) in enumerate(near) if 0 <= r < 3 and 0 <= c < 4]
        for head in range(2):
            scores = [key[m, head] @ query[position, head] / 2 + layer.bias[head, 0, i] for i, m in inside]
            weights = torch.stack(scores).softmax(0)
            expected = sum(weight * value[m, head] for weight, (_, m) in zip(weights, inside, strict=True))
            torch.testing.assert_close(y[4 * head : 4 * head + 4, row, column], expected)


def test_linear_attention_is_a_loop_over_positions() -> None:
    layer = LinearAttention2d(8, (2, 3), heads=2)
    x = torch.randn(1, 8, 2, 3)
    query, key, value = heads_of(layer, x)
    expected = torch.zeros(6, 2, 4)
    for n in range(6):
        for m in range(6):
            weight = (query[n].softmax(1) * key.softmax(0)[m]).sum(1)  # (h,)
            expected[n] += weight[:, None] * value[m]
    torch.testing.assert_close(layer(x)[0].flatten(1).t(), expected.flatten(1))


def test_keys_without_softmax_are_means_over_the_positions() -> None:
    query, key, value = torch.randn(2, 5, 3, 4), torch.zeros(2, 5, 4, 2), torch.randn(2, 5, 2, 6)
    torch.testing.assert_close(plain_content(query, key + 1.0, value), content_output(query, key, value))
    torch.testing.assert_close(plain_content(query, key + 2.0, value), 2 * content_output(query, key, value))
