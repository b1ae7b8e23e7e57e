"""Fills in the figures of the conclusions, each by its name, so that no sentence disagrees with the logs.

`docs/conclusions.md` holds no figure of its own. Where one belongs stands `{stage_2.L-R.points}`: an experiment, what
of it, and which of its figures; `python report.py --names` lists them. Such a name means runs on CIFAR-10 at full
length. For others, their conditions' folder stands before it: `{digits_cpu_fp32_full/stage_2.L-R.points}`. A paragraph
of which a figure has not been measured yet, or differs between conditions, says so in place of its text.
"""

import re
import statistics
from collections.abc import Mapping

from command_line.errors import InputError
from evidence.analysis import Answer, Finding
from evidence.contrasts import deviation_interval, equivalence
from evidence.logs import Remarks
from evidence.predictions import TOP1
from evidence.questions import EVALUATION, TRAINING_MODE
from evidence.sources import R, S, study_mean
from evidence.tables import interval, mean_and_deviation, probability, seeds_needed, signed, spans

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
CODE = re.compile(r"`[^`]*`")
FIGURE = re.compile(r"(?<![\w.\-×])\d[\d,]*(\.\d+)?")  # not the 50 of ResNet-50, nor the 10 of CIFAR-10
LEAD = re.compile(r"\*\*[^*]+\*\* ?")  # of a paragraph: its first words, in bold
AMBIGUOUS = "measured under several conditions"
Figures = dict[str, str | None]  # by name; None where it has not been measured


def figures(answer: Answer) -> Figures:
    """Everything that the conclusions may say of an experiment."""
    found: Figures = {}
    for label in answer.experiment.variations:
        found |= _of_network(answer, label)
    for one in answer.test:
        found |= _of_comparison(answer, one, "test", one.comparison.key)
    for one in answer.training:
        found |= _of_comparison(answer, one, "train", f"{one.comparison.key}.train")
    found |= _of_spread(answer)
    found["epochs"] = " or ".join(map(spans, answer.epochs_of_each)) or None
    return {f"{answer.name}.{name}": figure for name, figure in found.items()}


def _of_network(answer: Answer, label: str) -> Figures:
    network = answer.networks.get(label)
    keys = {"top1": TOP1[EVALUATION], "top1_training_mode": TOP1[TRAINING_MODE], "train_top1": "train_top1"}
    values = {name: list(network.endpoints(key).values()) if network else [] for name, key in keys.items()}
    found: Figures = {name: mean_and_deviation(one) if one else None for name, one in values.items()}
    speed = network.medians("images_per_second") if network else []
    return {
        f"{label}.{name}": figure
        for name, figure in {
            **found,
            "parameters": f"{network.parameters:.2f}" if network else None,
            "images_per_second": f"{statistics.mean(speed):.0f}" if speed else None,
            "seeds": str(len(network.done)) if network and network.done else None,
        }.items()
    }


def _of_comparison(answer: Answer, one: Finding, part: str, name: str) -> Figures:
    found, studys = one.estimate, answer.studys(one.comparison, part)
    known = found is not None and found.known
    texts: Figures = {
        "points": signed(found.points) if found else None,
        "interval": interval(found.interval()) if found and known else None,
        "p": probability(one.p) if known else None,
        "seeds": str(len(found.each)) if found else None,
        "verdict": one.verdict if known else None,
        "studys": signed(studys) if studys is not None else None,
    }
    if part == "test":
        texts["with_new_images"] = interval(one.with_images) if interval(one.with_images) != "–" else None
        alone = found.by_itself if found and known else None
        texts["by_itself.interval"] = interval(alone.interval()) if alone else None
        texts["by_itself.p"] = probability(alone.p) if alone else None
    if part == "test" and (margin := one.comparison.margin) is not None:
        texts["margin"] = f"{margin:g}" if found else None
        texts["equivalence_p"] = probability(equivalence(found, margin)) if found and known else None
    return {f"{name}.{key}": text for key, text in texts.items()}


def _of_spread(answer: Answer) -> Figures:
    known = [one.estimate for one in answer.test if one.estimate and one.estimate.known]
    if not known:
        return dict.fromkeys(("deviation", "deviation_interval", "seeds_for_1_point", "seeds_for_half_a_point"))
    best = max(known, key=lambda found: found.freedom)
    low, high = deviation_interval(best.deviation, best.freedom)
    return {
        "deviation": f"{best.deviation:.2f}",
        "deviation_interval": f"{low:.2f} to {high:.2f}",
        "seeds_for_1_point": seeds_needed(1.0, best.deviation, answer.arms),
        "seeds_for_half_a_point": seeds_needed(0.5, best.deviation, answer.arms),
    }


def of_study() -> Figures:
    """The study's last epoch."""
    values = {name: {part: study_mean(name, part, [90]) for part in ("test", "train")} for name in (R, S)}
    found: Figures = {}
    for part, name in (("test", "top1"), ("train", "train_top1")):
        found |= {f"study.{label}.{name}": f"{values[run][part]:.2f}" for label, run in (("R", R), ("S", S))}
        found[f"study.S-R.{name}"] = signed(values[S][part] - values[R][part])
    return found


def collect(answers: Mapping[str, list[Answer]]) -> Figures:
    """All figures by name: with the chapter's folder, and without it those on CIFAR-10 at full length.

    Args:
        answers: by the folder of a chapter; one without runs names what there will be.
    """
    found: Figures = of_study()
    for folder, one_chapter in answers.items():
        for answer in one_chapter:
            for name, figure in figures(answer).items():
                if answer.networks:
                    found[f"{folder}/{name}"] = figure
                found.setdefault(name, None)
                if answer.chapter.comparable and figure is not None:
                    found[name] = figure if found[name] in (None, figure) else AMBIGUOUS
    return found


def fill(text: str, known: Figures, remarks: Remarks) -> str:
    """The conclusions with their figures; a remark says which experiments were measured under several conditions.

    Raises:
        InputError: a name that there is not, or a figure that is no placeholder.
    """
    filled = "\n\n".join(_fill(paragraph, known) for paragraph in text.strip().split("\n\n")) + "\n"
    names = [name for name in PLACEHOLDER.findall(text) if known[name] == AMBIGUOUS]
    for experiment in dict.fromkeys(name.partition(".")[0] for name in names):
        remarks.append(
            f"conclusions: {experiment} is {AMBIGUOUS}, and its paragraphs refer to their chapters; before a name, "
            "a chapter's folder and a slash say which is meant"
        )
    return filled


def _fill(paragraph: str, known: Figures) -> str:
    names = PLACEHOLDER.findall(paragraph)
    for name in names:
        if name not in known:
            raise InputError(f"conclusions: there is no figure {{{name}}}; `python report.py --names` lists them")
    if figure := FIGURE.search(CODE.sub("", PLACEHOLDER.sub("", paragraph))):
        raise InputError(f"conclusions: {figure[0]} is no placeholder; figures come out of the logs, by name")
    if several := [name for name in names if known[name] == AMBIGUOUS]:
        return f"{_lead(paragraph)}{AMBIGUOUS.capitalize()}, each with a chapter below: {_first_of(several)}."
    if missing := [name for name in names if known[name] is None]:
        return f"{_lead(paragraph)}Not yet measured: {_first_of(missing)}."
    return PLACEHOLDER.sub(lambda match: known[match[1]] or "", paragraph)


def _lead(paragraph: str) -> str:
    """Its first words in bold, with a space; nothing where it has none."""
    lead = LEAD.match(paragraph)
    return f"{lead[0].strip()} " if lead else ""


def _first_of(names: list[str]) -> str:
    return f"`{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
