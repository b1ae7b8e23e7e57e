"""Logs that are odd: each leaves out no more than it must, is named in the report, and ends nothing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_tools import read_metrics
from synthetic_logs import conditions, write_predictions, write_run

import report
from evidence.predictions import of_images
from evidence.questions import EXPERIMENTS, Experiment
from evidence.records import read_record
from evidence.runs import vary

PAIR = {label: EXPERIMENTS["study"].variations[label] for label in ("ResNet-50", "λ-ResNet-50")}
OURS = "λ-ResNet-50"
CURVE = [60.0, 70.0, 80.0]
PLACE = "cifar-10_cpu_fp32_full"


@pytest.fixture
def root(tmp_path: Path, unwritten: None) -> Path:
    """Three seeds of both networks, three epochs each."""
    for seed in range(3):
        for label, variation in PAIR.items():
            write_run(
                conditions(tmp_path), variation, seed, [top1 + seed + (label == OURS) for top1 in CURVE], epochs=3
            )
    return tmp_path


def run_folder(root: Path, seed: int, label: str = OURS) -> Path:
    return root / PLACE / PAIR[label].name / f"seed-{seed}" / "Lambda" / "run"


def results(root: Path) -> tuple[str, str]:
    """The report, and what it says of odd logs, without the beginnings of the lines."""
    text, remarks = report.write_report(root, root, "")
    for remark in remarks:
        assert f"- {remark}\n" in text
    assert len(remarks) == text.partition("## What was found odd in the logs")[2].count("\n- ")
    return text, "\n".join(remarks)


def row(text: str, label: str = OURS) -> str:
    """The line of a network in the first table of results."""
    return next(line for line in text.splitlines() if line.startswith(f"| {label} |"))


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rows_of(root: Path, seed: int) -> list[dict]:
    return read_metrics(run_folder(root, seed))


def write_rows(root: Path, seed: int, rows: list[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run_folder(root, seed) / "metrics.jsonl").write_text(text)


def test_sound_logs_leave_nothing_to_say(root: Path) -> None:
    text, remarks = results(root)
    assert remarks == ""
    assert "82.00 ± 1.00 (3)" in row(text)


def test_two_devices_in_one_cell_are_kept_apart(root: Path) -> None:
    for label in PAIR:
        change(run_folder(root, 2, label) / "config.json", device="another CPU")
    text, remarks = results(root)
    assert remarks == f"{PLACE} has runs on several devices, which are kept apart: a CPU; another CPU"
    first, second = text.index("## CIFAR-10, a CPU, fp32\n"), text.index("## CIFAR-10, another CPU, fp32\n")
    assert "81.50 ± 0.71 (2)" in row(text[first:second])
    assert "83.00 (1)" in row(text[second:])
    assert set(re.findall(rf"{report.FIGURES}/(\S+)/study-curves\.svg", text)) == {PLACE, f"{PLACE}-2"}


def test_the_same_images_in_an_archive_and_as_files_are_one_data_set(root: Path) -> None:
    for label in PAIR:
        path = run_folder(root, 2, label) / "config.json"
        settings = json.loads(path.read_text())["settings"]
        change(path, settings=settings | {"dataset": "imagefolder", "data_dir": "elsewhere"})
    text, remarks = results(root)
    assert remarks == ""
    assert text.count("\n## CIFAR-10, a CPU, fp32\n") == 1
    assert "82.00 ± 1.00 (3)" in row(text)


def test_a_copied_seed_folder_is_refused(root: Path) -> None:
    seeds = root / PLACE / PAIR[OURS].name
    shutil.copytree(seeds / "seed-1", seeds / "seed-3")
    text, remarks = results(root)
    assert remarks == f"{PLACE}/lambda/seed-3 is left out: it is a run of seed 1"
    assert "82.00 ± 1.00 (3)" in row(text)
    # and where its config.json was made to say the other seed, by its id
    config = seeds / "seed-3" / "Lambda" / "run" / "config.json"
    change(config, settings=json.loads(config.read_text())["settings"] | {"seed": 3})
    text, remarks = results(root)
    assert remarks == f"{PLACE}/lambda/seed-3 is left out: it is a copy of {PLACE}/lambda/seed-1 (by its id)"
    assert "82.00 ± 1.00 (3)" in row(text)


def test_runs_in_folders_of_others_are_refused(root: Path) -> None:
    shutil.move(root / PLACE / PAIR[OURS].name, root / PLACE / "baseline_2")
    assert results(root)[1].count("baseline_2/seed-") == 3
    shutil.move(root / PLACE, root / "cifar-10_cuda_bf16_full")
    assert results(root)[1].count(f"is left out: it is a run of {PLACE}") == 3


def test_of_two_runs_in_a_seeds_folder_the_first_counts(root: Path) -> None:
    second = run_folder(root, 1).with_name("another")
    shutil.copytree(run_folder(root, 1), second)
    change(second / "config.json", id="new", started="2026-11-26T12:00:00")
    (second / "metrics.jsonl").write_text("")
    text, remarks = results(root)
    assert remarks == (
        f"{PLACE}/lambda/seed-1 holds 2 runs; the one that was begun first counts (run), and another does not"
    )
    assert "82.00 ± 1.00 (3)" in row(text)


def test_settings_that_differ_within_a_cell_are_named(root: Path) -> None:
    config = run_folder(root, 2) / "config.json"
    settings = json.loads(config.read_text())["settings"]
    change(config, settings=settings | {"batch_size": 64, "heads": 8, "workers": 5})
    text, remarks = results(root)
    assert remarks == (
        f"{PLACE}/lambda/seed-2 is left out: its settings differ from those of seed 0: heads 8, not 4, batch_size 64, "
        "not 128"
    )
    assert "81.50 ± 0.71 (2)" in row(text)


def test_settings_that_are_not_those_of_the_table_are_named(tmp_path: Path) -> None:
    variation = EXPERIMENTS["stage_1"].variations["L"]
    for seed in (0, 1):
        config = write_run(conditions(tmp_path), variation, seed, [60.0] * 20, [60.0] * 20) / "config.json"
        change(config, settings=json.loads(config.read_text())["settings"] | {"schedule": "step"})
    _, remarks = results(tmp_path)
    assert remarks.splitlines()[1] == (
        f"{PLACE}/stage_1_L/seed-1 is left out: stage_1_L has other settings today: it was run with schedule step, "
        "not study"
    )


def test_a_doubled_row_counts_once(root: Path) -> None:
    rows = rows_of(root, 0)
    write_rows(root, 0, [rows[0], rows[1], rows[1], rows[2]])
    text, remarks = results(root)
    assert remarks.endswith(
        "lambda/seed-0: epoch 2 stands twice in metrics.jsonl, with the same figures; it counts once"
    )
    assert "82.00 ± 1.00 (3)" in row(text)
    write_rows(root, 0, [rows[0], rows[1], rows[1] | {"test_top1": 99.0}, rows[2]])
    text, remarks = results(root)
    assert remarks.endswith("lambda/seed-0 is left out: epoch 2 of metrics.jsonl stands twice, with other figures")
    assert "82.50 ± 0.71 (2)" in row(text)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda rows: [rows[0], rows[2]], "epoch 3 of metrics.jsonl stands where epoch 2 should"),
        (lambda rows: [{k: v for k, v in row.items() if k != "test_top1"} for row in rows], "has no test_top1"),
        (lambda rows: [row | {"train_loss": None} for row in rows], "epoch 1 of metrics.jsonl has no train_loss"),
        (lambda rows: [{"loss": 1.0}], "line 1 of metrics.jsonl is no row of an epoch"),
        (lambda rows: [7], "line 1 of metrics.jsonl is no row of an epoch"),
    ],
)
def test_rows_with_something_missing_leave_their_run_out(root: Path, damage, says: str) -> None:
    write_rows(root, 0, damage(rows_of(root, 0)))
    text, remarks = results(root)
    assert "lambda/seed-0 is left out: " in remarks
    assert says in remarks
    assert "82.50 ± 0.71 (2)" in row(text)


def test_lines_that_cannot_be_read(root: Path) -> None:
    path = run_folder(root, 0) / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"epoch": 4, "train_l')
    text, remarks = results(root)
    assert remarks.endswith("lambda/seed-0: the last line of metrics.jsonl is not whole, and is passed over")
    assert "82.00 ± 1.00 (3)" in row(text)
    path.write_text("\x00" + whole)
    assert results(root)[1].endswith("lambda/seed-0 is left out: line 1 of metrics.jsonl cannot be read")


def test_times_that_are_missing_are_dashes(root: Path) -> None:
    for seed in range(3):
        times = ("train_seconds", "images_per_second", "peak_memory_gib", "learning_rate")
        write_rows(root, seed, [{k: v for k, v in row.items() if k not in times} for row in rows_of(root, seed)])
    text, remarks = results(root)
    assert remarks == ""
    assert f"| {OURS} | – | – | 15.0 ± 0.0 (3) | – | – |" in text


def test_a_network_without_times_is_not_drawn_against_them(tmp_path: Path) -> None:
    networks = EXPERIMENTS["laptop_18"].variations
    for drawn, variation in zip((True, False), networks.values(), strict=True):
        path = write_run(conditions(tmp_path), variation, 0, [60.0] * 13) / "metrics.jsonl"
        if not drawn:
            path.write_text(path.read_text().replace('"train_seconds"', '"seconds"', 1))  # of one epoch
    _, remarks = results(tmp_path)
    assert remarks == ""
    svg = next(tmp_path.rglob("laptop_18-minutes.svg")).read_text(encoding="utf-8")
    assert [f">{label}: 60.0 % (1 run)<" in svg for label in networks] == [True, False]
    path = next(tmp_path.rglob("laptop_lambda/seed-0/*/*/metrics.jsonl"))
    path.write_text(path.read_text().replace('"train_seconds"', '"seconds"'))
    text, _ = results(tmp_path)
    assert "### laptop_18" in text
    assert "laptop_18: minutes" not in text


def test_a_pause_does_not_count_in_the_times(root: Path) -> None:
    rows = rows_of(root, 0)
    rows[0]["train_seconds"] = 5000.0
    write_rows(root, 0, rows)
    assert "| 30.0 ± 0.0 (3) |" in results(root)[0]


def test_a_loss_that_is_not_finite_counts_as_a_failure(root: Path) -> None:
    rows = rows_of(root, 0)
    rows[1]["test_loss"] = float("nan")
    write_rows(root, 0, rows)
    text, remarks = results(root)
    assert remarks == f"{PLACE}/lambda/seed-0 counts as not finite: test_loss of epoch 2 is nan"
    assert "82.50 ± 0.71 (2)" in row(text)
    assert "2 of 5 seeds done, seed 0 not finite after epoch 3, seeds 3, 4 not begun" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"id": "1", ', "its config.json cannot be read"),
        ("[]", "its config.json cannot be read"),
        ('{"id": "1", "number": 1, "settings": {}}', "its config.json has no device"),
        (
            '{"id": "1", "number": 1, "settings": {}, "device": "a CPU", "precision": "fp32", "parameters": 1}',
            "its config.json has no settings.seed",
        ),
    ],
)
def test_a_damaged_config_leaves_that_run_out(root: Path, content: str, says: str) -> None:
    (run_folder(root, 0) / "config.json").write_text(content)
    text, remarks = results(root)
    assert remarks == f"{PLACE}/lambda/seed-0 is left out: {says}"
    assert "82.50 ± 0.71 (2)" in row(text)


def test_a_run_without_a_config_and_a_damaged_failure_are_named(root: Path) -> None:
    (run_folder(root, 0) / "config.json").unlink()
    (root / PLACE / PAIR[OURS].name / "seed-1" / "failure.json").write_text("{}")
    _, remarks = results(root)
    assert remarks.splitlines() == [
        f"{PLACE}/lambda/seed-0 is left out: it has no config.json",
        f"{PLACE}/lambda/seed-1 is left out: its failure.json cannot be read",
    ]


def test_data_sets_whose_names_differ_in_case_or_punctuation_are_kept_apart(root: Path) -> None:
    for label in PAIR:
        path = run_folder(root, 2, label) / "config.json"
        config = json.loads(path.read_text())
        change(path, experiment=config["experiment"] | {"data": "cifar 10"})
    text, remarks = results(root)
    assert remarks == f"{PLACE} has runs on data sets of several names, which are kept apart: CIFAR-10; cifar 10"
    first, second = text.index("## CIFAR-10, a CPU, fp32\n"), text.index("## cifar 10, a CPU, fp32\n")
    assert first < second
    assert "81.50 ± 0.71 (2)" in row(text[first:second])
    assert "study: test" not in text[second:]


def test_an_experiment_without_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variation = vary(heads=2)
    monkeypatch.setitem(EXPERIMENTS, "odd", Experiment("Are two heads enough?", {"two heads": variation}))
    write_run(conditions(tmp_path), variation, 0, CURVE, epochs=3)
    text, remarks = results(tmp_path)
    assert remarks == ""
    assert "Are two heads enough?" in text
    assert "No figure is drawn of this experiment." in text
    monkeypatch.delitem(EXPERIMENTS, "odd")
    assert "### Runs of no experiment of today" in results(tmp_path)[0]


# ------------------------------------------------------------------------------------------------- predictions


def test_a_contrast_image_by_image(tmp_path: Path) -> None:
    found = []
    for label, top1 in (("L", 80.0), ("R", 70.0)):
        variation = EXPERIMENTS["stage_2"].variations[label]
        write_run(conditions(tmp_path), variation, 0, [top1] * 30, [60.0] * 30, predictions=5)
        found.append(read_record(tmp_path / PLACE / variation.name / "seed-0"))
    ours, theirs = found
    remarks: list[str] = []
    pair = [(1.0, ours, "evaluation"), (-1.0, theirs, "evaluation")]
    images = of_images([pair], [29, 30], remarks)
    # the first 70 % are right in both, the next 10 % in ours alone
    np.testing.assert_array_equal(images, [0.0] * 700 + [100.0] * 100 + [0.0] * 200)
    mode = [(1.0, ours, "evaluation"), (-1.0, ours, "training_mode")]
    assert of_images([pair, mode], [30], remarks).mean() == pytest.approx((10.0 + 20.0) / 2)
    assert of_images([pair], [25, 26], remarks) is None  # not kept
    assert remarks == []
    write_predictions(ours.folder, 30, {"evaluation": 79.0})
    assert of_images([pair], [30], remarks) is None
    (ours.folder / "predictions" / "epoch0029.npz").write_bytes(b"PK nothing")
    assert of_images([pair], [29], remarks) is None
    path = ours.folder / "predictions" / "epoch0028.npz"
    with np.load(path) as arrays:
        np.savez(path, **{name: array[::-1] for name, array in arrays.items()})
    assert of_images([pair], [28], remarks) is None
    assert remarks[0] == "stage_2_L seed 0: epoch0030.npz is passed over: metrics.jsonl has another test_top1"
    assert remarks[1].startswith("stage_2_L seed 0: epoch0029.npz is passed over (")
    assert remarks[2] == "stage_2_R seed 0: its predictions are of other test images, and are passed over"
