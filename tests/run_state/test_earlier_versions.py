"""Runs that an earlier version of the project saved: `earlier_version/` was written before settings were added.

Its checkpoint has had its weights replaced by a few round numbers, so that it is small when compressed.
"""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import pytest

import user_input
from command_line.errors import InputError
from command_line.settings import setting
from main_general import main
from run_state.checkpoints import read_checkpoint
from run_state.resumption import load_settings
from run_state.run_folder import CHECKPOINTS
from run_state.saved_settings import saved_settings as saved_settings_of
from run_state.trained_network import load_network
from user_input import FREE_ON_RESUME, UserInput, from_saved

SAVED = Path(__file__).with_name("earlier_version")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of the earlier version's run, stopped after one of two epochs."""
    folder = tmp_path / "Lambda" / "run"
    (folder / CHECKPOINTS).mkdir(parents=True)
    shutil.copy(SAVED / "config.json", folder)
    (folder / CHECKPOINTS / "epoch0001.pt").write_bytes(gzip.decompress((SAVED / "epoch0001.pt.gz").read_bytes()))
    return folder


def saved_settings() -> dict:
    return json.loads((SAVED / "config.json").read_text())["settings"]


def test_it_lacks_settings_of_today() -> None:
    assert {field.name for field in dataclasses.fields(UserInput)} > set(saved_settings())


def test_the_run_goes_on_and_ends(run: Path) -> None:
    args = load_settings(["--resume", str(run)])
    result = main(args)
    assert (result.folder, result.epochs) == (run, 2)
    newest = read_checkpoint(run / CHECKPOINTS / "epoch0002.pt")
    assert newest["rows"][0] == read_checkpoint(run / CHECKPOINTS / "epoch0001.pt")["rows"][0]
    assert newest["config"]["settings"] == saved_settings()  # what it was begun with stays written


def test_its_network_is_loaded(run: Path) -> None:
    network = load_network(run)
    assert (network.epochs_done, network.args.stages) == (1, "CCCL")


def test_a_missing_setting_takes_the_value_that_does_what_was_done_before() -> None:
    args = from_saved(saved_settings(), SAVED)
    defaults = UserInput(validation_folder=False)
    assert (args.schedule, args.average, args.stop_after) == ("epoch", "none", None)
    for field in dataclasses.fields(UserInput):
        if field.name not in saved_settings() and field.name not in FREE_ON_RESUME:
            assert getattr(args, field.name) == getattr(defaults, field.name)


def test_the_value_before_may_be_another_than_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Grown(UserInput):
        stem_width: int = setting(32, "channels of the stem", before=64)

    monkeypatch.setattr(user_input, "UserInput", Grown)
    assert Grown().stem_width == 32
    assert from_saved(saved_settings(), SAVED).stem_width == 64


def test_a_setting_that_is_no_more_is_dropped_at_its_neutral_value_and_else_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_input, "RETIRED", {"dropout": (0.0,)})
    assert from_saved(saved_settings() | {"dropout": 0.0}, SAVED) == from_saved(saved_settings(), SAVED)
    with pytest.raises(InputError, match="has the setting dropout 0.5, which this version of the project cannot hon"):
        from_saved(saved_settings() | {"dropout": 0.5}, SAVED)
    with pytest.raises(InputError, match="has the setting never_heard_of 1"):
        from_saved(saved_settings() | {"never_heard_of": 1}, SAVED)


@pytest.mark.parametrize(("settled", "kept"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "auto")])
def test_a_precision_that_auto_settled_stays(settled: str, kept: str) -> None:
    config = json.loads((SAVED / "config.json").read_text())
    config["settings"]["precision"], config["precision"] = "auto", settled
    assert saved_settings_of(config, SAVED).precision == kept
    config["settings"]["precision"] = "fp32"
    assert saved_settings_of(config, SAVED).precision == "fp32"


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ends = load_settings(["--resume", str(run)]), []
    for computes in (False, True):
        monkeypatch.setattr("acceleration.devices.cpu_computes_in_bf16", lambda computes=computes: computes)
        copy = shutil.copytree(run, tmp_path / f"bf16 {computes}" / "Lambda" / "run")
        main(dataclasses.replace(begun, precision="auto", resume=str(copy)))
        ends.append(read_checkpoint(copy / CHECKPOINTS / "epoch0002.pt")["rows"][1]["train_loss"])
    assert ends[0] == ends[1]
