"""Which runs an experiment asks for, that each is done once, and what the networks of its own code compute."""

import dataclasses
import json
import math
import re
import shlex
import signal
from pathlib import Path

import pytest
import torch
from conftest import set_defaults
from run_tools import stopped_when_asked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import experiments
from command_line.errors import InputError
from command_line.paths import PROJECT
from evidence import estimates
from evidence.estimates import duration
from evidence.networks import (
    NETWORKS,
    LinearAttention2d,
    LocalSelfAttention2d,
    plain_content,
)
from evidence.pinned import PINNED, pinned
from evidence.processes import facts, state
from evidence.questions import EXPERIMENTS, Experiment
from evidence.records import read_record
from evidence.runs import Conditions, Run, carry_out, vary
from experiments import choose_runs, find_conditions, parse
from lambda_layer import content_output
from model_preparation import build_model
from run_state import board
from user_input import RECIPES, UserInput

CLASSES = 10
SMALL = UserInput(depth=26, dataset="digits", image_size=16, position="absolute", share_embeddings=True)


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    return Conditions("digits", "data", "digits", "cpu", "fp32", 2 / 90, 0.2, root=tmp_path)


def tiny(conditions: Conditions, **settings) -> Run:
    """Two epochs of two steps."""
    return Run(vary(depth=26, image_size=8, stages="CLCC", width=16, **settings), 3, conditions)


# --------------------------------------------------------------------------------------------------- what is asked


def test_equal_variations_are_one_run() -> None:
    assert vary(stages="LLLL", heads=4) == vary()
    assert vary(stages="CCCC") == vary(model="baseline")
    assert vary(stem="cifar", scope=7).name == vary(scope=7, stem="cifar").name == "lambda_stem-cifar_scope-7"
    shared = EXPERIMENTS["study"].variations["λ-ResNet-50"]
    assert shared == EXPERIMENTS["hybrids"].variations["LLLL"]
    with pytest.raises(InputError, match="scop: no such setting"):
        vary(scop=7)


def test_every_variation_can_be_run_and_has_a_name_of_its_own(conditions: Conditions) -> None:
    everything = {variation for experiment in EXPERIMENTS.values() for variation in experiment.variations.values()}
    assert len({variation.name for variation in everything}) == len(everything)
    for variation in everything:
        assert Run(variation, 0, conditions).args.training_images in (287, 259)  # a fifth; less those held back
        assert variation.make_model in (build_model, *NETWORKS.values())


def test_an_edited_default_changes_no_experiment(conditions: Conditions) -> None:
    runs = [Run(variation, 0, conditions) for each in EXPERIMENTS.values() for variation in each.variations.values()]
    before = [run.args for run in runs]
    assert vars(UserInput()) == pinned() == PINNED, "a new setting is pinned in evidence/pinned.py, at what runs had"
    try:
        set_defaults(dict.fromkeys(PINNED, "edited"))  # which no setting allows
        with pytest.raises(InputError, match="edited is not allowed"):
            UserInput()
        assert [Run(run.variation, 0, conditions).args for run in runs] == before
        assert vary(stages="LLLL", heads=4) == vary()
        assert vary(stages="CCCC").name == "baseline"
    finally:
        set_defaults(PINNED)


