"""RESULTS.md is what the logs say: figures by hand, on logs made up for it, and on those that are committed."""

import json
import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from scipy.stats import t

import report
from command_line.paths import PROJECT
from evidence.runs import FOLDER, Conditions, Run, Variation
from experiments import ESTIMATES, EXPERIMENTS, facts
from report import Difference, difference, mean_and_deviation, signed, verdict, write_report

EPOCHS = 4


def write_run(
    conditions: Conditions, variation: Variation, seed: int, top1: float, *, epochs: int = EPOCHS, failure: str = ""
) -> None:
    """The logs of a run whose accuracy rises by 10 points an epoch to `top1`."""
    run = Run(variation, seed, conditions)
    folder = run.folder / "Lambda" / "run"
    folder.mkdir(parents=True)
    settings = {"seed": seed, "training_images": None, "data_dir": "data", "dataset": "cifar10"}
    settings |= {"device": "cpu", "precision": "fp32", **dict(variation.settings), "epochs": EPOCHS}
    config = {"id": "1", "number": 1, "settings": settings, "device": "a CPU", "precision": "fp32"}
    config |= {"versions": {"python": "3.11", "torch": "2.6"}}
    config |= {"parameters": 12_850_090, **facts(run, "study", 2)}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"epoch": epoch, "train_loss": 1.0, "train_top1": 50.0, "test_loss": 2.0, "validation_top1": top1 - 1}
        | {"test_top1": top1 - 10 * (epochs - epoch), "train_seconds": 30.0, "test_seconds": 15.0}
        | {"images_per_second": 100.0, "peak_memory_gib": 1.5}
        for epoch in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if failure:
        (run.folder / "failure.json").write_text(json.dumps({"kind": failure, "message": "at epoch 3"}))


