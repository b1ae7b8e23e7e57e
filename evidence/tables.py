"""Tables and sentences of RESULTS.md: at most seven columns, the conditions once, above them."""

import math
import statistics
from collections.abc import Callable, Iterable

from command_line.settings import counted
from evidence.analysis import SIGNIFICANCE, Answer, Finding, Network
from evidence.contrasts import CONFIDENCE, MOST_SEEDS, POWER, deviation_interval, equivalence, seeds_for
from evidence.logs import Chapter
from evidence.predictions import TOP1
from evidence.questions import EVALUATION, TRAINING_MODE
from evidence.records import Record
from evidence.sources import PAPER, STUDYS_RUNS, study_mean

COLUMNS = 7
NO_BREAK = "\u00a0"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    assert len(head) <= COLUMNS
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ------------------------------------------------------------------------------------------------------ numbers


def signed(value: float, digits: int = 2) -> str:
    """With a sign, and no signed nought; a dash for nan."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0.0 else text


def interval(bounds: tuple[float, float]) -> str:
    """`−0.50 to +0.70`."""
    return "–" if math.isnan(bounds[0]) else f"{signed(bounds[0])} to {signed(bounds[1])}"


def probability(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_and_deviation(values: Iterable[float], digits: int = 2) -> str:
    """`84.61 ± 0.20 (3)`, without a deviation where there is one value."""
    numbers = list(values)
    if not numbers:
        return "–"
    mean = f"{statistics.mean(numbers):.{digits}f}"
    if len(numbers) == 1:
        return f"{mean} (1)"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f} ({len(numbers)})"


def seeds_needed(points: float, deviation: float, arms: int) -> str:
    """`8`, or `more than 1000`."""
    seeds = seeds_for(points, deviation, arms)
    return f"more than {MOST_SEEDS}" if seeds is None else str(seeds)


def spans(numbers: Iterable[int]) -> str:
    """`0–2, 4`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)


# ------------------------------------------------------------------------------------------- under which conditions


def conditions(answer: Answer) -> str:
    """Data, length and schedule in plain numbers, once for all networks that have them alike."""
    parts, rates = _by_label(answer, _length), _by_label(answer, _rates)
    chosen = answer.experiment.chooses and len(rates) > 1
    parts += ["learning rates as the runs are named"] if chosen else rates
    at_once = sorted({record.config["experiment"]["jobs"] for n in answer.networks.values() for record in n.records})
    if at_once != [1]:
        parts.append(f"{' or '.join(map(str, at_once))} runs at once")
    return f"{answer.chapter.title}; {'; '.join(parts)}.\n"


def _by_label(answer: Answer, words: Callable[[Network], str]) -> list[str]:
    """What is to be said of the networks: once where all are alike, else behind the labels of those that are."""
    found: dict[str, list[str]] = {}
    for label, network in answer.networks.items():
        found.setdefault(words(network), []).append(label)
    return [text if len(found) == 1 else f"{' and '.join(labels)}: {text}" for text, labels in found.items()]


def _length(network: Network) -> str:
    """`2 epochs of 390 steps (780 steps in all), batches of 128, 49,920 training images an epoch, …`."""
    config = network.records[0].config
    settings, data = config["settings"], config["data"]
    steps = math.ceil(data["train_images"] / settings["batch_size"])
    last = min(settings["epochs"], settings.get("stop_after") or settings["epochs"])
    epochs = f"the first {last} of {settings['epochs']}" if last < settings["epochs"] else str(last)
    return (
        f"{epochs} epoch{'s' if settings['epochs'] > 1 else ''} of {steps:,} steps ({last * steps:,} steps in all), "
        f"batches of {settings['batch_size']}, {data['train_images']:,} training images an epoch, "
        f"{data['test_images']:,} test images"
    )


def _rates(network: Network) -> str:
    """`learning rate 0.0005 at first, 0.0025 at most (epoch 5), 0.00227 at the end of epoch 20`."""
    record = network.records[0]
    rates = record.config.get("learning_rates") or [
        [row["learning_rate"]] * 2 for row in record.rows if "learning_rate" in row
    ]
    settings = record.config["settings"]
    last = min(settings["epochs"], settings.get("stop_after") or settings["epochs"])
    if len(rates) < last:
        return "learning rate not in the log"
    highest = max(range(last), key=lambda epoch: max(rates[epoch]))
    return (
        f"learning rate {rates[0][0]:.3g} at first, {max(rates[highest]):.3g} at most (epoch {highest + 1}), "
        f"{rates[last - 1][1]:.3g} at the end of epoch {last}"
    )


def unfinished(answer: Answer) -> str:
    """What is not done, network by network; nothing where all is."""
    states = [f"{label}: {network.states}" for label, network in answer.networks.items() if network.states]
    return f"Not all runs are done. {'; '.join(states)}.\n" if states else ""


