"""`python report.py --runs`: runs of one's own as a table, and compared as the evidence is."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

import report
from command_line.errors import InputError
from evidence.own_runs import as_csv, as_markdown, differing, read_runs
from user_input import UserInput


def write(root: Path, name: str, top1: list[float], epochs: int = 0, validation: list[float] = (), **settings) -> Path:
    """A run's folder with these figures, begun in the order of the names."""
    args = UserInput(epochs=epochs or len(top1), **settings)
    folder = root / ("Lambda" if args.model == "lambda" else "Baseline") / name
    folder.mkdir(parents=True)
    config = {
        "id": name,
        "number": 1,
        "started": f"2026-11-25T12:00:{name[-2:]}",
        "settings": dataclasses.asdict(args),
        "device": "a CPU",
        "precision": "fp32",
        "parameters": 12_850_090,
        "data": {"train_images": 100, "test_images": 50, "fingerprint": {"test": {"files": "f"}}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    others = {"train_top1": 50.0, "test_loss": 1.25, "train_seconds": 50.0, "test_seconds": 10.0}
    rows = [
        {"epoch": epoch, "test_top1": value, **others}
        | ({"validation_top1": validation[epoch - 1]} if validation else {})
        for epoch, value in enumerate(top1, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def cells(text: str, beginning: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {beginning} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_stand_in_one_table_the_best_of_a_data_set_first(tmp_path: Path) -> None:
    write(tmp_path, "run00", [50.0, 70.0, 60.0], stem="cifar")
    write(tmp_path, "run01", [40.0, 80.0], epochs=3, model="baseline", scope=None, optimizer="sgd")
    write(tmp_path, "run02", [60.0, 90.0, 65.0], stages="CCLL", seed=3, validation=[30.0, 10.0, 20.0])
    write(tmp_path, "run03", [99.0] * 3, dataset="imagefolder", data_dir="elsewhere/photos", depth=26)
    runs, remarks = read_runs(tmp_path)
    assert (len(runs), remarks) == (4, [])
    assert differing(runs) == ["stem", "optimizer"]  # and not the seed, the network or the folder, named elsewhere
    text = as_markdown(runs)
    assert text.splitlines()[:6] == [
        "| network | data | settings that differ | seed | top-1 test (%) | best by validation (%) | time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| ResNet-50 | cifar10 | optimizer sgd | 0 | 80.00 (2 of 3 epochs) | – | 2 min |",
        "| λ-ResNet-50 CCLL | cifar10 | – | 3 | 65.00 | 60.00 (epoch 1) | 3 min |",
        "| λ-ResNet-50 | cifar10 | stem cifar | 0 | 60.00 | – | 3 min |",
        "| λ-ResNet-26 | photos | – | 0 | 99.00 | – | 3 min |",
    ]
    rows = list(csv.DictReader(io.StringIO(as_csv(runs))))
    assert [row["network"] for row in rows] == ["ResNet-50", "λ-ResNet-50 CCLL", "λ-ResNet-50", "λ-ResNet-26"]
    names = ("stem", "test_top1", "best_epoch", "seconds")
    assert [rows[2][name] for name in names] == ["cifar", "60.0", "", "180.0"]
    assert [rows[1][name] for name in ("best_epoch", "best_test_top1")] == ["1", "60.0"]
    assert rows[0]["epochs_done"] == "2"


def test_with_seeds_runs_are_compared_as_the_evidence_does(tmp_path: Path) -> None:
    ours, theirs = (71.0, 73.5, 72.0), (70.0, 71.0, 70.5)
    for seed in range(3):
        write(tmp_path, f"run0{seed}", [10.0, theirs[seed]], seed=seed, model="baseline")
        write(tmp_path, f"run1{seed}", [10.0, ours[seed]], seed=seed)
    write(tmp_path, "run20", [10.0, 20.0, 30.0])  # of another length, and so beside none
    write(tmp_path, "run30", [10.0, 99.0], seed=0)  # once more, which does not count
    write(tmp_path, "run40", [10.0], epochs=2, seed=4)  # unfinished
    text = as_markdown(read_runs(tmp_path)[0])
    assert "cifar10, 2 epochs, fp32, a CPU, mean ± standard deviation (seeds):" in text
    assert "| ResNet-50 | 70.50 ± 0.50 (3) |" in text
    assert "| λ-ResNet-50 | 72.17 ± 1.26 (3) |" in text
    test = ttest_rel(ours, theirs)
    low, high = test.confidence_interval()
    found = cells(text, "λ-ResNet-50 − ResNet-50")
    assert found[1] == f"+{sum(ours) / 3 - sum(theirs) / 3:.2f}"
    assert found[2].replace("−", "-") == f"{low:+.2f} to {high:+.2f}"
    assert found[3:] == [f"{test.pvalue:.3f}", "0, 1, 2", "not told apart"]


def test_one_seed_of_each_has_no_interval_and_no_common_seed_no_difference(tmp_path: Path) -> None:
    write(tmp_path, "run00", [70.0])
    write(tmp_path, "run01", [72.0], scope=7)
    text = as_markdown(read_runs(tmp_path)[0])
    assert "mean ±" not in text
    assert cells(text, "λ-ResNet-50, scope 7 − λ-ResNet-50")[1:] == ["+2.00", "–", "–", "0", "no interval"]
    write(tmp_path / "other", "run02", [72.0], scope=7, seed=1)
    write(tmp_path / "other", "run03", [70.0])
    assert "differences" not in as_markdown(read_runs(tmp_path / "other")[0])


def test_a_device_in_the_words_of_earlier_versions_is_the_same(tmp_path: Path) -> None:
    for name, settings, device in (("run00", {}, "AMD EPYC, 1 threads"), ("run01", {"scope": 7}, "AMD EPYC, 1 thread")):
        path = write(tmp_path, name, [70.0], **settings) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"device": device}))
    text = as_markdown(read_runs(tmp_path)[0])
    assert "cifar10, 1 epoch, fp32, AMD EPYC, 1 thread, differences within a seed:" in text


def test_rows_behind_a_damaged_byte_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, "run00", [70.0, 80.0, 90.0]) / "metrics.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b"80.0", b"8\xff.0") + third)
    ((run,), remarks) = read_runs(tmp_path)
    assert (len(run.rows), run.top1, remarks) == (1, 70.0, [])


def test_the_command_prints_and_writes_and_names_what_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(InputError, match="^runs: there is no run that has done an epoch in "):
        report.main(["--runs", str(tmp_path)])
    write(tmp_path, "run00", [70.0])
    (write(tmp_path, "run01", [70.0]) / "config.json").write_text("{")
    (write(tmp_path, "run02", [70.0]) / "metrics.jsonl").write_text("")
    (write(tmp_path, "run03", [70.0]) / "metrics.jsonl").write_text('{"epoch": 1}\n')
    folder = write(tmp_path, "run04", [70.0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"data": None}))
    report.main(["--runs", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("| λ-ResNet-50 |") == 1
    assert said.count("is left out: ") == 4
    assert f"{Path('Lambda/run02')} is left out: no epoch is done" in said
    assert (tmp_path / "report.md").read_text() in said
    assert len((tmp_path / "report.csv").read_text().splitlines()) == 2
