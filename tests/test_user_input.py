import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
import user_input
from command_line.errors import InputError
from command_line.paths import PROJECT
from command_line.tools import read_predict
from evidence.pinned import PINNED
from resnet import STEMS, halve, stage_sizes
from run_state.resumption import load_settings
from user_input import OTHER_NAMES, UserInput, given_settings, load_user_input

PUBLIC_NAMES = """model depth stages stem key_depth heads intra_depth scope position share_embeddings zero_init_residual
bn_momentum dataset data_dir image_size batch_size workers training_images validation_fraction epochs
warmup_epochs optimizer initial_lr weight_decay label_smoothing seed device precision compile cuda_graph deterministic
runs_dir checkpoint_every resume""".split()


def test_what_experiments_are_defined_by_is_the_studys() -> None:
    args = UserInput(**PINNED)
    assert (args.model, args.depth, args.stem, args.dataset) == ("lambda", 50, "imagenet", "cifar10")
    assert (args.key_depth, args.heads, args.intra_depth, args.scope) == (16, 4, 1, None)
    assert (args.batch_size, args.epochs, args.warmup_epochs, args.initial_lr) == (128, 90, 5, 0.0005)
    assert (args.momentum, args.beta2, args.weight_decay, args.label_smoothing) == (0.9, 0.9999, 1e-4, 0.1)
    assert (args.optimizer, args.seed, args.checkpoint_every, args.image_size) == ("adam", 0, 5, 32)


def test_public_names_stay_and_every_field_is_documented() -> None:
    fields = {field.name: field for field in dataclasses.fields(UserInput)}
    assert set(PUBLIC_NAMES) <= set(fields)
    assert load_user_input([]) == UserInput()
    assert all(field.metadata["help"] for field in fields.values())


def test_flags_are_the_field_names() -> None:
    args = load_user_input(
        "--model baseline --depth 26 --batch_size 64 --initial_lr 1e-3 --scope none --deterministic "
        "--no-zero_init_residual".split()
    )
    expected = UserInput(
        model="baseline", depth=26, batch_size=64, initial_lr=1e-3, deterministic=True, zero_init_residual=False
    )
    assert args == expected


def test_editing_a_default_is_passing_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Edited(UserInput):
        heads: int = dataclasses.field(default=8, metadata=UserInput.__dataclass_fields__["heads"].metadata)

    monkeypatch.setattr(user_input, "UserInput", Edited)
    assert dataclasses.asdict(load_user_input([])) == dataclasses.asdict(UserInput(heads=8))


