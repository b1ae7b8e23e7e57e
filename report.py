"""Writes RESULTS.md and its figures out of the logs of all the experiments' runs, and nothing else.

    python report.py        # reads results/logs/ and docs/conclusions.md, writes RESULTS.md and results/figures/
    python report.py --names                          # the figures that docs/conclusions.md may name, and what they are
    python report.py --runs runs                      # runs of one's own: a table, Markdown to paste, and a CSV file

The same logs give the same bytes (figures: with the same matplotlib). Only `docs/conclusions.md` is written by hand,
and its figures too come out of the logs, by name. What cannot be used is named on the console and in RESULTS.md.
"""

import command_line.interrupts  # noqa: F401, I001 - first, since what follows takes seconds

from command_line.errors import InputError, one_line_errors
from command_line.evidence_tools import read_report

if __name__ == "__main__":  # here, so that --help and what is refused need not wait for PyTorch
    with one_line_errors():
        read_report(__doc__)

import shutil
from collections.abc import Iterable
from pathlib import Path

from command_line.paths import PROJECT
from evidence import conclusions, own_runs, precisions, sources, tables
from evidence.analysis import Answer, Network
from evidence.drawings import draw
from evidence.estimates import estimated
from evidence.logs import Chapter, Remarks, read_logs
from evidence.questions import EXPERIMENTS
from evidence.runs import NAMES, Conditions
from run_state.checkpoints import write_atomically

RESULTS, FIGURES, CONCLUSIONS = "RESULTS.md", "results/figures", "docs/conclusions.md"
INTRODUCTION = """# Results

Written by `python report.py` out of the logs under `results/logs/`; only the words of the conclusions
(`docs/conclusions.md`) are written by hand. `python experiments.py` makes the runs, and
[`docs/protocol.md`](docs/protocol.md) says beforehand what the stages are to show.
"""
METHOD = """## How it was measured

- Every run that was started is here, and what became of it. Nothing was chosen on test images here: top-1 is that of
  the last epoch, or the mean of the last epochs that the text names; where a setting was chosen, a tenth of the
  training images was held back for it. The learning rate of the stages is the study's, which chose it on test images
  (its Figure 10).
- *a ± s (n)* is the mean over n seeds and their sample standard deviation. One seed has no standard deviation.
- Differences are in percentage points of top-1, within a seed: the runs of a seed see the same images in the same order
  and share most of their first weights. The model is arm + seed + residual by least squares, its residual pooled over
  the networks and test modes that are compared; intervals and p-values are by Student's t. With two networks it is the
  paired t-test. With more, a second table has each comparison's own paired t-test, which does not take the residual for
  alike in all of them. An analysis takes the seeds that all its networks have done.
- p-values on test images are Holm's over all comparisons of an experiment. A difference is called higher or lower where
  that is below 0.05, else not told apart, which does not mean equal: for that there are two one-sided tests. Intervals
  are of one comparison each, so one that does not hold 0 may stand beside a difference that is not told apart.
- The first interval covers what another seed changes. The second also covers other test images: 10,000 draws take test
  images with replacement, and the mean over the seeds is spread by the model's t distribution.
- Networks are compared within the same data, length, device and precision only. Figures on another copy of a data set
  are never set beside other people's. Times are medians over the epochs, so that pauses do not count; where a run
  shared the machine with other work, they say little.
- Evaluation mode is meant where no mode is named. Peak memory is what PyTorch held on a GPU, and the most that the
  process held on a CPU, data set included.
"""


def write_report(root: Path, target: Path, words: str) -> tuple[str, Remarks]:
    """Draw the figures under `target`/results/figures, write RESULTS.md, and give its text and what was found odd.

    Args:
        root: folder of the logs.
        words: the conclusions, with placeholders for their figures.
    """
    answers, chapters, remarks = read(root)
    folder = target / FIGURES
    filled = conclusions.fill(words, conclusions.collect(answers), remarks)
    shutil.rmtree(folder, ignore_errors=True)  # no figure stays of what is no longer there
    parts = [INTRODUCTION, f"## Conclusions\n\n{filled}", METHOD]
    for chapter in chapters:
        parts.append(f"## {chapter.title}\n")
        parts += [section(answer, folder) for answer in answers[chapter.folder]]
        parts += [other_runs(chapter), "### Runs\n", tables.runs(chapter)]
    parts += [precisions.text(chapters), not_run(chapters, root), sources.text(), oddities(remarks)]
    text = "\n".join(part for part in parts if part)
    (target / RESULTS).write_text(text, encoding="utf-8")
    return text, remarks


def read(root: Path) -> tuple[dict[str, list[Answer]], list[Chapter], Remarks]:
    """The experiments under the conditions of each chapter by its folder, the chapters, and what was found odd.

    Under the name "" stand all experiments without a run: they know which figures there will be.
    """
    table = {variation.name: variation for one in EXPERIMENTS.values() for variation in one.variations.values()}
    chapters, remarks = read_logs(root, table)
    nothing = Chapter(Conditions("cifar10", "data", NAMES["cifar10"], "cpu", "fp32", root=root), "", {}, "")
    answers = {
        chapter.folder: [Answer(name, experiment, chapter, remarks) for name, experiment in EXPERIMENTS.items()]
        for chapter in (*chapters, nothing)
    }
    return answers, chapters, remarks


