"""Every setting of a run: edit a default here, or pass the flag of the same name; the two are the same thing.

    python main_general.py --model baseline --batch_size 256 --deterministic

"study" is de Alvear Cárdenas and de Vries (2021), "paper" is Bello (2021), both named in the README. What cannot work
is refused before anything is read or written. `free` may change when a run is resumed, `before` is what runs had that
were saved without the setting; what else `setting` takes is in `command_line/settings.py`. Relative paths start from
the project here, and from the current folder in a shell. Experiments keep to the values of `evidence/pinned.py`.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line.arguments import flags, read_flags
from command_line.errors import InputError, one_line_errors
from command_line.paths import PROJECT
from command_line.settings import Heading, Settings, setting
from command_line.settings import from_saved as settings_from_saved

LATEST = "latest"  # for `resume`: the newest run of the model
DATASETS = ("cifar10", "cifar100", "imagefolder", "digits")
TORCHVISION_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2")
PARTS = ("stem", "c2", "c3", "c4", "c5")  # of a network, before its head
ALL_BUT_HEAD = "all_but_head"


@dataclass(frozen=True)
class UserInput(Settings):
    """The settings of one run; raises `InputError` with one line for a value that is not allowed."""

    # fmt: off
    NETWORK = Heading("the network")
    model: str = setting("lambda", choices=("lambda", "baseline"), help=
        "network: lambda layers or 3×3 convolutions in the blocks")
    depth: int = setting(50, choices=(10, 18, 26, 34, 50, 101, 152, 200, 270, 350, 420), help=
        "layers of the ResNet; 10 has pooled blocks, 18 and 34 basic ones, the others bottlenecks (study: 50)")
    stages: str = setting("auto", help=
        "C (convolution) or L (lambda) for each of c2 to c5, such as CCLL (paper, Table 12); auto: LLLL or CCCC")
    stem: str = setting("imagenet", choices=("imagenet", "compact", "cifar"), help=
        "map sides for 32×32 pixels: imagenet 8, 4, 2, 1 (7×7, pool; study), compact 16, 8, 4, 2, cifar 32, 16, 8, 4")
    width: int = setting(64, before=64, minimum=4, help=
        "channels of stage c2's 3×3 convolutions; later stages in proportion, the stem at depth 10 alone (study: 64)")
    key_depth: int = setting(16, "k, channels of a query and of a key (study: 16)", minimum=1)
    heads: int = setting(4, "h, heads; divides the channels of every lambda stage (study: 4)", minimum=1)
    intra_depth: int = setting(1, "u, intra-depth of keys and values (study: 1; paper's best: 4)", minimum=1)
    scope: int | None = setting(None, minimum=1, help=
        "r, odd side in positions of the window that position lambdas see; none: the whole map (study)")
    position: str = setting("relative", choices=("relative", "absolute", "none"), help=
        "position embeddings: relative (paper), absolute (study; whole map only) or none")
    share_embeddings: bool = setting(False, help=
        "one position embedding for all the layers of a stage (study: for all those of a map size)")
    zero_init_residual: bool = setting(True, "start the last batch norm of every residual branch at γ = 0 (paper)")
    bn_momentum: float = setting(0.1, above=0.0, maximum=1.0, help=
        "weight of the newest batch in batch norm's running statistics (study: 0.9999, so the last batch alone)")
    sync_batch_norm: bool = setting(False, help=
        "batch norm over the whole batch of all torchrun's processes, not over each process's share of it")

    DATA = Heading("the data")
    dataset: str = setting("cifar10", choices=DATASETS, help=
        "cifar10, cifar100 (downloaded when absent), digits (no download), or data_dir/{train,test,val}/<class>")
    data_dir: str = setting("data", "folder that holds, or will hold, the data set", path=True, free=True)
    image_size: int = setting(32, "side in pixels that the network sees (study: 32)", minimum=1)
    augmentation: str = setting("auto", before="auto", choices=("auto", "crop", "resized_crop"), help=
        "crop: moved by up to 4 pixels (study); resized_crop: ImageNet's; auto: crop up to image_size 64")
    auto_augment: str = setting("none", before="none", choices=("none", "trivial", "rand"), help=
        "operations drawn beyond that: trivial (TrivialAugmentWide), rand (RandAugment) or none (study)")
    cutout: int | None = setting(None, before=None, minimum=1, help=
        "side in pixels of a square at a random place that becomes the mean; none: whole images (study)")
    mixup: float = setting(0.0, "α by which images and labels are mixed; 0: they are not", before=0.0, minimum=0.0)
    cutmix: float = setting(0.0, before=0.0, minimum=0.0, help=
        "α by which a box of another image is put in; beside mixup each batch takes one of them; 0: none (study)")
    normalisation: str = setting("auto", before="auto", choices=("auto", "study", "measured"), help=
        "mean and deviation of the pixels; auto: ImageNet's with resized_crop, study for cifar10, else measured")
    batch_size: int = setting(128, "images per training step, of all processes together (study: 128)", minimum=2)
    workers: int = setting(2, minimum=0, maximum=256, free=True, help=
        "processes that load images which do not fit in memory; 0: the main process")
    memory_gib: float = setting(2.0, minimum=0.0, free=True, help=
        "GiB of a process's training device that a data set may take; a larger one streams, to the same figures")
    training_images: int | None = setting(None, minimum=2, help=
        "train on so many of the training images, drawn once and the same for every seed; none: all of them (study)")
    validation_fraction: float = setting(0.0, minimum=0.0, below=1.0, help=
        "share of the training images held back to choose settings on (study: 0)")
    validation_folder: bool = setting(True, before=False, help=
        "imagefolder: data_dir/val, where it stands beside data_dir/test, has the images to choose settings on")
    test_fraction: float = setting(0.0, before=0.0, minimum=0.0, below=1.0, help=
        "imagefolder without a test folder: share of each class held back for the test, the same for every seed")
    skip_bad_images: bool = setting(False, before=False, help=
        "imagefolder: read every image before the training, and do without those that cannot be read")

    START = Heading("where the training starts")
    init_from: str | None = setting(None, before=None, path=True, words=TORCHVISION_WEIGHTS, help=
        "a run's folder, a checkpoint, a state dict (.pt, .pth, .safetensors), or torchvision's IMAGENET1K_V1 or _V2; "
        "the head is left out where the classes are others; none: weights drawn anew")
    freeze: str | None = setting(None, before=None, help=
        "what stays as it is, batch norms included: some of stem, c2 to c5, such as stem,c2, or all_but_head")
    body_lr_factor: float = setting(1.0, before=1.0, above=0.0, help=
        "learning rate of all but the head, as a share of the schedule's, which the head has (fine-tuning: 0.1)")

    TRAINING = Heading("the training")
    epochs: int = setting(90, "passes over the training images (study: 90)", minimum=1)
    stop_after: int | None = setting(None, before=None, minimum=1, free=True, help=
        "end after so many epochs of the schedule that `epochs` describes; none: after all of them")
    warmup_epochs: int = setting(5, minimum=0, help=
        "epochs in which the learning rate rises to warmup_epochs × initial_lr (study: 5); at most a fifth, rounded up")
    schedule: str = setting("epoch", before="epoch", choices=("epoch", "study", "step", "one_cycle"), help=
        "cosine learning rate by epoch; study: ending at 0; step: by step; one_cycle: rise and fall both cosine")
    accumulate: int = setting(1, before=1, minimum=1, help=
        "pieces in which a batch is computed, to take less memory: the same gradients, but for batch norm's statistics")
    patience: int | None = setting(None, before=None, minimum=1, free=True, help=
        "end after so many epochs without a lower loss on the validation images; none: after all the epochs")
    optimizer: str = setting("adam", choices=("adam", "adamw", "sgd"), help=
        "adam (study), adamw or sgd (with Nesterov momentum)")
    initial_lr: float = setting(5e-4, "learning rate of the first epoch (study: 0.0005)", above=0.0)
    momentum: float = setting(0.9, "momentum of sgd, first beta of adam and adamw (study: 0.9)", minimum=0.0, below=1.0)
    beta2: float = setting(0.9999, "second beta of adam and adamw (study: 0.9999)", minimum=0.0, below=1.0)
    weight_decay: float = setting(1e-4, "weight decay (study: 1e-4; decoupled with adamw)", minimum=0.0)
    weight_decay_on: str = setting("all", before="all", choices=("all", "weights"), help=
        "all (study), or the weights of convolutions and linear layers: not norms, biases and embeddings")
    clip_gradients: float | None = setting(None, before=None, above=0.0, help=
        "longest norm of all gradients together, to which longer ones are shortened; none: as they are (study)")
    label_smoothing: float = setting(0.1, minimum=0.0, below=1.0, help=
        "share of the target spread over all classes in training (study: 0.1)")
    average: str = setting("none", before="none", choices=("none", "exponential", "last_epochs"), help=
        "average of the weights, tested beside them with batch norms of its own: exponential (paper), or last_epochs")
    average_decay: float = setting(0.9999, before=0.9999, above=0.0, below=1.0, help=
        "of the exponential average: share of the old in each step (paper: 0.9999)")
    average_epochs: int = setting(10, "of the average of the last epochs: how many", before=10, minimum=1)

    TEST = Heading("the test")
    test_flips: bool = setting(False, before=False, help=
        "average the logits of each image and of its mirror, in every test, prediction and export (study: no)")
    also_test_in_training_mode: bool = setting(False, before=False, help=
        "a second test with batch norms in training mode, in shuffled batches of batch_size (study: its only test)")
    keep_predictions: int = setting(0, before=0, minimum=0, free=True, help=
        "of so many of the last epochs, write the predicted class of every test image")

    MACHINE = Heading("the machine")
    seed: int = setting(0, "fixes initial weights, order and augmentation (study: 0)", minimum=0, maximum=2**32 - 1)
    device: str = setting("auto", "auto (cuda, else mps, else cpu), cpu, cuda, cuda:<index> or mps", free=True)
    precision: str = setting("auto", choices=("auto", "fp32", "bf16", "fp16"), help=
        "auto (bf16 where GPU or CPU computes in it, fp16 on other CUDA GPUs, else fp32; settled at a run's start)")
    compile: bool = setting(False, free=True, help=
        "compile the network with torch.compile (one to two minutes at the start)")
    cuda_graph: bool = setting(True, free=True, help=
        "on one CUDA GPU, replay the training step as a CUDA graph; where that fails, go on without and say so")
    deterministic: bool = setting(False, free=True, help=
        "use only deterministic algorithms: the same result on every run, slower")

    FOLDER = Heading("the run's folder")
    runs_dir: str = setting("runs", "folder in which every run gets a folder of its own", path=True, free=True)
    checkpoint_every: int = setting(5, "epochs between two checkpoints (study: 5)", minimum=1, free=True)
    checkpoint_minutes: float | None = setting(None, above=0.0, free=True, help=
        "minutes after which a checkpoint is due, within an epoch too; none: by epochs alone")
    resume: str | None = setting(None, path=True, alone=LATEST, free=True, help=
        "go on with a run: its folder, or latest for the newest run of the model (--resume alone); none: start anew")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_stages(self)
        _check_lambda_layers(self)
        _check_freeze(self)
        _check_flips(self)
        _check_cutout(self)
        if self.accumulate > 1 and self.batch_size < 2 * self.accumulate:
            raise InputError(
                f"accumulate: {self.accumulate} pieces of a batch of {self.batch_size} are too small, since batch norm "
                f"needs two images in each; takes at most {self.batch_size // 2}"
            )

    @property
    def stage_word(self) -> str:
        """`stages` with auto replaced (computed)."""
        if self.stages == "auto":
            return "LLLL" if self.model == "lambda" else "CCCC"
        return self.stages

    @property
    def crops(self) -> str:
        """`augmentation` with auto replaced (computed)."""
        if self.augmentation == "auto":
            return "crop" if self.image_size <= SMALL_IMAGE else "resized_crop"
        return self.augmentation

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts that `freeze` names (computed)."""
        if self.freeze is None:
            return ()
        words = tuple(word.strip() for word in self.freeze.split(","))
        return PARTS if words == (ALL_BUT_HEAD,) else words

    @property
    def last_epoch(self) -> int:
        """The epoch after which the run ends: `epochs`, or `stop_after` where that comes first (computed)."""
        return self.epochs if self.stop_after is None else min(self.epochs, self.stop_after)

    @property
    def data_path(self) -> Path:
        """`data_dir` as a full path (computed)."""
        return PROJECT / os.path.expanduser(self.data_dir)

    @property
    def runs_path(self) -> Path:
        """`runs_dir` as a full path (computed)."""
        return PROJECT / os.path.expanduser(self.runs_dir)

    @property
    def resume_path(self) -> Path | None:
        """`resume` as a full path; None where it names no folder (computed)."""
        return None if self.resume in (None, LATEST) else PROJECT / os.path.expanduser(self.resume)

    @property
    def init_path(self) -> Path | None:
        """`init_from` as a full path; None where it names no file (computed)."""
        named = self.init_from is None or self.init_from in TORCHVISION_WEIGHTS
        return None if named else PROJECT / os.path.expanduser(str(self.init_from))

    def command(self) -> str:
        """The command line that gives these settings, from the start of the run on (computed)."""
        return " ".join(["python main_general.py", *flags(dataclasses.replace(self, resume=None))])