# ------------------------------------------------------------------------------------------------------ tables


def results(answer: Answer) -> str:
    """One line for each network, with the source's value beside ours where that may be."""
    both = any(network.endpoints(TOP1[TRAINING_MODE]) for network in answer.networks.values())
    source, of_source = _source(answer)
    head = ["network", "parameters (M)", "top-1 test (%)"]
    head += ["same, training mode (%)"] if both else []
    head += ["top-1 training (%)", "loss test / training"]
    head += [source] if source else []
    rows = []
    for label, network in answer.networks.items():
        row = [label, f"{network.parameters:.2f}", mean_and_deviation(network.endpoints(TOP1[EVALUATION]).values())]
        row += [mean_and_deviation(network.endpoints(TOP1[TRAINING_MODE]).values())] if both else []
        row += [mean_and_deviation(network.endpoints("train_top1").values())]
        losses = [network.endpoints(key).values() for key in ("test_loss", "train_loss")]
        row += [" / ".join(f"{statistics.mean(values):.3f}" if values else "–" for values in losses)]
        row += [of_source.get(label, "–")] if source else []
        rows.append(row)
    return table(head, rows)


def _source(answer: Answer) -> tuple[str, dict[str, str]]:
    """The last column: its heading, and the source's values by label; no heading where they may not stand there."""
    if not answer.chapter.comparable:
        return "", {}
    if answer.name in PAPER:
        return "paper, ImageNet: test (%)", PAPER[answer.name]
    epochs = answer.epochs
    if not (answer.repeats and epochs):
        return "", {}
    return "study: test / training (%)", {
        label: " / ".join(f"{study_mean(STUDYS_RUNS[label], part, epochs):.2f}" for part in ("test", "train"))
        for label in answer.networks
        if label in STUDYS_RUNS
    }


def plain_results(networks: Iterable[Network]) -> str:
    """One line for each network of no experiment."""
    rows = []
    for network in networks:
        keys = (TOP1[EVALUATION], "train_top1")
        tops = [mean_and_deviation(network.endpoints(key).values()) for key in keys]
        rows.append([network.label, f"{network.parameters:.2f}", *tops, network.states or "all done"])
    return table(["run", "parameters (M)", "top-1 test (%)", "top-1 training (%)", "state"], rows)


def each_seed(answer: Answer) -> str:
    """Each seed's value, in the order of the seeds."""
    seeds = sorted({record.seed for network in answer.networks.values() for record in network.done})
    if not seeds:
        return ""
    keys = {"top-1 test (%)": TOP1[EVALUATION], "training mode (%)": TOP1[TRAINING_MODE], "training (%)": "train_top1"}
    keys = {name: key for name, key in keys.items() if any(n.endpoints(key) for n in answer.networks.values())}
    rows = []
    for label, network in answer.networks.items():
        values = [network.endpoints(key) for key in keys.values()]
        rows.append([label, *(", ".join(f"{v[s]:.2f}" if s in v else "–" for s in seeds) for v in values)])
    return table([f"seed{'s' if len(seeds) > 1 else ''} {spans(seeds)}", *keys], rows)


def times(answer: Answer) -> str:
    """One line for each network with a run that is done."""
    rows = []
    for label, network in answer.networks.items():
        if network.done:
            whole = [_minutes(record) for record in network.done if _minutes(record)]
            memory = [row["peak_memory_gib"] for one in network.done for row in one.rows if "peak_memory_gib" in row]
            row = [label, mean_and_deviation(network.medians("images_per_second"), 0)]
            row += [mean_and_deviation(network.medians(f"{part}_seconds"), 1) for part in ("train", "test")]
            rows.append([*row, mean_and_deviation(whole, 1), f"{max(memory):.1f}" if memory else "–"])
    head = ["network", "images/s", "epoch of training (s)", "test (s)", "whole run (min)", "peak memory (GiB)"]
    return table(head, rows) if rows else ""


def _minutes(record: Record) -> float:
    """As many epochs as there are, each at the median, so that pauses do not count; 0 where the log lacks a time."""
    if not all("train_seconds" in row and "test_seconds" in row for row in record.rows):
        return 0.0
    return len(record.rows) * statistics.median(row["train_seconds"] + row["test_seconds"] for row in record.rows) / 60


def differences(answer: Answer, part: str) -> str:
    """One line for each comparison that has a seed in common, `part` being `test` or `train`; the latter is secondary.

    The study's own value stands last where it has one, else the verdict.
    """
    findings = [one for one in (answer.test if part == "test" else answer.training) if one.estimate]
    if not findings:
        return ""
    beside = any(answer.studys(one.comparison, part) is not None for one in findings)
    head = ["top-1 test", "points", "95 % interval", "with new test images", "p (Holm)"]
    if part == "train":
        head = ["top-1 training (secondary)", "points", "95 % interval", "p"]
    rows = [_difference(answer, one, part, beside) for one in findings]
    return table([*head, "seed by seed", "the study's" if beside else "so it is"], rows)