def conditions(root: Path, data: str = "CIFAR-10", scale: float = 1.0) -> Conditions:
    return Conditions("cifar10", "data", data, "cpu", "fp32", scale, scale, root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CIFAR-10: three seeds of both, one more diverged, one cut off; JPEG copy: one seed of both."""
    variations = EXPERIMENTS["study"].variations
    full, copy = conditions(tmp_path), conditions(tmp_path, "CIFAR-10 (JPEG copy)", 0.1)
    for seed, (ours, theirs) in enumerate([(81.0, 84.0), (82.0, 85.0), (84.0, 86.0)]):
        write_run(full, variations["λ-ResNet-50"], seed, ours)
        write_run(full, variations["ResNet-50"], seed, theirs)
    write_run(full, variations["λ-ResNet-50"], 3, 10.0, epochs=2, failure="diverged")
    write_run(full, variations["ResNet-50"], 3, 10.0, epochs=1)
    for name in ("λ-ResNet-50", "ResNet-50"):
        write_run(copy, variations[name], 0, 60.0)
    return tmp_path


def line(text: str, *beginnings: str) -> list[str]:
    """The cells of the first line that begins so, below the lines that begin with the words before."""
    lines = iter(text.splitlines())
    for beginning in beginnings:
        found = next(row for row in lines if row.startswith(beginning))
    return [cell.strip() for cell in found.strip("|").split("|")]


# -------------------------------------------------------------------------------------------------- statistics


def test_the_difference_is_welchs_formula() -> None:
    ours, theirs = [81.0, 82.0, 84.0], [84.0, 85.0, 86.0, 85.0]
    parts = [statistics.variance(sample) / len(sample) for sample in (ours, theirs)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    mean = sum(ours) / 3 - 85.0
    half = t.ppf(0.975, freedom) * error
    p = 2 * t.sf(abs(mean) / error, freedom)
    assert difference(ours, theirs) == pytest.approx((mean, mean - half, mean + half, p))


def test_one_seed_and_no_spread_have_no_interval() -> None:
    assert difference([80.0], [82.0, 83.0]) == Difference(-2.5, None, None, None)
    assert difference([80.0] * 3, [82.0] * 3) == Difference(-2.0, None, None, None)
    assert mean_and_deviation([]) == "–"
    assert mean_and_deviation([80.0]) == "80.00 (1)"
    assert mean_and_deviation([80.0, 82.0]) == "81.00 ± 1.41 (2)"
    assert [signed(value) for value in (-0.004, 0.0, 1.256, -3.0)] == ["0.00", "0.00", "+1.26", "−3.00"]


def test_the_seeds_that_a_difference_takes() -> None:
    # 2·((1.960 + 0.842)·s/δ)²: 15.7 for s = δ
    assert [report.seeds_for(1.0, 1.0), report.seeds_for(0.5, 1.0), report.seeds_for(1.0, 0.1)] == [16, 63, 3]


@pytest.mark.parametrize(
    ("low", "high", "seeds", "says"),
    [
        (0.1, 2.0, 3, "higher"),
        (-2.0, -0.1, 5, "lower"),
        (-2.0, 0.1, 3, "not told apart"),
        (0.1, 2.0, 2, "no claim: fewer than 3 seeds"),
        (None, None, 3, "no interval: no spread"),
    ],
)
def test_what_a_difference_allows_to_say(low: float, high: float, seeds: int, says: str) -> None:
    assert verdict(Difference(1.0, low, high, 0.01), seeds) == says


# -------------------------------------------------------------------------------------------------- the report


def test_every_run_is_reported_with_what_it_was_measured_on(root: Path, tmp_path: Path) -> None:
    text = write_report(root, tmp_path, "In short: nothing.")
    assert "## Conclusions\n\nIn short: nothing.\n" in text
    place = "CIFAR-10, 4 epochs, all images, a CPU, fp32, 2 runs at once"
    row = line(text, "## CIFAR-10, cpu, fp32", "### study", "| λ-ResNet-50 |")
    assert row[:3] == ["λ-ResNet-50", "12.85", "82.33 ± 1.53 (3)"]
    assert row[-6:] == ["30.0 ± 0.0 (3)", "3.0 ± 0.0 (3)", "1.5", "3 of 4: 1 diverged", "81.4", place]
    assert line(text, "### study", "| ResNet-50 |")[-3:] == ["3 of 4: 1 cut off", "84.6", place]
    ours = line(text, "| λ-ResNet-50 − ResNet-50 |")
    # standard error √(7/9 + 1/3) = 1.054 at 3.45 degrees of freedom, whose quantile is 2.961
    assert ours[1:3] == ["−2.67", "−5.79 to +0.45"]
    assert ours[4:] == ["3 and 3", "not told apart", place]
    # variances 7/3 and 1, two degrees of freedom each
    assert "a standard deviation of 1.29 points (4 degrees of freedom" in text
    assert "8 runs, with Python 3.11, PyTorch 2.6." in text


def test_figures_on_another_copy_have_no_others_beside_them(root: Path, tmp_path: Path) -> None:
    text = write_report(root, tmp_path, "")
    chapter = text[text.index("## CIFAR-10 (JPEG copy)") : text.index("## Not run yet")]
    row = line(chapter, "| λ-ResNet-50 |")
    assert (row[2], row[-2]) == ("60.00 (1)", "1")
    assert row[-1].startswith("CIFAR-10 (JPEG copy), 4 epochs")
    assert "no claim" in line(chapter, "| λ-ResNet-50 − ResNet-50 |")[5]
    assert "0.1 of the epochs, 0.1 of the training images" in chapter
    assert "81.4" not in chapter


def test_what_is_missing_comes_with_its_command_and_time(root: Path, tmp_path: Path) -> None:
    variations = EXPERIMENTS["study"].variations.values()
    hours = {variation.name: 2.0 for variation in [*variations, *EXPERIMENTS["ladder"].variations.values()]}
    path = conditions(root).folder / ESTIMATES
    path.write_text(json.dumps({"device": "a CPU", "jobs": 2, "hours_per_run": hours}))
    text = write_report(root, tmp_path, "")
    assert "ResNet-50, cifar stem; λ-ResNet-50, cifar stem. About 20.0 h on a CPU, 2 runs at once:" in text
    command = "python experiments.py --only study --scale 0.1 0.1 --data_name 'CIFAR-10 (JPEG copy)' --device cpu"
    assert command in text
    ladder = line(text, "## Not run yet", "| ladder |")
    assert ladder[2:4] == ["21", "`python experiments.py --only ladder`"]
    assert ladder[4] == "42.0 h on a CPU, 2 runs at once (cifar-10, cpu, fp32, full)"
    assert line(text, "## Not run yet", "| best |")[4] == "`--dry-run` measures it"


def test_every_figure_follows_its_numbers(tmp_path: Path) -> None:
    everything = {variation for experiment in EXPERIMENTS.values() for variation in experiment.variations.values()}
    for variation in everything:
        for seed in (0, 1):
            write_run(conditions(tmp_path), variation, seed, 80.0 + seed)

    def digests() -> dict[str, str]:
        found = re.findall(r"figures/(\S+)/(\w+)\.svg\).*?numbers (\w+)", write_report(tmp_path, tmp_path, ""), re.S)
        for folder, name, digest in found:
            svg = (tmp_path / report.FIGURES / folder / f"{name}.svg").read_text(encoding="utf-8")
            assert f"numbers {digest}" in svg
            assert "CIFAR-10, 4 epochs, all images, a CPU, fp32" in svg
        return {name: digest for _, name, digest in found}

    before = digests()
    assert list(before) == ["study", "ladder", "learning_rate", "layers", "ablation", "hybrids", "best"]
    shared = EXPERIMENTS["study"].variations["λ-ResNet-50"]
    shutil.rmtree(Run(shared, 1, conditions(tmp_path)).folder)
    write_run(conditions(tmp_path), shared, 1, 81.5)
    after = digests()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"study", "ladder", "ablation", "hybrids"}


def test_the_learning_rate_is_chosen_on_validation_images(tmp_path: Path) -> None:
    for place, variation in enumerate(EXPERIMENTS["learning_rate"].variations.values()):
        write_run(conditions(tmp_path), variation, 0, 80.0 - abs(place - 2))
    text = write_report(tmp_path, tmp_path, "")
    assert line(text, "| ResNet-50, 0.001 |")[1:4] == ["79.00 (1)", "chosen", "80.00 (1)"]
    assert line(text, "| ResNet-50, 0.005 |")[2] == ""
    assert line(text, "| λ-ResNet-50, 0.0001 |")[2] == "chosen"


def committed_logs(folder: Path) -> Path:
    """The logs that git has, without runs that are only on this machine; all of them where there is no git."""
    listing = ["git", "-C", str(PROJECT), "ls-files", "-z", str(FOLDER.relative_to(PROJECT))]
    try:
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        return FOLDER
    for name in filter(None, names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, path)
    return folder / FOLDER.relative_to(PROJECT)


def test_the_committed_results_are_what_the_committed_logs_give(tmp_path: Path) -> None:
    conclusions = (PROJECT / report.CONCLUSIONS).read_text(encoding="utf-8")
    text = write_report(committed_logs(tmp_path / "committed"), tmp_path, conclusions)
    assert text == (PROJECT / report.RESULTS).read_text(encoding="utf-8"), "python report.py writes it anew"

    def figures(folder: Path) -> dict[str, list[str]]:
        paths = (folder / report.FIGURES).rglob("*.svg")
        return {str(path.relative_to(folder)): re.findall(r"numbers \w{16}", path.read_text()) for path in paths}

    assert figures(tmp_path) == figures(PROJECT)
