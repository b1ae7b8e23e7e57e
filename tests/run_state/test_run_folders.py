"""Which folder a run gets, and which one is the newest."""

import dataclasses
import datetime
import os

import pytest

from main_general import main
from run_state import run_folder
from user_input import UserInput


def test_two_runs_of_one_second_have_a_folder_each(small: UserInput, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 3, 4, 5, 6)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    names = [run_folder.make_run_folder(small.runs_path, small).name for _ in range(3)]
    assert names[0].startswith("lambda26_imagefolder_CLLL_imagenet_seed0_Nov03_04-05-06_lr0.0005_")
    assert names[1:] == [f"{names[0]}_2", f"{names[0]}_3"]


def test_a_clock_set_back_does_not_hide_the_newest_run(small: UserInput, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        year_now = 2030

        @classmethod
        def now(cls, tz=None):
            return cls(cls.year_now, 12 if cls.year_now == 2030 else 1, 1)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    args = dataclasses.replace(small, epochs=1)
    older = main(args).folder
    Clock.year_now = 2020
    newer = main(args).folder
    for path in older.rglob("*"):
        os.utime(path, (2e9, 2e9))
    assert main(dataclasses.replace(args, resume="latest")).folder == newer
