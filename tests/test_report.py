"""RESULTS.md is what the logs say: figures by hand, on logs made up for it, and on those that are committed."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t, ttest_rel
from synthetic_logs import conditions, write_run

import report
from command_line.errors import InputError
from command_line.paths import LOGS, PROJECT
from evidence import tables
from evidence.contrasts import seeds_for
from evidence.estimates import ESTIMATES
from evidence.questions import EXPERIMENTS
from evidence.runs import Run
from report import write_report

STAGE_1 = EXPERIMENTS["stage_1"].variations
# mean top-1 over epochs 11 to 20 by seed, in the modes in which they are compared
R_EVALUATION, R_TRAINING = (75.0, 75.5, 76.3), (74.8, 75.1, 76.2)
S_TRAINING, L_EVALUATION = (73.6, 74.5, 75.0), (75.4, 75.6, 77.0)


def stage_1(root: Path, seeds: int = 3, s_seeds: int = 3) -> None:
    """Ten epochs at 10 %, then ten at the figures above, one point up and down in turns."""

    def curve(value: float) -> list[float]:
        return [10.0] * 10 + [value + 1, value - 1] * 5

    place = conditions(root)
    for seed in range(seeds):
        evaluation, training = curve(R_EVALUATION[seed]), curve(R_TRAINING[seed])
        write_run(place, STAGE_1["R"], seed, evaluation, training, curve(80.0), predictions=10)
        write_run(place, STAGE_1["L"], seed, curve(L_EVALUATION[seed]), training, curve(80.5 + seed), predictions=10)
        if seed < s_seeds:
            write_run(place, STAGE_1["S"], seed, [20.0] * 20, curve(S_TRAINING[seed]), curve(77.0), predictions=10)


def line(text: str, *beginnings: str) -> list[str]:
    """The cells of the first line that begins so, below the lines that begin with the words before."""
    lines = iter(text.splitlines())
    for beginning in beginnings:
        found = next(row for row in lines if row.startswith(beginning))
    return [cell.strip().replace("\u00a0", " ") for cell in found.strip("|").split("|")]


# ------------------------------------------------------------------------------------------------ the protocol


def test_stage_1_by_hand(tmp_path: Path) -> None:
    stage_1(tmp_path)
    text, remarks = write_report(tmp_path, tmp_path, "In short: nothing.")
    assert remarks == []
    assert "## Conclusions\n\nIn short: nothing.\n" in text
    chapter = text[text.index("## CIFAR-10, a CPU, fp32\n") :]
    assert (
        "the first 20 of 90 epochs of 390 steps (7,800 steps in all), batches of 128, 49,920 training images an epoch, "
        "1,000 test images; learning rate 0.0005 at first, 0.01 at most (epoch 20), 0.01 at the end of epoch 20; "
        "2 runs at once."
    ) in chapter
    assert "Mean over epochs 11–20:" in chapter
    # the study's curves over its epochs 11 to 20, added up by hand from its file
    assert line(chapter, "| R |") == [
        *["R", "12.85", "75.60 ± 0.66 (3)", "75.37 ± 0.74 (3)", "80.00 ± 0.00 (3)", "2.000 / 1.000", "74.57 / 76.40"]
    ]
    assert line(chapter, "| S |")[3] == "74.37 ± 0.71 (3)"
    assert line(chapter, "| seeds 0–2 |", "| L |") == [
        *["L", "75.40, 75.60, 77.00", "74.80, 75.10, 76.20", "80.50, 81.50, 82.50"]
    ]
    s_r = [s - r for s, r in zip(S_TRAINING, R_TRAINING, strict=True)]
    l_r = [ours - r for ours, r in zip(L_EVALUATION, R_EVALUATION, strict=True)]
    d = [ours - theirs for ours, theirs in zip(l_r, s_r, strict=True)]
    error, freedom = residual_error([(0.0, 0.0, 0.0), tuple(s_r), tuple(l_r)]), 4  # S and L beside R, each in its mode
    p_values = []
    for name, each, weights in (("D", d, 2), ("S − R", s_r, 2), ("L − R", l_r, 2)):
        mean, half = sum(each) / 3, t.ppf(0.975, freedom) * error * math.sqrt(weights / 3)
        row = line(chapter, "| top-1 test |", f"| {name} |")
        assert row[1:3] == [tables.signed(mean), f"{tables.signed(mean - half)} to {tables.signed(mean + half)}"]
        assert row[5] == ", ".join(f"{seed}: {tables.signed(value)}" for seed, value in enumerate(each))
        wide = [float(bound.replace("−", "-")) for bound in row[3].split(" to ")]
        assert wide[0] < mean - half < mean + half < wide[1]
        p_values.append(2 * t.sf(abs(mean) / (error * math.sqrt(weights / 3)), freedom))
    # D and S − R have the smallest p-values, L − R the largest, which Holm leaves as it is
    assert sorted(p_values)[2] == p_values[2]
    assert line(chapter, "| top-1 test |", "| L − R |")[4] == f"{p_values[2]:.3f}"
    assert f"L − R: {'not told apart' if p_values[2] >= 0.05 else 'higher'}" in chapter
    assert "S − R: lower" in chapter
    assert "That L − R lies within ±1 point is" in chapter
    assert line(chapter, "| top-1 training", "| L − R |")[1] == "+1.50"
    assert "(4 degrees of freedom" in chapter
    assert f"to tell 1 point apart takes {seeds_for(1.0, error, arms=3)} seeds" in chapter  # R, S, L
    curves = next(tmp_path.rglob("stage_1-curves.svg")).read_text(encoding="utf-8")
    for name in ("R (3 runs)", "R, training mode (3 runs)", "S, training mode (3 runs)", "L (3 runs)"):
        assert f">{name}<" in curves
    by_itself = line(chapter, "| top-1 test, each by itself", "| L − R |")
    theirs = ttest_rel(L_EVALUATION, R_EVALUATION)
    low, high = theirs.confidence_interval(0.95)
    assert by_itself[2:] == [f"{tables.signed(low)} to {tables.signed(high)}", f"{theirs.pvalue:.3f}"]
    assert line(chapter, "### Runs", "| stage_1_R |") == [
        *["stage_1_R", "0", "done", "20", "0123456", "3.11.7, 2.6.0", "2026-11-25"]
    ]


def residual_error(columns: list[tuple[float, ...]]) -> float:
    """Standard deviation of what is left of a full table when the means of its columns and rows are taken off."""
    grand = sum(map(sum, columns)) / 9
    rows = [sum(column[seed] for column in columns) / 3 for seed in range(3)]
    left = [column[seed] - sum(column) / 3 - rows[seed] + grand for column in columns for seed in range(3)]
    return math.sqrt(sum(value**2 for value in left) / 4)


def test_the_studys_own_values_stand_beside_ours(tmp_path: Path) -> None:
    stage_1(tmp_path)
    text, _ = write_report(tmp_path, tmp_path, "")
    # reference values of its curves over epochs 11 to 20: -0.9 points on the test images, -3.2 in training
    assert line(text, "| top-1 test |", "| S − R |")[6] == "−0.93"
    assert line(text, "| top-1 training", "| S − R |")[5] == "−3.24"
    assert line(text, "| top-1 test |", "| D |")[6] == "–"


def test_incomplete_and_unfinished_runs_are_shown_as_such(tmp_path: Path) -> None:
    stage_1(tmp_path, s_seeds=1)
    write_run(conditions(tmp_path), STAGE_1["S"], 1, [30.0] * 12, [40.0] * 12)
    write_run(conditions(tmp_path), STAGE_1["S"], 2, [30.0] * 3, [40.0] * 3, failure="diverged")
    text, _ = write_report(tmp_path, tmp_path, "")
    assert "S: 1 of 3 seeds done, seed 1 unfinished after epoch 12, seed 2 diverged after epoch 3." in text
    assert line(text, "| seeds 0–2 |", "| S |")[2] == "73.60, –, –"
    assert line(text, "| top-1 test |", "| S − R |")[1:6] == ["−1.20", "–", "–", "–", "0: −1.20"]
    assert line(text, "| top-1 test |", "| L − R |")[5] == "0: +0.40, 1: +0.10, 2: +0.70"
    assert line(text, "### Runs", "| stage_1_S | 1 |")[2:4] == ["unfinished", "12"]
    svg = next(tmp_path.rglob("stage_1-curves.svg")).read_text(encoding="utf-8")
    assert "S − R (2 runs to epoch 12, 1 to 20)" in svg


def test_runs_on_their_way_are_drawn_and_nothing_is_said_of_their_ends(tmp_path: Path) -> None:
    write_run(conditions(tmp_path), STAGE_1["R"], 1, [50.0, 60.0], [51.0, 61.0])
    text, remarks = write_report(tmp_path, tmp_path, "")
    assert remarks == []
    assert "R: 0 of 3 seeds done, seed 1 unfinished after epoch 2, seeds 0, 2 not begun." in text
    assert "No run is done yet; the curves show the epochs so far." in text
    assert "Not run yet: S; L." in text
    assert "| network |" not in text
    assert list(tmp_path.rglob("*.svg")) == [
        tmp_path / report.FIGURES / "cifar-10_cpu_fp32_full" / "stage_1-curves.svg"
    ]


def test_figures_on_another_copy_have_no_others_beside_them(tmp_path: Path) -> None:
    for name, variation in EXPERIMENTS["study"].variations.items():
        if "stem" not in name:
            write_run(
                conditions(tmp_path, "CIFAR-10 (JPEG copy)", 0.1), variation, 0, [40.0, 50.0, 60.0, 60.0], epochs=4
            )
    text, _ = write_report(tmp_path, tmp_path, "")
    chapter = text[text.index("## CIFAR-10 (JPEG copy)") : text.index("## Not run yet")]
    assert line(chapter, "| λ-ResNet-50 |") == ["λ-ResNet-50", "12.85", "60.00 (1)", "50.00 (1)", "2.000 / 1.000"]
    assert line(chapter, "| λ-ResNet-50 − ResNet-50 |")[-1] == "no interval"
    assert "0.1 of the epochs, 0.1 of the training images" in chapter
    assert "study's, one run" not in "".join(path.read_text() for path in tmp_path.rglob("*.svg"))


def test_no_table_has_more_than_seven_columns(tmp_path: Path) -> None:
    stage_1(tmp_path)
    text, _ = write_report(tmp_path, tmp_path, "")
    heads = re.findall(r"^(\|.*\|)\n\| ---", text, re.M)
    assert len(heads) > 5
    assert max(head.count("|") - 1 for head in heads) == 7


def test_intervals_are_grey_where_nothing_is_told_apart(tmp_path: Path) -> None:
    stage_1(tmp_path)
    write_report(tmp_path, tmp_path, "")
    svg = next(tmp_path.rglob("stage_1-intervals.svg")).read_text(encoding="utf-8").lower()
    # D above, S − R below, L − R grey; the curves' line colours are the same for all
    for colour in ("#0072b2", "#d55e00", "#888888"):
        assert f"stroke: {colour}" in svg


def test_a_loss_that_blows_up_is_named_and_drawn_so_that_the_others_are_seen(tmp_path: Path) -> None:
    folder = write_run(conditions(tmp_path), STAGE_1["R"], 0, [50.0] * 20, [51.0] * 20)
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[4]["test_loss"] = 3e7
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, remarks = write_report(tmp_path, tmp_path, "")
    assert remarks == [
        "cifar-10_cpu_fp32_full/stage_1_R/seed-0: after epoch 5, its test loss is 3e+07 in evaluation mode and 2.1 in "
        "training mode"
    ]
    assert remarks[0] in text
    svg = next(tmp_path.rglob("stage_1-curves.svg")).read_text(encoding="utf-8")
    assert "3.0e+07" in svg


def test_precisions_are_compared_seed_by_seed(tmp_path: Path) -> None:
    place = conditions(tmp_path)
    ours = EXPERIMENTS["digits"].variations["λ-ResNet-50"]
    bf16, fp32 = (96.0, 97.5, 97.0), (95.0, 97.0, 97.5)
    for seed in range(3):
        write_run(place, ours, seed, [50.0] * 4 + [fp32[seed]])
        write_run(replace(place, precision="bf16"), ours, seed, [50.0] * 4 + [bf16[seed]])
        write_run(replace(place, precision="fp16", data="Birds"), ours, seed, [50.0] * 5)
    text, _ = write_report(tmp_path, tmp_path, "")
    low, high = ttest_rel(bf16, fp32).confidence_interval(0.95)
    assert line(text, "## The same runs in two precisions", "| digits_lambda | test") == [
        *["digits_lambda", "test", "96.83 ± 0.76 (3)", "96.50 ± 1.32 (3)", "+0.33"],
        *[f"{tables.signed(low)} to {tables.signed(high)}", f"{ttest_rel(bf16, fp32).pvalue:.3f}"],
    ]
    assert text.count("| digits_lambda | test |") == 1  # on other images, nothing stands beside it


# -------------------------------------------------------------------------------------------- other experiments


def test_what_is_missing_comes_with_its_command_and_time(tmp_path: Path) -> None:
    for name in ("λ-ResNet-50", "ResNet-50"):
        place = conditions(tmp_path, "CIFAR-10 (JPEG copy)", 0.1)
        write_run(place, EXPERIMENTS["study"].variations[name], 0, [60.0] * 4, epochs=4)
    variations = EXPERIMENTS["study"].variations.values()
    hours = {variation.name: 2.0 for variation in [*variations, *EXPERIMENTS["hybrids"].variations.values()]}
    (place.folder / ESTIMATES).write_text(json.dumps({"device": "a CPU", "jobs": 2, "hours_per_run": hours}))
    text, _ = write_report(tmp_path, tmp_path, "")
    assert "ResNet-50, cifar stem; λ-ResNet-50, cifar stem. About 20 h on a CPU, 2 runs at once:" in text
    command = "python experiments.py --only study --scale 0.1 0.1 --data_name 'CIFAR-10 (JPEG copy)' --device cpu"
    assert f"\n{command} --precision fp32 --jobs 2\n" in text  # as its runs were made
    hybrids = line(text, "## Not run yet", "| stage_2 |")
    assert hybrids[2:] == ["10", "`--dry-run` measures it"]
    folder = conditions(tmp_path).folder
    folder.mkdir()
    (folder / ESTIMATES).write_text(
        json.dumps({"device": "a GPU", "jobs": 1, "hours_per_run": {"stage_2_R": 1, "stage_2_L": 2}})
    )
    text, _ = write_report(tmp_path, tmp_path, "")
    assert line(text, "## Not run yet", "| stage_2 |")[3] == "15 h on a GPU (cifar-10, cpu, fp32, full)"
    (folder / ESTIMATES).write_text("[]")
    assert "15.0 h" not in write_report(tmp_path, tmp_path, "")[0]


def test_every_figure_follows_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {variation for experiment in EXPERIMENTS.values() for variation in experiment.variations.values()}
    place = conditions(tmp_path, scale=0.1)
    for place_of, variation in enumerate(sorted(everything, key=lambda one: one.name)):
        for seed in (0, 1):
            top1 = [80.0 + seed * (1 + 0.1 * place_of)] * 2  # with a residual, without which there is no interval
            write_run(place, variation, seed, top1, top1, epochs=2)

    def digests() -> dict[str, str]:
        text, _ = write_report(tmp_path, tmp_path, "")
        found = re.findall(r"figures/(\S+)/([\w-]+)\.svg\).*?numbers (\w+)", text, re.S)
        for folder, name, digest in found:
            svg = (tmp_path / report.FIGURES / folder / f"{name}.svg").read_text(encoding="utf-8")
            assert f"numbers {digest}" in svg
            assert "CIFAR-10, a CPU, fp32, 0.1 of the epochs" in svg
        return {name: digest for _, name, digest in found}

    before = digests()
    expected = [f"{name}-{figure}" for name, experiment in EXPERIMENTS.items() for figure in experiment.figures]
    assert list(before) == expected
    monkeypatch.setattr(report, "EXPERIMENTS", {name: EXPERIMENTS[name] for name in ("study", "best", "hybrids")})
    shared = EXPERIMENTS["study"].variations["λ-ResNet-50"]
    shutil.rmtree(Run(shared, 1, place).folder)
    write_run(place, shared, 1, [81.5] * 2, [79.0] * 2, epochs=2)
    after = digests()
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {"study-curves", "study-intervals", "hybrids-trade_offs", "hybrids-intervals"}


def test_the_learning_rate_is_chosen_on_validation_images(tmp_path: Path) -> None:
    for place, variation in enumerate(EXPERIMENTS["learning_rate"].variations.values()):
        write_run(conditions(tmp_path), variation, 0, [80.0 - abs(place - 2)] * 4, epochs=4)
    text, _ = write_report(tmp_path, tmp_path, "")
    assert line(text, "| ResNet-50, 0.001 |")[1:4] == ["79.00 (1)", "chosen", "80.00 (1)"]
    assert line(text, "| ResNet-50, 0.005 |")[2] == ""
    assert line(text, "| λ-ResNet-50, 0.0001 |")[2] == "chosen"
    assert "learning rates as the runs are named" in text


def test_networks_of_several_lengths_with_a_seed_each(tmp_path: Path) -> None:
    ours, twin, studys = "λ-ResNet-10, CCLL", "ResNet-10", "ResNet-50, the study's optimizer"
    for label, epochs in {ours: 21, twin: 20, studys: 20}.items():
        variation = EXPERIMENTS["laptop_bf16"].variations[label]
        write_run(conditions(tmp_path), variation, 0, [50.0] * (epochs - 1) + [70.0 + epochs])
    text, remarks = write_report(tmp_path, tmp_path, "After epoch {laptop_bf16.epochs}.")
    assert remarks == []
    assert "\n\nAfter epoch 20 or 21.\n" in text
    assert "\n\nAfter the last epoch of each:\n" in text
    tops = [line(text, "### laptop_bf16", f"| {label} |")[2] for label in (ours, twin, studys)]
    assert tops == ["91.00 (1)", "90.00 (1)", "90.00 (1)"]
    assert line(text, "| top-1 test |", f"| {ours} − {twin} |")[1:] == ["+1.00", *"–––", "0: +1.00", "no interval"]
    parts = next(row for row in text.splitlines() if row.startswith("CIFAR-10, a CPU, fp32; ")).split("; ")
    assert parts[1].startswith(f"{twin} and {studys}: 20 epochs of 390 steps")
    assert parts[2].startswith(f"{ours}: 21 epochs of 390 steps")
    assert parts[3:6] == [
        f"{twin}: learning rate 0.04 at first, 0.8 at most (epoch 20), 0.8 at the end of epoch 20",
        f"{ours}: learning rate 0.04 at first, 0.84 at most (epoch 21), 0.84 at the end of epoch 21",
        f"{studys}: learning rate 0.0005 at first, 0.01 at most (epoch 20), 0.01 at the end of epoch 20",
    ]


def test_figures_that_are_no_counterpart_are_not_shown(tmp_path: Path) -> None:
    for variation in EXPERIMENTS["layers"].variations.values():
        write_run(conditions(tmp_path), variation, 0, [60.0] * 4, epochs=4)
    text, _ = write_report(tmp_path, tmp_path, "")
    assert line(text, "### layers", "| convolution |")[-1] == "76.9"
    assert line(text, "### layers", "| linear attention |")[-1] == "–"
    assert line(text, "### layers", "| self-attention, global |")[-1] == "–"


def test_numbers_as_they_are_written() -> None:
    assert tables.mean_and_deviation([]) == "–"
    assert tables.mean_and_deviation([80.0]) == "80.00 (1)"
    assert tables.mean_and_deviation([80.0, 82.0]) == "81.00 ± 1.41 (2)"
    numbers = (-0.004, 0.0, 1.256, -3.0, math.nan)
    assert [tables.signed(value) for value in numbers] == ["0.00", "0.00", "+1.26", "−3.00", "–"]
    assert [tables.probability(p) for p in (0.0004, 0.0416, math.nan)] == ["< 0.001", "0.042", "–"]
    assert tables.spans([0, 1, 2, 4, 6, 7]) == "0–2, 4, 6–7"


@pytest.mark.parametrize("name", ["target", "runs_dir", "runs"])
def test_a_folder_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name}: there is no folder"):
        report.main(["--target", str(tmp_path), f"--{name}", str(tmp_path / "nowhere")])


# ------------------------------------------------------------------------------------------ the committed results


def committed_logs(folder: Path) -> Path:
    """The logs that git has, without runs that are only on this machine; all of them where there is no git."""
    listing = ["git", "-C", str(PROJECT), "ls-files", "-z", str(LOGS.relative_to(PROJECT))]
    try:
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        return LOGS
    for name in filter(None, names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, path)
    return folder / LOGS.relative_to(PROJECT)


def least_width(table: str) -> float:
    """Pixels below which a table scrolls, about: its cells are padded, and break at spaces, hyphens and slashes."""
    rows = [[cell.strip() for cell in row.strip("|\n").split(" | ")] for row in table.splitlines()]
    words = [
        max(len(word) for cell in column for word in re.split("[ /–-]", cell)) for column in zip(*rows, strict=True)
    ]
    return sum(27 + 8.5 * longest for longest in words)


def test_tables_fit_a_page_of_830_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw", lambda *given: [])
    place = conditions(tmp_path)
    stage_1(tmp_path)
    names = {variation for one in EXPERIMENTS.values() for variation in one.variations.values()} - {*STAGE_1.values()}
    for variation in names:  # each stands in the tables of the runs
        write_run(place, variation, 0, [60.0])
    text, _ = write_report(tmp_path, tmp_path, "")
    found = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(found) > 5
    assert max(map(least_width, found)) < 830 - 32  # a page has margins


def test_the_committed_results_are_what_the_committed_logs_give(tmp_path: Path) -> None:
    conclusions = (PROJECT / report.CONCLUSIONS).read_text(encoding="utf-8")
    text, _ = write_report(committed_logs(tmp_path / "committed"), tmp_path, conclusions)
    assert text == (PROJECT / report.RESULTS).read_text(encoding="utf-8"), "python report.py writes it anew"

    def figures(folder: Path) -> dict[str, list[str]]:
        paths = (folder / report.FIGURES).rglob("*.svg")
        return {str(path.relative_to(folder)): re.findall(r"numbers \w{16}", path.read_text()) for path in paths}

    assert figures(tmp_path) == figures(PROJECT)
