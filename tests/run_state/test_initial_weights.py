"""Runs that start from trained weights: where those come from, and that the runs resume bit for bit."""

import dataclasses
import json
import shutil
import signal
import urllib.error
from pathlib import Path

import pytest
import torch
from run_tools import assert_same_run, small_run, stopped_when_asked
from safetensors.torch import save_file
from torchvision.models.resnet import Bottleneck, ResNet

import draw_embeddings
import main_general
from command_line.errors import InputError
from main_general import RunResult, main
from model_preparation import build_model
from resnet import DEPTHS
from run_state.checkpoints import read_checkpoint
from run_state.initial_weights import read_weights
from run_state.run_folder import checkpoint_files, read_config
from run_state.trained_network import load_network
from user_input import UserInput, load_user_input


@pytest.fixture(scope="module", autouse=True)
def _shallow_both(shallow: None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEPTHS, 50, (1, 1, 1, 1))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A convolutional network that knows all ten digits."""
    settings = {"model": "baseline", "dataset": "digits", "image_size": 16, "batch_size": 64, "training_images": 300}
    runs = tmp_path_factory.mktemp("digits")
    return main(small_run(runs, runs, **settings, bn_momentum=0.5))


@pytest.fixture
def args(photos: Path, tmp_path: Path) -> UserInput:
    """A hybrid on three digits, tinted and inverted, in a folder."""
    return small_run(photos, tmp_path / "runs", stages="CCLL", image_size=16, bn_momentum=0.5)


# ------------------------------------------------------------------------------------------------------- sources


def test_weights_come_from_a_run_a_checkpoint_or_any_file_of_a_state_dict(
    digits: RunResult, args: UserInput, tmp_path: Path
) -> None:
    newest = checkpoint_files(digits.folder)[-1]
    state = read_checkpoint(newest)["training"]["model"]
    torch.save(state, tmp_path / "plain.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # as torchvision's older files
    torch.save({"epoch": 3, "model": state}, tmp_path / "theirs.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "wrapped.pth")
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "plain.safetensors")
    run = (digits.folder, newest, newest.parent)
    for source in (*run, *sorted(tmp_path.glob("*.*"))):
        found = read_weights(dataclasses.replace(args, init_from=str(source)))
        given = {name.removeprefix("module."): value for name, value in found.state.items()}
        assert given.keys() == state.keys()
        assert all(torch.equal(given[name], value) for name, value in state.items())
        known = (tuple("0123456789"), read_config(digits.folder)["id"], 3) if source in run else (None, None, None)
        assert (found.classes, found.run, found.epochs) == known
    assert read_weights(args) is None
    assert read_weights(dataclasses.replace(args, init_from="gone", resume=str(digits.folder))) is None


def test_torchvisions_weights_come_from_data_dir_or_by_a_download(
    args: UserInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ResNet(Bottleneck, [1, 1, 1, 1]).state_dict()
    args = dataclasses.replace(args, depth=50, data_dir=str(tmp_path), init_from="IMAGENET1K_V2")
    asked = []

    def no_network(url: str, **options: object) -> None:
        asked.append(url)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"^init_from: torchvision's IMAGENET1K_V2 could .* put resnet50-11ad3fa6.pth"):
        read_weights(args)
    assert asked == ["https://download.pytorch.org/models/resnet50-11ad3fa6.pth"]
    torch.save(state, tmp_path / "resnet50-11ad3fa6.pth")
    found = read_weights(args)
    assert found.source == "IMAGENET1K_V2"
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: state)
    assert read_weights(dataclasses.replace(args, init_from="IMAGENET1K_V1")).state is state
    assert read_weights(dataclasses.replace(args, depth=18, init_from="IMAGENET1K_V1")).state is state
    for depth in (18, 26):
        says = rf"^init_from: torchvision has no IMAGENET1K_V2 of depth {depth}; it has those of 50, 101, 152$"
        with pytest.raises(InputError, match=says):
            read_weights(dataclasses.replace(args, depth=depth))


def test_a_name_of_torchvisions_is_no_path_and_a_path_is_the_shells(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_user_input(["--init_from", "IMAGENET1K_V2"]).init_path is None
    given = load_user_input(["--init_from", "weights.pt"])
    assert given.init_path == tmp_path / "weights.pt"
    assert UserInput().init_path is None


def test_what_holds_no_weights_is_one_line_and_writes_nothing(args: UserInput, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "folder").mkdir()
    torch.save(print, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"encoder.weight": torch.ones(2, 2)}, tmp_path / "other.pt")
    empty = {"conv1.weight": torch.empty(64, 3, 7, 7, device="meta")}
    torch.save(empty, tmp_path / "meta.pt")
    for name, says in {
        "none.pt": "there is no file .*none.pt; takes a run's folder, a checkpoint, a state dict",
        "text.pt": "text.pt cannot be read",
        "text.safetensors": "text.safetensors cannot be read",
        "code.pt": "code.pt cannot be read",
        "list.pt": "list.pt holds no state dict but a list",
        "other.pt": "nothing of .*other.pt fits this network; it holds encoder, and the network has conv1",
        "meta.pt": r"meta.pt cannot be taken \(.*Cannot copy out of meta tensor; no data!",
        "folder": "folder holds no checkpoint",
    }.items():
        with pytest.raises(InputError, match=f"^init_from: .*{says}") as error:
            main(dataclasses.replace(args, init_from=str(tmp_path / name)))
        assert "\n" not in str(error.value)
    assert not args.runs_path.exists()


# ---------------------------------------------------------------------------------------------------------- runs


def test_a_run_says_what_was_taken_and_resumes_bit_for_bit_without_its_source(
    digits: RunResult, args: UserInput, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(digits.folder, tmp_path / "source"))
    args = dataclasses.replace(
        args, init_from=str(source), freeze="stem,c2", body_lr_factor=0.1, optimizer="sgd", average="exponential"
    )
    expected = main(dataclasses.replace(args, runs_dir=str(tmp_path / "whole")))
    log = (expected.folder / "log.txt").read_text()
    assert f"weights of {source} after 3 epochs: stem, c2, c3, " in log
    assert "left out: layer3.*.conv2, layer4.*.conv2, fc\n" in log
    assert "made anew: layer3.*.conv2, layer4.*.conv2, fc\n" in log
    said = json.loads((expected.folder / "config.json").read_text())["init"]
    assert (said["from"], said["run"], said["epochs"]) == (str(source), read_config(source)["id"], 3)
    assert "layer1.0.conv2.weight" in said["taken"]
    before, after = load_network(source).model.state_dict(), load_network(expected.folder).model.state_dict()
    for name, value in after.items():
        if name.startswith(("conv1", "bn1", "layer1")):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(after["layer2.0.conv2.weight"], before["layer2.0.conv2.weight"])

    with stopped_when_asked(8):
        stopped = main(args)
    assert stopped.stopped_by == signal.SIGTERM
    shutil.rmtree(source)
    resumed = main(dataclasses.replace(args, resume="latest"))
    assert (resumed.folder, resumed.epochs) == (stopped.folder, 3)
    assert_same_run(resumed.folder, expected.folder)
    assert read_config(resumed.folder)["init"] == said


def test_a_network_begins_with_the_weights_and_not_those_that_were_drawn(
    digits: RunResult, args: UserInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = dataclasses.replace(args, model="baseline", stages="auto", init_from=str(digits.folder), epochs=1)
    seen = []
    whole = main_general.run_epoch

    def watched(args, data, step, *rest):
        seen.append({name: value.clone() for name, value in step.training.model.state_dict().items()})
        return whole(args, data, step, *rest)

    monkeypatch.setattr(main_general, "run_epoch", watched)
    main(args)
    given = load_network(digits.folder).model.state_dict()
    torch.manual_seed(args.seed)
    drawn = build_model(args, 3).state_dict()
    for name, value in seen[0].items():
        assert torch.equal(value, drawn[name] if name.startswith("fc") else given[name]), name


def test_what_a_run_has_learnt_is_told_from_what_it_was_given(
    args: UserInput, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = main(dataclasses.replace(args, epochs=1, stages="CCLC", seed=5)).folder
    run = main(dataclasses.replace(args, epochs=1, stages="CCLC", init_from=str(source))).folder
    network = load_network(run)
    first = draw_embeddings.stage_embeddings(load_network(source).model)["c4"]["c4.1"]
    begun = draw_embeddings.stage_embeddings(draw_embeddings.as_begun(network))["c4"]["c4.1"]
    assert torch.equal(begun, first)
    assert not torch.equal(begun, draw_embeddings.stage_embeddings(network.as_drawn())["c4"]["c4.1"])
    assert "E₀" not in capsys.readouterr().err

    main(dataclasses.replace(args, epochs=2, stages="CCLC", seed=6, runs_dir=str(tmp_path / "other")))
    shutil.rmtree(source)
    shutil.copytree(next((tmp_path / "other" / "Lambda").iterdir()), source)
    draw_embeddings.as_begun(network)
    assert f"E₀ is of {source} as it is now" in capsys.readouterr().err
    shutil.rmtree(source)
    draw_embeddings.main(["--checkpoint", str(run), "--out", str(tmp_path / "pictures")])
    assert "E₀ is drawn by the seed, and is not what this run began with (init_from: " in capsys.readouterr().err