# ---------------------------------------------------------------------------------------------------- the text


def section(answer: Answer, folder: Path) -> str:
    """An experiment under its conditions: tables, differences, figures, what is missing."""
    if not begun(answer.name, answer.chapter):
        return ""
    experiment = answer.experiment
    parts = [f"### {answer.name}\n\n{experiment.question}\n", tables.conditions(answer), tables.unfinished(answer)]
    if experiment.chooses:
        parts.append(tables.choices(answer))
    else:
        parts += [counted(answer), *([tables.results(answer), tables.each_seed(answer)] if answer.epochs else [])]
        parts += [tables.differences(answer, "test"), tables.verdicts(answer), tables.by_themselves(answer)]
        parts += [tables.equivalences(answer.test), tables.differences(answer, "train"), tables.sample_size(answer)]
    parts += draw(answer, folder, FIGURES)
    parts.append(tables.times(answer))
    if not experiment.figures:
        parts.append("No figure is drawn of this experiment.\n")
    parts.append(missing(answer))
    return "\n".join(part for part in parts if part)


def counted(answer: Answer) -> str:
    """Which epochs the tables speak of."""
    epochs, mean = answer.epochs, len(answer.epochs) > 1
    if not epochs:
        return "No run is done yet; the curves show the epochs so far.\n"
    if len(answer.epochs_of_each) > 1:
        return f"{f'Mean over the last {len(epochs)} epochs' if mean else 'After the last epoch'} of each:\n"
    return f"Mean over epochs {tables.spans(epochs)}:\n" if mean else f"After epoch {epochs[0]}:\n"


def begun(name: str, chapter: Chapter) -> bool:
    """Whether a network of the experiment's own was begun, and not only some that an earlier one has, too."""
    order = list(EXPERIMENTS)
    earlier = {run for other in order[: order.index(name)] for run in EXPERIMENTS[other].variations.values()}
    return any(run.name in chapter.records for run in EXPERIMENTS[name].variations.values() if run not in earlier)


def missing(answer: Answer) -> str:
    """The networks that were not begun, with command and time."""
    labels = [label for label in answer.experiment.variations if label not in answer.networks]
    if not labels:
        return ""
    conditions = answer.chapter.conditions
    time = estimated(conditions.folder, answer.experiment, labels)
    about = f" About {time}:" if time else ""
    command = conditions.command("--only", answer.name, jobs=answer.chapter.jobs)
    return f"Not run yet: {'; '.join(labels)}.{about}\n\n```\n{command}\n```\n"


def not_run(chapters: list[Chapter], root: Path) -> str:
    """The experiments of which there is no run at all, with command and estimate."""
    rows = []
    for name, experiment in EXPERIMENTS.items():
        if not any(begun(name, chapter) for chapter in chapters):
            count = len(experiment.variations) * len(experiment.seeds)
            found = [
                (estimated(folder, experiment), folder.name.replace("_", ", ")) for folder in sorted(root.glob("*"))
            ]
            times = "; ".join(f"{time} ({place})" for time, place in found if time)
            rows.append([name, experiment.question, str(count), times or "`--dry-run` measures it"])
    if not rows:
        return ""
    head = ["experiment", "question", "runs", "estimated time"]
    return "## Not run yet\n\n`python experiments.py --only <experiment>` does one.\n\n" + tables.table(head, rows)


def other_runs(chapter: Chapter) -> str:
    """The runs of no experiment, such as of one that was changed: they too were started."""
    known = {variation.name for experiment in EXPERIMENTS.values() for variation in experiment.variations.values()}
    others = [Network(name, records) for name, records in chapter.records.items() if name not in known]
    if not others:
        return ""
    return "### Runs of no experiment of today\n\n" + tables.plain_results(others)


def oddities(remarks: Iterable[str]) -> str:
    """What was left out or looks wrong; nothing where all is well."""
    lines = [f"- {remark}" for remark in dict.fromkeys(remarks)]
    return "## What was found odd in the logs\n\n" + "\n".join(lines) + "\n" if lines else ""


# --------------------------------------------------------------------------------------------- the command line


def tell_own_runs(root: Path) -> None:
    """Print the table of the runs in a folder, and write it there as report.md and report.csv.

    Raises:
        InputError: there is no run, or the files cannot be written.
    """
    runs, remarks = own_runs.read_runs(root)
    text = own_runs.as_markdown(runs)
    print("\n".join([text, *remarks]))
    for name, content in {"report.md": text, "report.csv": own_runs.as_csv(runs)}.items():
        try:
            write_atomically(root / name, content.encode())
        except OSError as error:
            raise InputError(f"runs: {root / name} cannot be written ({error.strerror})") from error
        print(root / name)


def main(argv: list[str] | None = None) -> None:
    options = read_report(__doc__, argv)
    if options.runs:
        tell_own_runs(options.runs)
        return
    if options.names:
        for name, figure in conclusions.collect(read(options.runs_dir)[0]).items():
            print(f"{name:60} {'not yet measured' if figure is None else figure}")
        return
    words = (PROJECT / CONCLUSIONS).read_text(encoding="utf-8")
    _, remarks = write_report(options.runs_dir, options.target, words)
    for remark in dict.fromkeys(remarks):
        print(remark)
    print(options.target / RESULTS)


if __name__ == "__main__":
    with one_line_errors():
        main()
