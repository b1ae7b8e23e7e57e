"""The experiments: which networks are trained under which settings, with which seeds, to answer which question.

`experiments.py` does the runs, `report.py` compares what a question says is compared.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evidence.networks import STUDYS_EMBEDDING
from evidence.runs import Variation, vary
from evidence.sources import RATES

EVALUATION, TRAINING_MODE = "evaluation", "training_mode"  # how a network is tested
Column = tuple[str, str]  # a network's label, and the mode that it is tested in
WORDS = ("CCCC", "LCCC", "LLCC", "LLLC", "LLLL", "CLLL", "CCLL", "CCCL")
# (k, h, u) of the paper's Table 10 that are compared here
DEPTHS_AND_HEADS = ((8, 4, 1), (16, 4, 1), (32, 4, 1), (16, 2, 1), (16, 8, 1), (16, 4, 4), (8, 8, 8))


@dataclass(frozen=True)
class Comparison:
    """Two networks of an experiment, by label: how far the first lies above the second on the test images."""

    ours: str
    theirs: str
    mode: str = EVALUATION  # in which both are tested
    less: "Comparison | None" = None  # another comparison that is taken off this one
    name: str = ""
    margin: float | None = None  # points within which the two count as equal

    @property
    def title(self) -> str:
        return self.name or f"{self.ours} − {self.theirs}"

    @property
    def key(self) -> str:
        """Its name in `docs/conclusions.md`, which takes no minus sign."""
        return self.name or f"{self.ours}-{self.theirs}"

    @property
    def weights(self) -> dict[Column, float]:
        """Of the columns in it."""
        own = {(self.ours, self.mode): 1.0, (self.theirs, self.mode): -1.0}
        return own | {column: -weight for column, weight in (self.less.weights if self.less else {}).items()}


@dataclass(frozen=True)
class Experiment:
    """A question, the runs that answer it, and what is read off them."""

    question: str
    variations: dict[str, Variation]  # by the label that a reader sees
    seeds: tuple[int, ...] = (0, 1, 2)
    pairs: tuple[Comparison, ...] = ()
    reference: str | None = None  # where there are no pairs: the network that every other one is compared with
    last_epochs: int = 1  # top-1 is the mean over so many last epochs
    chooses: bool = False  # a learning rate, on validation images; it compares nothing
    dataset: str | None = None  # the only one that it asks about
    figures: tuple[str, ...] = ()  # names in `evidence.drawings.DRAWERS`

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All that is compared; Holm's procedure goes over them."""
        if self.pairs or self.reference is None:
            return self.pairs
        return tuple(Comparison(label, self.reference) for label in self.variations if label != self.reference)


def rungs(labels: Sequence[str]) -> tuple[Comparison, ...]:
    """Every network compared with the one before it, and the last with the first."""
    steps = tuple(Comparison(later, earlier) for earlier, later in itertools.pairwise(labels))
    return (*steps, Comparison(labels[-1], labels[0])) if len(labels) > 2 else steps


CIFAR_STEM = {"stem": "cifar"}
# what 200 epochs on CIFAR-10 are commonly trained with: a peak of 0.1
BEST: dict[str, Any] = {"stem": "cifar", "epochs": 200, "optimizer": "sgd", "weight_decay": 5e-4}
BEST_NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-50": {"model": "baseline"},
    "λ-ResNet-50, CCLL": {"stages": "CCLL"},
    "λ-ResNet-50, LLLL, 7×7": {"scope": 7, "intra_depth": 4},
}
# What half an hour on two CPU cores is spent on, by the tries of docs/laptop.md: pooled blocks, and basic ones at first
ONE_CYCLE: dict[str, Any] = {
    "width": 32,
    "schedule": "one_cycle",
    "optimizer": "sgd",
    "initial_lr": 0.04,
    "weight_decay": 5e-4,
    "weight_decay_on": "weights",
    "normalisation": "study",
    "test_flips": True,
}
POOLED_BLOCKS: dict[str, Any] = {"depth": 10, "stem": "cifar", **ONE_CYCLE}
BASIC_BLOCKS: dict[str, Any] = {"depth": 18, "stem": "compact", **ONE_CYCLE}


def half_hour(precision: str, ours: int, twin: int, studys: int) -> dict[str, Variation]:
    """The networks that are compared after so many epochs each, which take half an hour in this precision."""
    title = f"laptop_{precision}"
    return {
        "ResNet-10": vary(title=f"{title}_twin", **POOLED_BLOCKS, model="baseline", epochs=twin),
        "λ-ResNet-10, CCLL": vary(title=f"{title}_lambda", **POOLED_BLOCKS, stages="CCLL", epochs=ours),
        "ResNet-50, the study's optimizer": vary(
            title=f"{title}_resnet-50", model="baseline", schedule="step", normalisation="study", epochs=studys
        ),
    }


