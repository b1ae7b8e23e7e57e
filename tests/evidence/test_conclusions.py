"""Every figure of the conclusions comes out of the logs by its name."""

import re
from pathlib import Path

import pytest
from synthetic_logs import conditions, write_run

import report
from command_line.errors import InputError
from command_line.paths import PROJECT
from evidence.conclusions import collect, fill
from evidence.questions import EXPERIMENTS

STAGE_2 = EXPERIMENTS["stage_2"].variations


def stage_2(root: Path, data: str = "CIFAR-10", shift: float = 0.0) -> None:
    for seed, (ours, theirs) in enumerate([(88.0, 87.0), (88.5, 88.0), (89.0, 88.1)]):
        for label, top1 in (("L", ours + shift), ("R", theirs)):
            write_run(conditions(root, data), STAGE_2[label], seed, [top1] * 30, [60.0] * 30, predictions=5)


def filled(words: str, root: Path) -> str:
    """The words with the figures of the logs, of which there is nothing to remark."""
    remarks: list[str] = []
    text = fill(words, collect(report.read(root)[0]), remarks)
    assert remarks == []
    return text


def test_figures_stand_where_their_names_stood(tmp_path: Path) -> None:
    stage_2(tmp_path)
    words = "**Two.** L has {stage_2.L.top1} %, L − R is\n{stage_2.L-R.points} over {stage_2.L-R.seeds} seeds."
    # (1.0 + 0.5 + 0.9) / 3
    assert filled(words, tmp_path) == "**Two.** L has 88.50 ± 0.50 (3) %, L − R is\n+0.80 over 3 seeds.\n"
    assert filled("{stage_2.epochs}, {stage_2.L-R.margin}, {study.S-R.top1}", tmp_path) == "30, 1, −3.24\n"


def test_what_has_no_run_yet_is_said_to_have_none(tmp_path: Path) -> None:
    stage_2(tmp_path)
    words = "**One.** {stage_2.L-R.points}.\n\n**Two.** {stage_1.D.points},\n{stage_1.D.p}.\n\nNo {stage_3.D.p}."
    assert filled(words, tmp_path) == (
        "**One.** +0.80.\n\n**Two.** Not yet measured: `stage_1.D.points` and 1 more.\n\n"
        "Not yet measured: `stage_3.D.p`.\n"
    )


def test_a_name_means_cifar_10_unless_its_folder_says_otherwise(tmp_path: Path) -> None:
    stage_2(tmp_path, "a copy", shift=1.0)
    words = "{stage_2.L-R.points} and {a-copy_cpu_fp32_full/stage_2.L-R.points}"
    assert filled(words, tmp_path) == "Not yet measured: `stage_2.L-R.points`.\n"
    stage_2(tmp_path)
    assert filled(words, tmp_path) == "+0.80 and +1.80\n"


def test_what_is_measured_under_several_conditions_is_left_to_the_chapters(tmp_path: Path) -> None:
    stage_2(tmp_path)
    for label in ("L", "R"):
        config = {"device": "a GPU", "id": f"another {label}"}
        write_run(conditions(tmp_path), STAGE_2[label], 3, [80.0] * 30, [60.0] * 30, **config)
    words = "**Two.** After {stage_2.epochs}, {stage_2.L-R.points} over {stage_2.L-R.seeds} seeds.\n\n"
    words += "After {stage_2.epochs}.\n\n{cifar-10_cpu_fp32_full-2/stage_2.L-R.points}."
    text, remarks = report.write_report(tmp_path, tmp_path, words)
    assert text.partition("## Conclusions\n\n")[2].startswith(
        "**Two.** Measured under several conditions, each with a chapter below: `stage_2.L-R.points` and 1 more.\n\n"
        "After 30.\n\n0.00.\n"  # both ended after as many epochs
    )
    assert [remark for remark in remarks if remark.startswith("conclusions: ")] == [
        "conclusions: stage_2 is measured under several conditions, and its paragraphs refer to their chapters; before "
        "a name, a chapter's folder and a slash say which is meant"
    ]
    assert (tmp_path / report.RESULTS).read_text(encoding="utf-8") == text
    with pytest.raises(InputError, match="there is no figure {stage_2.L-R.point}"):
        report.write_report(tmp_path, tmp_path, words + " {stage_2.L-R.point}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("It is {stage_2.L-R.point}.", r"conclusions: there is no figure \{stage_2.L-R.point\}"),
        ("It is {}.", "there is no figure"),
        ("L has 88.5 %.", "conclusions: 88.5 is no placeholder"),
        ("It takes 5 seeds.", "conclusions: 5 is no placeholder"),
        ("All 50,000 images.", "conclusions: 50,000 is no placeholder"),
    ],
)
def test_other_names_and_other_figures_are_refused_in_a_line(tmp_path: Path, words: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        report.write_report(tmp_path, tmp_path, words)


def test_names_of_networks_and_data_sets_are_no_figures(tmp_path: Path) -> None:
    words = "λ-ResNet-50 on CIFAR-10, at commit `fc07bb1`.\n"
    assert filled(words, tmp_path) == words


def test_every_name_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stage_2(tmp_path)
    report.main(["--names", "--runs_dir", str(tmp_path)])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    used = re.findall(r"\{([^}]*)\}", (PROJECT / report.CONCLUSIONS).read_text(encoding="utf-8"))
    assert set(used) <= listed.keys()
    assert listed["stage_2.L-R.points"] == "+0.80"
    assert listed["stage_1.D.p"] == "not yet measured"


def test_the_committed_conclusions_can_be_filled_with_every_stage_done(tmp_path: Path) -> None:
    for name, count in (("stage_1", 20), ("stage_2", 30), ("stage_3", 90)):
        for place, variation in enumerate(EXPERIMENTS[name].variations.values()):
            for seed in range(3):
                curve = [70.0 + place + 0.1 * ((seed * (place + 1)) % 3)] * count
                train = [75.0 + place + 0.2 * ((seed + place) % 2)] * count
                write_run(conditions(tmp_path), variation, seed, curve, curve, train, predictions=10)
    text, remarks = report.write_report(tmp_path, tmp_path, (PROJECT / report.CONCLUSIONS).read_text(encoding="utf-8"))
    assert remarks == []
    conclusions = text[: text.index("## How it was measured")]
    assert "Not yet measured" not in conclusions
    assert "{" not in conclusions
