"""What TensorBoard shows of a run, and what of it stays when the run is resumed."""

import dataclasses
import io
import itertools
import re
import shutil
import sys
from pathlib import Path

import pytest
from run_tools import read_metrics, scalars, small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import log_data
import main_general
from main_general import RunResult, main
from run_state import progress
from run_state.board import STEP_TAGS, table_row
from run_state.progress import Point, is_due
from run_state.run_folder import checkpoint_files
from user_input import FREE_ON_RESUME, UserInput

STEPS = 4  # of an epoch


pytestmark = pytest.mark.usefixtures("shallow")


def settings(photos: Path, runs: Path, **changes) -> UserInput:
    return small_run(photos, runs, **{"stages": "LCCC", "schedule": "step", **changes})


@pytest.fixture(scope="module")
def whole(shallow: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return main(settings(photos, tmp_path_factory.mktemp("whole")))


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def pictures(folder: Path) -> dict[str, list[int]]:
    board = read(folder)
    return {tag: [image.step for image in board.Images(tag)] for tag in board.Tags()["images"]}


# ------------------------------------------------------------------------------------------------- what is shown


def test_loss_and_top1_come_first_and_pictures_last(whole: RunResult) -> None:
    tags = read(whole.folder).Tags()
    groups = [sorted({tag.split("/")[0] for tag in tags[kind]}) for kind in ("scalars", "images")]
    assert groups == [["loss", "top-1", "training", "training steps"], ["visuals"]]
    assert groups[0] + groups[1] == sorted(groups[0] + groups[1])


def test_every_run_has_the_same_charts(whole: RunResult, photos: Path, tmp_path: Path) -> None:
    judged = main(settings(photos, tmp_path, epochs=1, validation_fraction=0.3, also_test_in_training_mode=True))
    layouts = [
        read(folder).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
        for folder in (whole.folder, judged.folder)
    ]
    assert layouts[0] == layouts[1]
    charted = [pattern.decode() for pattern in re.findall(rb"[\w-]+/\w+\$", layouts[0])]
    assert charted == [f"{chart}/{part}$" for chart in ("loss", "top-1") for part in ("train", "validation", "test")]
    for pattern in charted:  # as TensorBoard looks for them
        (tag,) = [tag for tag in read(judged.folder).Tags()["scalars"] if re.match(pattern, tag)]
        assert tag == pattern.removesuffix("$")


def test_the_table_has_what_runs_differ_in_first_and_every_setting_of_every_run(whole: RunResult) -> None:
    board = read(whole.folder)
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    first = ["Data set", "Depth", "Model", "Peak learning rate", "Seed", "Stages", "Stem"]
    assert sorted(row)[:7] == first
    assert {field.name for field in dataclasses.fields(UserInput)} - FREE_ON_RESUME - set(row) == {
        *("dataset", "depth", "model", "seed", "stages", "stem")
    }
    assert row["Peak learning rate"].number_value == 0.0025  # five times the first
    assert (row["scope"].string_value, row["share_embeddings"].string_value) == ("none", "no")
    kinds = [{name: type(value) for name, value in table_row(args, 0.1).items()} for args in (UserInput(), ODD)]
    assert kinds[0] == kinds[1]  # a column is one of numbers, or one of words


ODD = UserInput(scope=7, training_images=100, share_embeddings=True, stages="CCLL", optimizer="sgd", seed=3)


def test_settings_are_told_in_the_words_of_the_command_line(whole: RunResult) -> None:
    text = read(whole.folder).Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    for line in ("| **the network** | |", "| scope | none |", "| zero_init_residual | yes |", "| batch_size | 8 |"):
        assert line in text
    assert not re.search(r"None|True|False", text)


# --------------------------------------------------------------------------------------- points within an epoch


def test_points_are_means_over_the_epoch_so_far(whole: RunResult) -> None:
    rows, points = read_metrics(whole.folder), scalars(whole.folder)
    steps = [1, 2, 4, 8, 12]
    for tag in STEP_TAGS.values():
        assert tag == STEP_TAGS["images_per_second"] or [step for step, _ in points[tag]] == steps
    for key in ("loss", "top1"):
        ends = [value for step, value in points[STEP_TAGS[key]] if step % STEPS == 0]
        assert ends == pytest.approx([row[f"train_{key}"] for row in rows], rel=1e-6)
    assert points[STEP_TAGS["top1"]][0][1] in [100 * right / 8 for right in range(9)]
    rates = dict(points[STEP_TAGS["learning_rate"]])
    # one epoch of warm-up from 0.0005 to the peak, which the step after it has; then two epochs of a cosine
    assert [rates[1], rates[2]] == pytest.approx([0.0005, 0.001])
    assert rates[8] == pytest.approx(0.0025 * 0.6913, rel=1e-3)  # (1 + cos(3π/8)) / 2


@pytest.mark.parametrize(
    ("steps", "first", "later"),
    [
        (4, [1, 2, 4], [4]),
        (14, [1, 2, 4, 5, 10, 14], [5, 10, 14]),
        (390, [1, 2, 4, 8, 16, 19, 38, 57], [19, 38, 57]),
        (10_009, [1, 2, 4, 8, 16, 32, 50, 100], [50, 100, 150]),
    ],
)
def test_which_steps_have_a_point(steps: int, first: list[int], later: list[int]) -> None:
    for epoch, expected in ((1, first), (2, later)):
        due = [at for at in range(1, steps + 1) if is_due(at, steps, epoch)]
        assert due[: len(expected)] == expected
        assert due[-1] == steps
        assert all(later - earlier <= 50 for earlier, later in itertools.pairwise([0, *due]))


def test_bars_have_the_running_loss_and_the_speed(photos: Path, tmp_path: Path, monkeypatch) -> None:
    console = io.StringIO()
    monkeypatch.setattr(sys, "stderr", console)
    monkeypatch.setattr(progress, "hide_bar", lambda: False)
    monkeypatch.setattr(main_general, "hide_bar", lambda: False)
    result = main(settings(photos, tmp_path, epochs=1))
    (row,) = read_metrics(result.folder)
    assert re.search(rf"epoch 1: .*4/4 .*, loss {row['train_loss']:.4f}, \d+ images/s\]", console.getvalue())
    assert re.search(rf"epochs: .*1/1 .*, top-1 {row['test_top1']:.2f} % \(test\)\]", console.getvalue())


def test_a_point_that_cannot_be_written_ends_no_epoch(photos: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(board, point: Point) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(log_data.Board, "point", refuse)
    assert main(settings(photos, tmp_path, epochs=1)).epochs == 1


# --------------------------------------------------------------------------------------------- when it is resumed


def test_pictures_and_points_stay_once(whole: RunResult, photos: Path, tmp_path: Path) -> None:
    early = main(settings(photos, tmp_path, stop_after=1))
    assert pictures(early.folder)["visuals/confusion matrix of the test"] == [1]
    left = shutil.copytree(early.folder, tmp_path / "killed")
    resumed = main(settings(photos, tmp_path, resume=str(early.folder)))
    shown = pictures(resumed.folder)
    assert shown["visuals/position embeddings c2"] == [1, 2, 3]
    assert shown["visuals/confusion matrix of the test"] == [1, 3]
    assert shown["visuals/augmented training images"] == [0]
    assert scalars(resumed.folder) == scalars(whole.folder)
    # killed while the new event file was being written: both are there, the new one in part
    (old,) = left.glob("events*")
    (left / f"{old.name}.1").write_bytes(old.read_bytes()[: old.stat().st_size // 2])
    twice = main(settings(photos, tmp_path, resume=str(left)))
    assert (pictures(twice.folder), scalars(twice.folder)) == (shown, scalars(whole.folder))
    assert len(list(left.glob("events*"))) == 1


def test_what_came_after_the_checkpoint_is_done_again(whole: RunResult, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    checkpoint_files(folder)[-1].unlink()
    main(settings(photos, tmp_path, resume=str(folder)))
    assert pictures(folder) == pictures(whole.folder)
    assert scalars(folder) == scalars(whole.folder)


def test_another_runs_event_file_is_not_taken_over(whole: RunResult, photos: Path, tmp_path: Path) -> None:
    other = main(settings(photos, tmp_path, seed=1))
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    (own,), (stranger,) = folder.glob("events*"), other.folder.glob("events*")
    own.write_bytes(stranger.read_bytes())
    main(settings(photos, tmp_path, resume=str(folder)))
    ours, expected = scalars(folder), scalars(whole.folder)
    assert ours["loss/test"] == expected["loss/test"]
    assert STEP_TAGS["loss"] not in ours


def test_the_rate_of_a_point_is_the_heads(photos: Path, tmp_path: Path) -> None:
    args = small_run(photos, tmp_path, epochs=1, stages="CCCC", body_lr_factor=0.1, weight_decay_on="weights")
    points = scalars(main(args).folder)[STEP_TAGS["learning_rate"]]
    assert [value for _, value in points] == pytest.approx([args.initial_lr] * len(points))