IN_BOTH_MODES: dict[str, Any] = {"also_test_in_training_mode": True}  # as the study tested, and as it should have
RUNGS: dict[str, tuple[str | None, dict[str, Any]]] = {  # the mode of testing is none: weights are tested in both
    "as the study had it": ("study", {}),
    "channels and positions kept apart": ("mended-reshape", STUDYS_EMBEDDING),
    "query norm for each head and channel": ("mended-query-norm", STUDYS_EMBEDDING),
    "value norm over channels": ("mended-value-norm", STUDYS_EMBEDDING),
    "embeddings of a stage its own": (None, STUDYS_EMBEDDING),
    "relative embeddings": (None, {"share_embeddings": True}),
    "per-layer embeddings": (None, {}),
}
LADDER = {
    label: vary(network, title=f"ladder_{number}", **settings, **IN_BOTH_MODES)
    for number, (label, (network, settings)) in enumerate(RUNGS.items())
}
# The stages of docs/protocol.md
STUDYS_RECIPE: dict[str, Any] = {"normalisation": "study", **IN_BOTH_MODES}
STAGE_1 = {**STUDYS_RECIPE, "schedule": "study", "stop_after": 20, "keep_predictions": 10}
STAGE_2 = {**STUDYS_RECIPE, "schedule": "step", "epochs": 30, "keep_predictions": 5}
STAGE_3 = {**STUDYS_RECIPE, "schedule": "study", "keep_predictions": 10}
ARMS = "R is ResNet-50, S the study's λ-ResNet-50, L ours."
STUDYS_DEFICIT = Comparison("S", "R", TRAINING_MODE)
OURS = Comparison("L", "R", margin=1.0)
D = Comparison("L", "R", less=STUDYS_DEFICIT, name="D")


def arms(stage: str, names: str, settings: dict[str, Any]) -> dict[str, Variation]:
    """The networks of a stage of the protocol, by the letters of their arms."""
    every = {
        "R": vary(title=f"{stage}_R", model="baseline", **settings),
        "S": vary("study", title=f"{stage}_S", **settings),
        "L": vary(title=f"{stage}_L", **settings),
    }
    return {name: every[name] for name in names}