NOT_FLIPPED = ("digits",)  # a mirrored digit is no digit
SMALL_IMAGE = 64  # pixels a side; larger images get ImageNet's augmentation
FREE_ON_RESUME = frozenset(field.name for field in dataclasses.fields(UserInput) if field.metadata["free"])
# Settings of earlier versions that are no more, with the values at which they said what is now always so.
RETIRED: dict[str, tuple[Any, ...]] = {}
# Settings that are known to go together, by one name: `--recipe study`. A run keeps them as plain settings.
RECIPES: dict[str, dict[str, Any]] = {
    "study": {
        "batch_size": 128,
        "epochs": 90,
        "warmup_epochs": 5,
        "schedule": "study",
        "optimizer": "adam",
        "initial_lr": 5e-4,
        "momentum": 0.9,
        "beta2": 0.9999,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
        "normalisation": "study",
        "precision": "fp32",
    },
    "laptop": {  # half an hour on two cores that compute in bf16; twice that on others (docs/laptop.md)
        "model": "lambda",
        "depth": 10,
        "stages": "CCLL",
        "stem": "cifar",
        "width": 32,
        "epochs": 21,
        "warmup_epochs": 5,
        "schedule": "one_cycle",
        "optimizer": "sgd",
        "initial_lr": 0.04,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "weight_decay_on": "weights",
        "label_smoothing": 0.1,
        "test_flips": True,
    },
    "gpu": {  # what 200 epochs on CIFAR-10 are commonly trained with; not run yet
        "model": "lambda",
        "depth": 50,
        "stages": "CCLL",
        "stem": "cifar",
        "epochs": 200,
        "warmup_epochs": 5,
        "optimizer": "sgd",
        "initial_lr": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
    },
}
DESCRIPTION = """Train a lambda ResNet, or its convolutional baseline, and test it after every epoch.

Where the study had it otherwise, brackets say so. Hyphens may stand for underscores."""
EXAMPLES = """examples:
  python main_general.py                                  CIFAR-10, λ-ResNet-50, 90 epochs
  python main_general.py --dataset digits --epochs 5      no download, about a minute on two CPU cores (half in bf16)
  python main_general.py --model baseline --seed 1        convolutions, another seed
  python main_general.py --resume                         go on with the newest run of the model
  python main_general.py --dataset imagefolder --data_dir photos --image_size 224 --test_fraction 0.2   photos/<class>

exit codes:
  0    the run is done
  2    a setting, a file or the machine does not do; one line says what to change
  1    of torchrun's processes, another one has ended
  129, 130, 143    stopped by a closed terminal, Ctrl-C or SIGTERM; --resume goes on from there"""