def test_runs_are_chosen_seed_by_seed_and_once_each(tmp_path: Path) -> None:
    options = parse(f"--only study ladder --without *cifar* --seeds 4 2 --dataset digits --runs_dir {tmp_path}".split())
    runs = choose_runs(options, find_conditions(options))
    assert len(runs) == 2 * (2 + 8)
    assert [run.seed for run in runs] == [4] * 10 + [2] * 10
    assert list(runs.values())[:10] == ["study"] * 2 + ["ladder"] * 8


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
        ("--only studi", "only: there is no experiment studi; there is stage_1, stage_2"),
        ("--scale 0", "scale: takes one or two numbers above 0, at most 1"),
        ("--scale .1 .1 .1", "scale: takes one or two numbers"),
        ("--jobs 0", "jobs: 0 is not allowed"),
        ("--keep_estimates", "keep_estimates: takes --dry-run"),
        ("--dataset imagefolder", "data_name: an imagefolder has no name"),
        ("--dataset digits --runs resnet", "runs: no run is called resnet"),
        ("--seeds one", "^seeds: one is not allowed; takes a whole number"),
        ("--seeds", "^seeds: a value is missing"),
        ("--sede 1", "^--sede is not a flag"),
    ],
)
def test_bad_command_lines_are_refused_in_one_line(flags: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        experiments.main(flags.split())


# ------------------------------------------------------------------------------------------------------ the runs


def test_a_stopped_run_is_resumed_and_a_done_one_is_skipped(conditions: Conditions) -> None:
    run = tiny(conditions)

    with stopped_when_asked(1):
        assert carry_out(run, facts(run, "study", 1)) == signal.SIGTERM
    assert state(run) == "cut off"
    assert carry_out(run) is None
    record = run.record()
    assert (record.state, record.config["settings"]["training_images"]) == ("done", 287)
    assert "resumed after 0 epochs and 0 steps" in (record.folder / "log.txt").read_text()
    assert record.config["experiment"]["data"] == "digits"
    assert "--only study --runs lambda_depth-26" in record.config["command"]
    assert parse(shlex.split(facts(run, "study", 3)["command"])[2:]).jobs == 3
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
    carry_out(run, facts(run, "study", 1), keep_checkpoints=True)
    assert state(run) == "done"
    folder = run.record().folder
    drawn = EventAccumulator(str(folder)).Reload()
    board.drop_embeddings(folder)
    kept = EventAccumulator(str(folder)).Reload()
    left = [tag for tag in drawn.Tags()["images"] if not tag.startswith("visuals/position embeddings c")]
    assert 0 < len(left) < len(drawn.Tags()["images"])
    assert kept.Tags() == drawn.Tags() | {"images": left}
    assert kept.Scalars("loss/train") == drawn.Scalars("loss/train")

    matrix = folder / "confusion.csv"
    counts = matrix.read_text()
    matrix.unlink()
    assert state(run) == "cut off"
    carry_out(run)
    assert (state(run), matrix.read_text()) == ("done", counts)


def test_a_diverged_run_is_kept_and_not_tried_again(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = tiny(conditions, initial_lr=2e9)
    carry_out(run, facts(run, "study", 1))
    assert state(run) == "diverged"
    assert "not finite at epoch" in read_record(run.folder).failure["message"]
    monkeypatch.setitem(EXPERIMENTS, "odd", Experiment("?", {"diverging": run.variation}, seeds=(run.seed,)))
    words = "--only odd --dataset digits --device cpu --scale 0.022222222222222223 0.2".split()
    words += ["--runs_dir", str(conditions.root)]
    assert experiments.main(words) == 0
    assert "1 run on digits, 1 done" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in conditions.root.rglob("*")}
    assert experiments.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("odd: diverging ")
    assert lines[1].split()[2:5] == ["1", "0", "2"]  # seeds done, to do; epochs
    assert lines[1].endswith(run.variation.name)
    assert lines[2].startswith("about 0.0 s in all on ")
    assert {path: path.stat().st_mtime_ns for path in conditions.root.rglob("*")} == before
    assert experiments.main([*words, "--dry-run", "--keep_estimates"]) == 0
    assert list(json.loads((conditions.folder / "estimates.json").read_text())["hours_per_run"]) == [run.variation.name]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (8.04, "8.0 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (1260, "21 min"),
        (5400, "1.5 h"),
        (4e6, "1,111 h"),
    ],
)
def test_times_are_told_in_a_unit_that_shows_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert duration(math.nan) == "no memory"


def test_the_time_of_a_run_ends_where_the_run_does(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(estimates, "measure_epoch", lambda run, device: 360.0)
    place = dataclasses.replace(conditions, epochs_scale=1.0)
    run = tiny(place, stop_after=20)
    monkeypatch.setitem(EXPERIMENTS, "odd", Experiment("?", {"shortened": run.variation}))
    estimates.dry_run({run: "odd"}, place, jobs=1)
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:-1] == "odd: shortened 0 1 20 6.0 min 2.0 h".split()


def test_the_command_line_does_its_runs_in_processes(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = Run(vary("mended-query-norm", depth=26, image_size=8, width=16), 0, conditions)
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


@pytest.mark.parametrize(
    ("recipe", "name", "label"), [("laptop", "laptop_bf16", "λ-ResNet-10, CCLL"), ("gpu", "best", "λ-ResNet-50, CCLL")]
)
def test_a_recipe_is_what_its_experiment_trains(recipe: str, name: str, label: str) -> None:
    trained = PINNED | dict(EXPERIMENTS[name].variations[label].settings)
    assert {setting: trained[setting] for setting in RECIPES[recipe]} == RECIPES[recipe]
    assert UserInput(**RECIPES[recipe]).stage_word == "CCLL"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_readmes_commands_begin_anew_and_would_else_go_on_from_the_committed_runs(
    precision: str,
) -> None:
    lines = re.findall(r"^python (experiments\.py .*--only .*)$", (PROJECT / "README.md").read_text(), re.M)
    assert len(lines) == 2
    for line in lines:
        assert set(states(line, precision)) == {"to do"}
        done = "done" in states(line.replace("--runs_dir mine ", ""), precision)
        assert done == (precision == "bf16")  # those that are committed lie in folders of files, and count


def states(command: str, precision: str) -> list[str]:
    """Of a command's runs on a CPU."""
    options = parse([*shlex.split(command)[1:], "--device", "cpu", "--precision", precision])
    return [state(run) for run in choose_runs(options, find_conditions(options))]


def test_an_experiment_of_one_data_set_is_not_made_on_another() -> None:
    with pytest.raises(InputError, match="only: digits is of one data set alone: add --dataset digits"):
        parse(["--only", "stage_1", "digits"])
    assert "digits" not in parse([]).only
    assert "digits" in parse(["--dataset", "digits"]).only