EXPERIMENTS = {
    "stage_1": Experiment(
        "Does the study's network fall behind ResNet-50 as its curves did, and does ours not? The study's 90-epoch "
        f"schedule, ended after 20 epochs. {ARMS}",
        arms("stage_1", "RSL", STAGE_1),
        pairs=(D, STUDYS_DEFICIT, OURS),
        last_epochs=10,
        figures=("curves", "intervals"),
    ),
    "stage_2": Experiment(
        "Where do ResNet-50 (R) and λ-ResNet-50 (L) come after 30 epochs, annealed to 0?",
        arms("stage_2", "RL", STAGE_2),
        seeds=(0, 1, 2, 3, 4),
        pairs=(OURS,),
        figures=("curves", "intervals"),
    ),
    "stage_3": Experiment(
        f"The study's comparison itself: 90 epochs of its schedule. {ARMS}",
        arms("stage_3", "RSL", STAGE_3),
        pairs=(D, STUDYS_DEFICIT, OURS),
        figures=("curves", "intervals"),
    ),
    "study": Experiment(
        "Does λ-ResNet-50 beat ResNet-50 as the study trained them (its Tables 1 to 3), and with larger maps?",
        {
            "ResNet-50": vary(model="baseline"),
            "λ-ResNet-50": vary(),
            "ResNet-50, cifar stem": vary(model="baseline", **CIFAR_STEM),
            "λ-ResNet-50, cifar stem": vary(**CIFAR_STEM),
        },
        seeds=(0, 1, 2, 3, 4),
        pairs=tuple(Comparison(f"λ-ResNet-50{stem}", f"ResNet-50{stem}") for stem in ("", ", cifar stem")),
        figures=("curves", "intervals"),
    ),
    "ladder": Experiment(
        "What did each fault of the study's implementation cost? One repair after the other.",
        {**LADDER, "ResNet-50": vary(title="ladder_R", model="baseline", **IN_BOTH_MODES)},
        pairs=(*rungs(list(LADDER)), Comparison("as the study had it", "ResNet-50", TRAINING_MODE)),
        figures=("intervals",),
    ),
    "learning_rate": Experiment(
        "How sensitive are both to the learning rate (study, Figure 10)? Chosen on a tenth of the training images.",
        {
            f"{name}, {rate:g}": vary(model=model, initial_lr=rate, validation_fraction=0.1)
            for name, model in (("ResNet-50", "baseline"), ("λ-ResNet-50", "lambda"))
            for rate in RATES
        },
        chooses=True,
        figures=("rates",),
    ),
    "layers": Experiment(
        "What do other layers in the same bottlenecks come to (paper, Tables 3 and 4)?",
        {
            "convolution": vary(model="baseline", **CIFAR_STEM),
            "convolution + SE": vary("squeeze-excitation", model="baseline", **CIFAR_STEM),
            "self-attention, global": vary("self-attention", model="baseline", **CIFAR_STEM),
            "self-attention, 7×7": vary("local-self-attention", model="baseline", **CIFAR_STEM),
            "linear attention": vary("linear-attention", model="baseline", **CIFAR_STEM),
            "λ, global": vary(**CIFAR_STEM),
            "λ, 7×7": vary(scope=7, **CIFAR_STEM),
            "λ, shared embeddings": vary(share_embeddings=True, **CIFAR_STEM),
            "λ, u = 4": vary(intra_depth=4, **CIFAR_STEM),
        },
        reference="convolution",
        figures=("trade_offs", "intervals"),
    ),
    "ablation": Experiment(
        "What does each part of the lambda layer contribute?",
        {
            "as it is": vary(**CIFAR_STEM),
            "content only": vary(position="none", **CIFAR_STEM),
            "position only": vary("position-only", **CIFAR_STEM),
            **{f"scope {r}×{r}": vary(scope=r, **CIFAR_STEM) for r in (3, 7, 15)},
            **{
                f"k = {k}, h = {h}, u = {u}": vary(key_depth=k, heads=h, intra_depth=u, **CIFAR_STEM)
                for k, h, u in DEPTHS_AND_HEADS
                if (k, h, u) != (16, 4, 1)
            },
            "keys without softmax": vary("no-softmax", **CIFAR_STEM),
            "queries not normalised": vary("no-query-norm", **CIFAR_STEM),
            "values not normalised": vary("no-value-norm", **CIFAR_STEM),
            "E starts as N(0, 0.1²)": vary("embedding-scale-0.1", **CIFAR_STEM),
            "E starts as N(0, 0.01²)": vary("embedding-scale-0.01", **CIFAR_STEM),
            "imagenet stem": vary(),
        },
        reference="as it is",
        figures=("intervals",),
    ),
    "hybrids": Experiment(
        "In which stages do lambda layers pay (paper, Table 12)? Top-1 against images per second.",
        {word: vary(stages=word) for word in WORDS},
        reference="CCCC",
        figures=("trade_offs", "intervals"),
    ),
    "laptop_bf16": Experiment(
        "What does half an hour of training on two CPU cores come to? Epochs for cores that compute in bf16.",
        half_hour("bf16", ours=21, twin=20, studys=20),
        reference="ResNet-10",
        figures=("minutes", "intervals"),
    ),
    "laptop_fp32": Experiment(
        "What does half an hour of training on two CPU cores come to in float32? Epochs for AVX2 alone.",
        half_hour("fp32", ours=11, twin=9, studys=10),
        reference="ResNet-10",
        figures=("minutes", "intervals"),
    ),
    "laptop_18": Experiment(
        "What did half an hour come to with the first network of the laptop recipe? Epochs for AVX2, in float32.",
        {
            "λ-ResNet-18, CCLL": vary(title="laptop_lambda", **BASIC_BLOCKS, stages="CCLL", epochs=13),
            "ResNet-18": vary(
                title="laptop_twin", **BASIC_BLOCKS, model="baseline", zero_init_residual=False, epochs=13
            ),
        },
        seeds=(0, 1),
        reference="ResNet-18",
        figures=("minutes", "intervals"),
    ),
    "digits": Experiment(
        "Do the networks learn the digits as well in bf16 as in float32? It is run in both precisions.",
        {
            "ResNet-50": vary(title="digits_baseline", model="baseline", epochs=5),
            "λ-ResNet-50": vary(title="digits_lambda", epochs=5),
        },
        seeds=(0, 1, 2, 3, 4),
        reference="ResNet-50",
        dataset="digits",
        figures=("intervals",),
    ),
    "best_tuning": Experiment(
        "Which learning rate do the candidates for `best` take? Chosen on a tenth of the training images.",
        {
            f"{name}, {rate:g}": vary(**BEST, **settings, initial_lr=rate, validation_fraction=0.1)
            for name, settings in BEST_NETWORKS.items()
            for rate in (0.005, 0.01, 0.02, 0.04)
        },
        seeds=(0,),
        chooses=True,
    ),
    "best": Experiment(
        "How far does a λ-ResNet-50 come, and is it above the equally tuned ResNet-50?",
        {name: vary(**BEST, **settings, initial_lr=0.02) for name, settings in BEST_NETWORKS.items()},
        seeds=(0, 1, 2, 3, 4),
        reference="ResNet-50",
        figures=("curves", "intervals"),
    ),
}