def test_the_command_gives_the_settings_back() -> None:
    args = UserInput(
        model="lambda", stages="CCLL", scope=7, heads=8, compile=True, share_embeddings=True, data_dir="a b"
    )
    program, script, *flags = shlex.split(args.command())
    assert (program, script) == ("python", "main_general.py")
    assert load_user_input(flags).data_path == Path.cwd() / "a b"
    assert dataclasses.replace(load_user_input(flags), data_dir="a b") == args


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--batch_sise 3", "--batch_sise is not a flag; did you mean --batch_size?"),
        ("--batch 3", "--batch is not a flag"),
        ("--batch_size many", "batch_size: many is not allowed; takes a whole number, at least 2"),
        ("--batch_size", "batch_size"),
        ("--batch_size -8", "batch_size: -8 is not allowed; takes a whole number, at least 2"),
        ("--epochs 0", "epochs: 0 is not allowed; takes a whole number, at least 1"),
        ("--epochs 1.5", "epochs: 1.5 is not allowed; takes a whole number, at least 1"),
        (
            "--epochs 99999999999",
            "epochs: 99999999999 is not allowed; takes a whole number, at least 1, at most 2147483647",
        ),
        ("--workers 257", "workers: 257 is not allowed; takes a whole number, at least 0, at most 256"),
        ("--weight_decay 1e300", "weight_decay: 1e+300 is not allowed; takes a number, at least 0, at most 2147483647"),
        ("--data_dir a\0b", r"b' is not allowed; takes a text in one line"),
        ("--image_size 0", "image_size: 0 is not allowed"),
        ("--cutout 64", "cutout: 64 covers all of every image; takes less than 64, twice image_size"),
        ("--initial_lr nan", "initial_lr: nan is not allowed; takes a number, above 0"),
        ("--initial_lr 0", "initial_lr: 0.0 is not allowed"),
        ("--bn_momentum 1.5", "bn_momentum: 1.5 is not allowed; takes a number, above 0, at most 1"),
        ("--validation_fraction 1", "validation_fraction: 1.0 is not allowed; takes a number, at least 0, below 1"),
        ("--model convolution", "model: convolution is not allowed; takes one of lambda, baseline"),
        ("--depth 20", "depth: 20 is not allowed; takes one of 10, 18, 26, 34, 50"),
        ("--stages CCXL", "stages: CCXL is not allowed; takes auto or four letters"),
        ("--stages CCL", "stages: CCL is not allowed; takes auto or four letters"),
        ("--model baseline --stages CCLL", "stages: CCLL has lambda stages, which model baseline has not"),
        ("--heads 3", "heads: 3 does not divide the 64 channels of stage c2"),
        ("--heads 0", "heads: 0 is not allowed"),
        ("--scope 4", "scope: 4 is even"),
        ("--scope -1", "scope: -1 is not allowed; takes a whole number, at least 1, or none"),
        ("--scope 7 --position absolute", "scope: a window needs position relative, not absolute"),
        ("--scope 7 --position none", "scope: a window needs position relative, not none"),
        ("--seed -1", "seed: -1 is not allowed"),
        (
            "--resume False",
            "error: resume: False is no folder; type --resume for latest, --resume FOLDER, or leave it out",
        ),
        ("--resume True", "error: resume: True is no folder; type --resume for latest, --resume FOLDER, or leave"),
        ("--deterministic yes", "yes is not a flag; --deterministic takes no value: it is --deterministic or --no-det"),
        ("--seed", "error: seed: a value is missing (--help says which are allowed)"),
        ("--seed 1 baseline", "baseline is not a flag (--help lists them all)"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(flags: str, says: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        load_settings(flags.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_mistyped_default_is_refused_as_the_flag_is() -> None:
    with pytest.raises(InputError, match="heads: 4 is not allowed; takes a whole number, at least 1"):
        UserInput(heads="4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size: True is not allowed"):
        UserInput(batch_size=True)
    with pytest.raises(InputError, match="compile: 1 is not allowed; takes True or False"):
        UserInput(compile=1)  # type: ignore[arg-type]


def test_baseline_and_hybrids_need_heads_to_divide_only_their_lambda_stages() -> None:
    assert UserInput(model="baseline", heads=3).stage_word == "CCCC"
    assert UserInput(stages="CCCL", heads=512).stage_word == "CCCL"
    with pytest.raises(InputError, match="heads: 512 does not divide the 256 channels of stage c4"):
        UserInput(stages="CCLL", heads=512)


def test_paths_are_the_shells_on_the_command_line_and_the_projects_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_user_input(["--runs_dir", "mine"]).runs_path == tmp_path / "mine"
    assert UserInput().runs_path == PROJECT / "runs"
    assert load_user_input(["--data_dir", str(PROJECT / "data" / "x")]).data_dir == str(Path("data", "x"))
    assert UserInput(runs_dir=tmp_path).runs_dir == str(tmp_path)  # type: ignore[arg-type]


def answer(script: str, *argv: str) -> tuple[int, str, set[str]]:
    """Exit code, output, and the packages that a script has imported on the way."""
    command = [sys.executable, "-X", "importtime", PROJECT / script, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    timed = r"^import time:.*\| +([\w.]+)$"
    packages = {name.split(".")[0] for name in re.findall(timed, done.stderr, re.M)}
    return done.returncode, done.stdout + re.sub(r"^import time:.*\n", "", done.stderr, flags=re.M), packages


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("main_general.py --help", 0, "exit codes:"),
        (
            "main_general.py --batch_sise 3",
            2,
            "error: --batch_sise is not a flag; did you mean --batch_size?",
        ),
        ("main_general.py --heads 0", 2, "error: heads: 0 is not allowed; takes a whole number, at least 1"),
        ("main_general.py --resume nowhere", 2, "nowhere is no run folder (there is no config.json in it)"),
        ("predict.py --help", 0, "--checkpoint CHECKPOINT"),
        (
            "predict.py a.png --checkpoint b --top 0",
            2,
            "error: top: 0 is not allowed; takes a whole number, at least 1",
        ),
        ("draw_embeddings.py --out x", 2, "error: the following arguments are required: --checkpoint"),
        ("export_model.py --checkpoint a --to b.zip", 2, "takes a file name that ends in .onnx or .pt2"),
        ("nntest.py --help", 0, "--checkpoint CHECKPOINT"),
        ("experiments.py --help", 0, "--keep_checkpoints"),
        ("experiments.py --jobs 0", 2, "error: jobs: 0 is not allowed; takes a whole number, at least 1"),
        ("benchmark.py --help", 0, "the costs of the layer's ways"),
        ("benchmark.py layer --quik", 2, "--quik"),
        ("report.py --help", 0, "--names"),
        ("report.py --target nowhere", 2, "error: target: there is no folder nowhere"),
    ],
)
def test_help_and_refusals_do_not_wait_for_pytorch(command: str, code: int, says: str) -> None:
    ended, output, packages = answer(*command.split())
    assert (ended, says in output) == (code, True), output
    assert "command_line" in packages
    assert not packages & {"torch", "torchvision", "numpy", "tensorboard", "matplotlib", "sklearn"}


def test_help_has_groups_choices_and_examples_that_hold(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        load_user_input(["--help"])
    assert end.value.code == 0
    usage, *parts = re.split(r"^(?=\S.*:$)", capsys.readouterr().out, flags=re.M)
    groups = {part.splitlines()[0]: part for part in parts}
    assert usage.startswith("usage: python main_general.py [--SETTING VALUE ...]\n")
    assert list(groups) == [
        "options:",
        *(
            "a recipe:",
            "the network:",
            "the data:",
            "where the training starts:",
            "the training:",
            "the test:",
            "the machine:",
            "the run's folder:",
        ),
        *("examples:", "exit codes:"),
    ]
    assert re.search(r"^  --model \{lambda,baseline\}$", groups["the network:"], re.M)
    assert re.search(r"^  --scope N\|none +r, odd side", groups["the network:"], re.M)
    assert "--seed" not in groups["the network:"]
    names = re.findall(r"^  --(\w+)\b", "".join(parts), re.M)
    assert names == ["recipe", *(field.name for field in dataclasses.fields(UserInput))]
    examples = re.findall(r"^  python main_general.py(.*?)(?:   .*)?$", groups["examples:"], re.M)
    assert len(examples) > 3
    for flags in examples:
        load_user_input(flags.split())


def test_the_stems_help_has_the_sides_of_its_maps() -> None:
    text = UserInput.__dataclass_fields__["stem"].metadata["help"]
    for stem in STEMS:
        first, *others = stage_sizes((32, 32), stem)  # of the maps that enter the stages, of which the later ones halve
        sides = [first, *map(halve, others)]
        assert f"{stem} {', '.join(str(side) for side, _ in sides)}" in text


@pytest.mark.parametrize(("given", "here"), OTHER_NAMES.items())
def test_names_from_elsewhere_are_told_the_one_here(given: str, here: str) -> None:
    assert here in UserInput.__dataclass_fields__
    assert given not in UserInput.__dataclass_fields__
    for flag in (f"--{given}", f"--{given.upper()}=1", f"-{given.replace('_', '-')}"):
        with pytest.raises(InputError, match=rf"^{flag} is not a flag; here it is --{here} \(--help lists"):
            given_settings([flag, "1"])


def test_hyphens_may_stand_for_underscores_in_every_script() -> None:
    given = given_settings(["--batch-size", "8", "--initial-lr=0.1", "--no-zero-init-residual", "--no_cuda_graph"])
    assert given == {"batch_size": 8, "initial_lr": 0.1, "zero_init_residual": False, "cuda_graph": False}
    asked = read_predict(None, "--checkpoint run --batch-size 3 -- --batch-size".split())
    assert (asked.batch_size, asked.images) == (3, [Path("--batch-size")])
    assert experiments.parse(["--keep-checkpoints", "--dry_run"]).keep_checkpoints


def test_a_place_that_cannot_be_asked_for_is_none_to_write_to() -> None:
    words = ["a.png", "--checkpoint", "run", "--out"]
    with pytest.raises(InputError, match="out: there is no folder .*/aaa"):
        read_predict(None, [*words, f"{'a' * 300}/seen.csv"])  # a name that no system has


def test_a_recipe_is_its_settings_and_flags_beside_it_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(user_input.RECIPES, "quick", {"epochs": 3, "optimizer": "sgd", "stages": "CCLL"})
    args = load_user_input("--recipe quick --epochs 4 --seed 2".split())
    assert args == UserInput(epochs=4, optimizer="sgd", stages="CCLL", seed=2)
    assert "recipe" not in args.command()
    assert load_user_input("--seed 2 --recipe quick".split()).epochs == 3


def test_every_recipe_is_allowed_and_the_help_tells_it(capsys: pytest.CaptureFixture) -> None:
    for name, settings in user_input.RECIPES.items():
        assert load_user_input(["--recipe", name]) == UserInput(**settings)
    with pytest.raises(SystemExit):
        load_user_input(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "study: batch_size 128, epochs 90, warmup_epochs 5" in text
    with pytest.raises(SystemExit, match="2"):
        load_user_input(["--recipe", "lunch"])
    assert "study" in capsys.readouterr().err
