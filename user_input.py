"""Every setting of a run, once: edit a default here, or pass the flag of the same name; the two are the same thing.

    python main_general.py --model baseline --batch_size 256 --deterministic

`UserInput` checks itself, so a value that cannot work is refused before anything is read or written.
Sources: "study" is de Alvear Cárdenas and de Vries (2021), "paper" is Bello (2021), both named in the README.
"""

import argparse
import dataclasses
import difflib
import os
import shlex
import types
import typing
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line.errors import InputError, Parser, one_line_errors
from run_state import run_folder

PROJECT = Path(__file__).resolve().parent
LATEST = "latest"
PATHS = ("data_dir", "runs_dir", "resume")
LARGEST = 2**31 - 1  # of any whole number: what is beyond it overflows somewhere
NARROWEST_STAGE = 64  # channels of the 3×3 convolution in stage c2; every later stage has twice those of the one before
# What may change between the start of a run and its resumption without making its figures another run's.
FREE_ON_RESUME = frozenset(
    [
        "data_dir",
        "runs_dir",
        "workers",
        "memory_gib",
        "device",
        "compile",
        "cuda_graph",
        "deterministic",
        "stop_after",
        "keep_predictions",
        "checkpoint_every",
        "resume",
    ]
)
# Settings of earlier versions that are no more, with the values at which they said what is now always so.
RETIRED: dict[str, tuple[Any, ...]] = {}