def _difference(answer: Answer, one: Finding, part: str, beside: bool) -> list[str]:
    found = one.estimate
    assert found is not None
    row = [one.comparison.title, signed(found.points), interval(found.interval())]
    row += [interval(one.with_images)] if part == "test" else []
    row += [probability(one.p), ", ".join(f"{seed}:{NO_BREAK}{signed(value)}" for seed, value in found.each.items())]
    studys = answer.studys(one.comparison, part)
    return [*row, ("–" if studys is None else signed(studys)) if beside else one.verdict]


def verdicts(answer: Answer) -> str:
    """What the comparisons on the test images allow to say, where the table has the study's values in that place."""
    findings = [one for one in answer.test if one.estimate]
    if not any(answer.studys(one.comparison, "test") is not None for one in findings):
        return ""
    return "; ".join(f"{one.comparison.title}: {one.verdict}" for one in findings) + ".\n"


def by_themselves(answer: Answer) -> str:
    """The paired t-test of each comparison that is known, where the model's residual is pooled over more networks."""
    if answer.arms <= 2:
        return ""
    rows = []
    for one in answer.test:
        alone = one.estimate.by_itself if one.estimate and one.estimate.known else None
        if alone and alone.known:
            rows.append([one.comparison.title, signed(alone.points), interval(alone.interval()), probability(alone.p)])
    head = ["top-1 test, each by itself (sensitivity)", "points", "95 % interval", "p, uncorrected"]
    return table(head, rows) if rows else ""


def equivalences(findings: list[Finding]) -> str:
    """Of the comparisons that have a margin: whether the two networks count as equal."""
    sentences = []
    for one in findings:
        margin = one.comparison.margin
        if margin is None or one.estimate is None or not one.estimate.known:
            continue
        p, bounds = equivalence(one.estimate, margin), one.estimate.interval(2 * CONFIDENCE - 1)
        shown = "shown" if p < SIGNIFICANCE else "not shown"
        sentences.append(
            f"That {one.comparison.title} lies within ±{margin:g} point is {shown}: two one-sided tests, "
            f"p {'' if p < 0.001 else '= '}{probability(p)}; 90 % interval {interval(bounds)}."
        )
    return " ".join(sentences) + "\n" if sentences else ""


def sample_size(answer: Answer) -> str:
    """The residual's standard deviation, and how many seeds follow from it."""
    known = [one.estimate for one in answer.test if one.estimate and one.estimate.known]
    if not known:
        return ""
    best = max(known, key=lambda found: found.freedom)
    low, high = deviation_interval(best.deviation, best.freedom)

    def seeds(points: float) -> str:
        few, found, many = (seeds_needed(points, deviation, answer.arms) for deviation in (low, best.deviation, high))
        return f"{found} seeds of each network ({few} to {many})"

    return (
        f"Within a seed, top-1 has a standard deviation of {best.deviation:.2f} points "
        f"({counted(best.freedom, 'degree')} of freedom, 95 % interval {low:.2f} to {high:.2f}). "
        f"At a power of {100 * POWER:.0f} %, to tell 1 point apart takes {seeds(1.0)}, and half a point {seeds(0.5)}.\n"
    )


def choices(answer: Answer) -> str:
    """Of an experiment that chooses a learning rate: validation beside test, and what is chosen."""
    best: dict[str, tuple[float, str]] = {}
    for label, network in answer.networks.items():
        if values := network.endpoints("validation_top1").values():
            family = label.rpartition(", ")[0]
            best[family] = max(best.get(family, (-math.inf, "")), (statistics.mean(values), label))
    chosen = {label for _, label in best.values()}
    rows = [
        [
            label,
            mean_and_deviation(network.endpoints("validation_top1").values()),
            "chosen" if label in chosen else "",
            mean_and_deviation(network.endpoints(TOP1[EVALUATION]).values()),
        ]
        for label, network in answer.networks.items()
    ]
    return table(["network, initial learning rate", "top-1 validation (%)", "", "top-1 test (%)"], rows)


def runs(chapter: Chapter) -> str:
    """Every run that was started: how far it is, its commit and its versions."""
    rows = []
    for name, records in chapter.records.items():
        for record in records:
            config = record.config
            versions = config["versions"]
            commit, mark = str(config.get("commit") or "–"), ""
            commit, mark, _ = commit.partition("-")
            software = f"{versions['python']}, {versions['torch']}"
            row = [name, str(record.seed), record.progress, str(len(record.rows))]
            rows.append(
                [*row, commit[:7] + (" changed" if mark else ""), software, str(config.get("started", "–"))[:10]]
            )
    head = ["run", "seed", "state", "epochs", "commit", "Python, PyTorch", "begun"]
    return table(head, rows)
