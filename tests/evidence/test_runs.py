"""Carrying out runs, on folders made up for it: what is begun anew, what is told, and what is still to do."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from synthetic_logs import conditions, write_run

from evidence import estimates, processes, runs
from evidence.processes import carry_out_all
from evidence.questions import EXPERIMENTS
from evidence.runs import OUTPUT, Run, carry_out
from run_state.run_folder import CHECKPOINTS

R = EXPERIMENTS["stage_2"].variations["R"]
GOES_ON = "1 run still to do; the same command goes on"


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


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        (0, 0, ["stage_2_R seed 0: top-1 60.00 % (test), 1350 s"]),
        (-signal.SIGKILL, 1, ["stage_2_R seed 0 ended with exit code -9: nothing was printed", GOES_ON]),
        (-signal.SIGTERM, 1, ["stage_2_R seed 0 was stopped", GOES_ON]),
    ],
)
def test_what_a_process_has_not_done_is_still_to_do(
    run: Run,
    code: int,
    exit_code: int,
    says: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    class Process:
        """One that is over as soon as it is started, by this exit code; its run is done then, or has no file yet."""

        exitcode, sentinel = code, None

        def __init__(self, target: object, args: tuple) -> None: ...

        def start(self) -> None:
            if code == 0:
                write_run(run.conditions, R, 0, [60.0] * 30)

        def is_alive(self) -> bool:
            return False

        def join(self) -> None: ...

    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda method: SimpleNamespace(Process=Process))
    monkeypatch.setattr(processes, "wait", lambda sentinels, timeout: None)
    assert carry_out_all({run: "stage_2"}, run.conditions, 1, keep_checkpoints=False) == exit_code
    begin, *lines = capsys.readouterr().out.splitlines()
    assert begin.startswith("1 run on CIFAR-10, 0 done; into ")
    assert lines == says