# What the study and others call a setting
OTHER_NAMES = {
    "lr": "initial_lr",
    "learning_rate": "initial_lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "b_size": "batch_size",
    "nepochs": "epochs",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "img_size": "image_size",
    "arch": "model",
    "model_type": "model",
    "qk_size": "key_depth",
    "th": "warmup_epochs",
    "smoothing": "label_smoothing",
    "bn_gamma": "zero_init_residual",
    "cp_dir": "runs_dir",
    "output_dir": "runs_dir",
}


def _check_stages(args: UserInput) -> None:
    if len(args.stage_word) != 4 or set(args.stage_word) - {"C", "L"}:
        raise InputError(
            f"stages: {args.stages} is not allowed; takes auto or four letters, each C (convolution) or L (lambda)"
        )
    if args.model == "baseline" and "L" in args.stage_word:
        raise InputError(f"stages: {args.stages} has lambda stages, which model baseline has not; take model lambda")


def _check_lambda_layers(args: UserInput) -> None:
    if args.scope is not None and args.scope % 2 == 0:
        raise InputError(f"scope: {args.scope} is even; a window around a position has an odd side, or none")
    if args.scope is not None and args.position != "relative":
        raise InputError(f"scope: a window needs position relative, not {args.position}; or take scope none")
    if "L" in args.stage_word:
        stage = args.stage_word.index("L")
        channels = args.width << stage
        if channels % args.heads:
            raise InputError(f"heads: {args.heads} does not divide the {channels} channels of stage c{stage + 2}")


