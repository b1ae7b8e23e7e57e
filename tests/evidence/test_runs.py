"""Carrying out runs, on folders made up for it: what is begun anew, what is told, and what is still to do."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from synthetic_logs import conditions, write_run

from evidence import estimates, runs
from evidence.questions import EXPERIMENTS
from evidence.runs import OUTPUT, Run, carry_out
from run_state.run_folder import CHECKPOINTS

R = EXPERIMENTS["stage_2"].variations["R"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(R, 0, conditions(tmp_path))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = write_run(run.conditions, R, 0, [])
    (run.folder / OUTPUT).write_text("killed")
    checkpoints = killed.with_name("another") / CHECKPOINTS

    def main(*given: object) -> SimpleNamespace:
        assert not killed.exists()
        checkpoints.mkdir(parents=True)
        (killed.parent / "notes.txt").touch()
        return SimpleNamespace(stopped_by=None)

    usual = Path.glob  # which in Python 3.10 yields files where folders are asked for
    monkeypatch.setattr(Path, "glob", lambda path, pattern, **options: usual(path, pattern.rstrip("/"), **options))
    monkeypatch.setattr(runs, "main", main)
    assert carry_out(run) is None
    assert (run.folder / OUTPUT).read_text() == "killed"
    assert checkpoints.parent.exists()
    assert not checkpoints.exists()


def test_an_epoch_takes_what_its_log_says_on_the_device_of_that_log_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(run.conditions, R, 0, [50.0, 60.0], device="AMD EPYC, 1 threads")  # as earlier versions wrote
    monkeypatch.setattr(estimates, "measure_epoch", lambda run, device: 360.0)
    seconds = {}
    for device in ("AMD EPYC, 1 thread", "AMD EPYC, 2 threads"):
        monkeypatch.setattr(estimates, "describe_device", lambda _, device=device: device)
        seconds[device] = estimates.estimate(run, torch.device("cpu"))
    assert seconds == {"AMD EPYC, 1 thread": 30.0 + 15.0, "AMD EPYC, 2 threads": 360.0}