def setting(default: Any, help: str, *, before: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A documented field. Limits: `choices`, `minimum`, `maximum` (both included), `above`, `below` (excluded).

    `before` is the value that does what was done before there was the setting, where that is not its default: a run
    that was saved without the setting takes it.
    """
    before = default if before is dataclasses.MISSING else before
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits, "before": before})


@dataclass(frozen=True)
class UserInput:
    """The settings of one run; raises `InputError` with one line for a value that is not allowed.

    `data_dir` and `runs_dir` are taken from the project's folder where they are relative; on the command line
    they are taken from the current folder, as everywhere in a shell.
    """

    # The network
    model: str = setting(
        "lambda",
        "network: lambda layers or 3×3 convolutions in the bottlenecks",
        choices=("lambda", "baseline"),
    )
    depth: int = setting(
        50, "number of layers of the ResNet (study: 50)", choices=(26, 50, 101, 152, 200, 270, 350, 420)
    )
    stages: str = setting(
        "auto",
        "C (convolution) or L (lambda) for each of the stages c2 to c5, such as CCLL (paper, Table 12); "
        "auto: LLLL for lambda, CCCC for baseline",
    )
    stem: str = setting(
        "imagenet",
        "first layers: imagenet is 7×7 with stride 2 and a max pool (study), compact 3×3 with stride 2, cifar 3×3 with "
        "stride 1; the stages see 32×32 images as maps of 8, 4, 2, 1 or 16, 8, 4, 2 or 32, 16, 8, 4 positions a side",
        choices=("imagenet", "compact", "cifar"),
    )
    key_depth: int = setting(16, "k, channels of a query and of a key (study: 16)", minimum=1)
    heads: int = setting(4, "h, heads; divides the channels of every lambda stage (study: 4)", minimum=1)
    intra_depth: int = setting(1, "u, intra-depth of keys and values (study: 1; paper's best: 4)", minimum=1)
    scope: int | None = setting(
        None,
        "r, odd side in positions of the window that position lambdas see; none: the whole map (study)",
        minimum=1,
    )
    position: str = setting(
        "relative",
        "position embeddings: relative (paper), absolute (study; whole map only) or none",
        choices=("relative", "absolute", "none"),
    )
    share_embeddings: bool = setting(False, "one position embedding for all the layers of a stage (study: yes)")
    zero_init_residual: bool = setting(True, "start the last batch norm of every residual branch at γ = 0 (paper)")
    bn_momentum: float = setting(
        0.1,
        "weight of the newest batch in the running statistics of batch norm (PyTorch's sense and default; "
        "the study's 0.9999 kept those of the last batch only)",
        above=0.0,
        maximum=1.0,
    )
    sync_batch_norm: bool = setting(
        False, "batch norm over the whole batch of all torchrun's processes, not over each process's share of it"
    )

    # The data
    dataset: str = setting(
        "cifar10",
        "cifar10, cifar100 (downloaded when absent), digits (no download) or imagefolder (data_dir/train/<class>, "
        "data_dir/test/<class>)",
        choices=("cifar10", "cifar100", "imagefolder", "digits"),
    )
    data_dir: str = setting("data", "folder that holds, or will hold, the data set")
    image_size: int = setting(32, "side in pixels that the network sees (study: 32)", minimum=1)
    normalisation: str = setting(
        "auto",
        "mean and standard deviation of the pixels: study (its values for CIFAR-10), measured on the training images, "
        "or auto (study for cifar10, ImageNet's where images stream, else measured)",
        choices=("auto", "study", "measured"),
    )
    batch_size: int = setting(128, "images per training step, of all processes together (study: 128)", minimum=2)
    workers: int = setting(
        2, "processes that load images which do not fit in memory; 0: the main process", minimum=0, maximum=256
    )
    memory_gib: float = setting(
        2.0,
        "memory in GiB that a data set may take on the training device of each process; a larger one streams",
        minimum=0.0,
    )
    training_images: int | None = setting(
        None,
        "train on so many of the training images, drawn once and the same for every seed; none: all of them (study)",
        minimum=2,
    )
    validation_fraction: float = setting(
        0.0, "share of the training images held back to choose settings on (study: 0)", minimum=0.0, below=1.0
    )

    # The training
    epochs: int = setting(90, "passes over the training images (study: 90)", minimum=1)
    stop_after: int | None = setting(
        None, "end after so many epochs of the schedule that `epochs` describes; none: after all of them", minimum=1
    )
    warmup_epochs: int = setting(
        5,
        "epochs in which the learning rate rises from initial_lr to warmup_epochs × initial_lr, before cosine "
        "annealing (study: 5); takes a fifth of the epochs at most",
        minimum=0,
    )
    schedule: str = setting(
        "epoch",
        "when the learning rate changes: by epoch, towards 0; study, the same with the cosine one epoch further on, so "
        "that the last epoch has 0 (as its code does); or by step, reaching 0 after the last step",
        choices=("epoch", "study", "step"),
    )
    optimizer: str = setting(
        "adam", "adam (study), adamw or sgd (with Nesterov momentum)", choices=("adam", "adamw", "sgd")
    )
    initial_lr: float = setting(5e-4, "learning rate of the first epoch (study: 0.0005)", above=0.0)
    momentum: float = setting(0.9, "momentum of sgd, first beta of adam and adamw (study: 0.9)", minimum=0.0, below=1.0)
    beta2: float = setting(0.9999, "second beta of adam and adamw (study: 0.9999)", minimum=0.0, below=1.0)
    weight_decay: float = setting(1e-4, "weight decay (study: 1e-4; decoupled with adamw)", minimum=0.0)
    label_smoothing: float = setting(
        0.1, "share of the target spread over all classes in training (study: 0.1)", minimum=0.0, below=1.0
    )
    average: str = setting(
        "none",
        "average of the weights, tested beside them: exponential (paper), or of the last_epochs; its batch norms are "
        "estimated anew on training images",
        choices=("none", "exponential", "last_epochs"),
    )
    average_decay: float = setting(
        0.9999, "of the exponential average: share of the old in each step (paper: 0.9999)", above=0.0, below=1.0
    )
    average_epochs: int = setting(10, "of the average of the last epochs: how many", minimum=1)

    # The test
    also_test_in_training_mode: bool = setting(
        False,
        "test a second time with batch norms in training mode, as the study did: batches of batch_size images, in an "
        "order of each epoch's own; the running statistics stay as they are",
    )
    keep_predictions: int = setting(
        0, "of so many of the last epochs, write the predicted class of every test image", minimum=0
    )

    # The machine
    seed: int = setting(0, "fixes initial weights, order and augmentation (study: 0)", minimum=0, maximum=2**32 - 1)
    device: str = setting("auto", "auto (cuda, else mps, else cpu), cpu, cuda, cuda:<index> or mps")
    precision: str = setting(
        "auto",
        "auto (bf16, or fp16 with loss scaling, where the GPU computes in it; else fp32), fp32, bf16 or fp16",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = setting(False, "compile the network with torch.compile (one to two minutes at the start)")
    cuda_graph: bool = setting(
        True, "on one CUDA GPU, replay the training step as a CUDA graph; where that fails, go on without and say so"
    )
    deterministic: bool = setting(False, "use only deterministic algorithms: the same result on every run, slower")

    # The run's folder
    runs_dir: str = setting("runs", "folder in which every run gets a folder of its own")
    checkpoint_every: int = setting(5, "epochs between two checkpoints (study: 5)", minimum=1)
    resume: str | None = setting(
        None,
        "go on with a run: its folder, or latest for the newest run of the model (--resume alone); none: start anew",
    )

    def __post_init__(self) -> None:
        for name in PATHS:
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        _check_stages(self)
        if self.scope is not None and self.scope % 2 == 0:
            raise InputError(f"scope: {self.scope} is even; a window around a position has an odd side, or none")
        if self.scope is not None and self.position != "relative":
            raise InputError(f"scope: a window needs position relative, not {self.position}; or take scope none")
        if "L" in self.stage_word:
            stage = self.stage_word.index("L")
            channels = NARROWEST_STAGE << stage
            if channels % self.heads:
                raise InputError(f"heads: {self.heads} does not divide the {channels} channels of stage c{stage + 2}")

    @property
    def stage_word(self) -> str:
        """`stages` with auto replaced (computed)."""
        if self.stages == "auto":
            return "LLLL" if self.model == "lambda" else "CCCC"
        return self.stages

    @property
    def last_epoch(self) -> int:
        """The epoch after which the run ends: `epochs`, or `stop_after` where that comes first (computed)."""
        return self.epochs if self.stop_after is None else min(self.epochs, self.stop_after)

    @property
    def data_path(self) -> Path:
        """`data_dir` as a full path (computed)."""
        return PROJECT / self.data_dir

    @property
    def runs_path(self) -> Path:
        """`runs_dir` as a full path (computed)."""
        return PROJECT / self.runs_dir

    @property
    def resume_path(self) -> Path | None:
        """`resume` as a full path; None where it names no folder (computed)."""
        return None if self.resume in (None, LATEST) else PROJECT / self.resume

    def command(self) -> str:
        """The command line that gives these settings (computed)."""
        flags = [_flag(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return " ".join(["python main_general.py", *filter(None, flags)])


def load_user_input(argv: list[str] | None = None) -> UserInput:
    """The settings with the flags of `argv` (the process's own by default) in place of the defaults.

    With `--resume`, a setting whose flag is not given is that of the run which is resumed.
    Ends the process with exit code 2 and one line for a flag or value that is not allowed.
    """
    with one_line_errors():
        given = vars(_parser().parse_args(argv))
        args = UserInput(**given)
        return args if args.resume is None else _resumed(args, given)


def contradictions(args: UserInput, other: UserInput) -> list[str]:
    """The settings, out of those that define a run's figures, in which `args` and `other` differ."""
    return [
        f"{field.name} is {getattr(args, field.name)}, there {getattr(other, field.name)}"
        for field in dataclasses.fields(UserInput)
        if field.name not in FREE_ON_RESUME and getattr(args, field.name) != getattr(other, field.name)
    ]


def from_saved(settings: dict[str, Any], source: Path) -> UserInput:
    """The settings that a run has saved, of this version of the project or of an earlier one.

    A setting that was not there yet takes the value that does what was done then.

    Raises:
        InputError: naming `source`, and the setting of another version that cannot be honoured.
    """
    if not isinstance(settings, dict):
        raise InputError(f"resume: {source} holds no settings")
    fields = {field.name: field for field in dataclasses.fields(UserInput)}
    for name, value in settings.items():
        if name not in fields and value not in RETIRED.get(name, ()):
            raise InputError(
                f"resume: {source} has the setting {name} {value}, which this version of the project cannot honour"
            )
    before = {name: field.metadata["before"] for name, field in fields.items()}
    return UserInput(**{name: settings.get(name, before[name]) for name in fields})


def _resumed(args: UserInput, given: dict[str, Any]) -> UserInput:
    folder = run_folder.find_run(args)
    saved = from_saved(run_folder.read_config(folder)["settings"], folder / run_folder.CONFIG)
    return dataclasses.replace(saved, **{**given, "resume": str(folder)})


class _Parser(Parser):
    def parse_args(self, *arguments: Any) -> argparse.Namespace:  # type: ignore[override]
        namespace, unknown = self.parse_known_args(*arguments)
        if unknown:
            name = unknown[0].split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{unknown[0]} is not a flag{hint} (--help lists them all)")
        return namespace


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main_general.py",
        description="Train a lambda ResNet or its convolutional baseline.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(UserInput):
        help = f"{field.metadata['help']} (default: {'none' if field.default is None else field.default})"
        options: dict[str, Any] = {"help": help.replace("%", "%%")}
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _reader(field), "metavar": _base_type(field).__name__.upper()}
        if field.name == "resume":
            options |= {"nargs": "?", "const": LATEST, "metavar": "FOLDER"}
        parser.add_argument(f"--{field.name}", **options)
    return parser


def _reader(field: dataclasses.Field) -> typing.Callable[[str], Any]:
    def read(text: str) -> Any:
        if _optional(field) and text.lower() == "none":
            return None
        if field.name in PATHS and text != LATEST:
            return project_path(text)
        try:
            return _base_type(field)(text)
        except ValueError:
            return text  # which `UserInput` refuses, in the same words as a mistyped default

    return read


def project_path(text: str) -> str:
    """A path from the command line, full, or relative to the project where it lies inside (so that logs can move)."""
    path = Path(os.path.abspath(os.path.expanduser(text)))
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def _flag(field: dataclasses.Field, value: Any) -> str:
    if value == field.default or field.name == "resume":
        return ""
    if field.type is bool:
        return f"--{field.name}" if value else f"--no-{field.name}"
    return f"--{field.name} {'none' if value is None else shlex.quote(str(value))}"


def _optional(field: dataclasses.Field) -> bool:
    return isinstance(field.type, types.UnionType)


def _base_type(field: dataclasses.Field) -> type:
    return typing.get_args(field.type)[0] if _optional(field) else field.type  # type: ignore[return-value]


def _check(field: dataclasses.Field, value: Any) -> None:
    if value is None and _optional(field):
        return
    base, limits = _base_type(field), field.metadata["limits"]
    fits_type = type(value) is base or (base is float and type(value) is int)
    if (
        not fits_type
        or (base is int and abs(value) > limits.get("maximum", LARGEST))
        or (base is float and not abs(value) <= LARGEST)  # nor nan
        or (base is str and not _writable(value))
        or ("choices" in limits and value not in limits["choices"])
        or ("minimum" in limits and value < limits["minimum"])
        or ("maximum" in limits and value > limits["maximum"])
        or ("above" in limits and value <= limits["above"])
        or ("below" in limits and value >= limits["below"])
    ):
        raise InputError(_refusal(field, value))


def _refusal(field: dataclasses.Field, value: Any) -> str:
    """`heads: 0 is not allowed; takes a whole number, at least 1`."""
    limits = field.metadata["limits"]
    if "choices" in limits:
        allowed = "one of " + ", ".join(str(choice) for choice in limits["choices"])
    else:
        kinds = {int: "a whole number", float: "a number", bool: "True or False", str: "a text in one line"}
        if type(value) in (int, float) and abs(value) > LARGEST:
            limits = {**limits, "maximum": limits.get("maximum", LARGEST)}
        words = {"minimum": "at least", "maximum": "at most", "above": "above", "below": "below"}
        bounds = [f"{words[name]} {f'{bound:g}' if type(bound) is float else bound}" for name, bound in limits.items()]
        allowed = ", ".join([kinds[_base_type(field)], *bounds])
    shown = ascii(value) if type(value) is str and not _writable(value) else f"{value}"
    shown = shown if len(shown) <= 200 else f"{shown[:50]}…"
    return f"{field.name}: {shown} is not allowed; takes {allowed}{', or none' if _optional(field) else ''}"


def _writable(text: str) -> bool:
    """Whether a text can stand in a path and in a line of a log: no control characters, no lone surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _check_stages(args: UserInput) -> None:
    if len(args.stage_word) != 4 or set(args.stage_word) - {"C", "L"}:
        raise InputError(
            f"stages: {args.stages} is not allowed; takes auto or four letters, each C (convolution) or L (lambda)"
        )
    if args.model == "baseline" and "L" in args.stage_word:
        raise InputError(f"stages: {args.stages} has lambda stages, which model baseline has not; take model lambda")