def _check_cutout(args: UserInput) -> None:
    if args.cutout is not None and args.cutout >= 2 * args.image_size:
        raise InputError(
            f"cutout: {args.cutout} covers all of every image; takes less than {2 * args.image_size}, twice image_size"
        )


def _check_flips(args: UserInput) -> None:
    if args.test_flips and args.dataset in NOT_FLIPPED:
        raise InputError(f"test_flips: a mirrored image of {args.dataset} is another one; take --no-test_flips")


def _check_freeze(args: UserInput) -> None:
    if unknown := [part for part in args.frozen if part not in PARTS]:
        raise InputError(
            f"freeze: {unknown[0] or 'nothing'} is not allowed; takes {ALL_BUT_HEAD} alone, or some of "
            f"{', '.join(PARTS)}, such as stem,c2"
        )


def default_settings() -> dict[str, Any]:
    """The defaults as they stand here now."""
    return {field.name: field.default for field in dataclasses.fields(UserInput)}


def given_settings(argv: list[str] | None = None) -> dict[str, Any]:
    """The settings whose flags stand in `argv` (the process's own by default), not yet checked.

    Raises:
        InputError: there is no such flag.
    """
    return read_flags(UserInput, argv, "main_general.py", DESCRIPTION, EXAMPLES, OTHER_NAMES, RECIPES)


def load_user_input(argv: list[str] | None = None) -> UserInput:
    """The settings with the flags of `argv` (the process's own by default) in place of the defaults.

    Ends the process with exit code 2 and one line for a flag or value that is not allowed. With `--resume`, the
    settings of the run which is resumed are those of `run_state.resumption.load_settings`.
    """
    with one_line_errors():
        return UserInput(**given_settings(argv))


def contradictions(args: UserInput, other: UserInput) -> list[str]:
    """The settings, out of those that define a run's figures, in which `args` and `other` differ."""
    return [
        f"{field.name} is {getattr(args, field.name)}, there {getattr(other, field.name)}"
        for field in dataclasses.fields(UserInput)
        if field.name not in FREE_ON_RESUME and getattr(args, field.name) != getattr(other, field.name)
    ]


def from_saved(saved: dict[str, Any], source: Path) -> UserInput:
    """The settings that a run has saved, of this version of the project or of an earlier one.

    Raises:
        InputError: naming `source`, and the setting of another version that cannot be honoured.
    """
    return settings_from_saved(UserInput, saved, RETIRED, source)
