"""The settings of a run that is resumed: its own, but for those that are given anew."""

import dataclasses
from pathlib import Path
from typing import Any

from command_line.arguments import flags
from command_line.errors import InputError, one_line_errors
from command_line.paths import project_path, quoted, shown, typed
from command_line.settings import counted
from run_state.run_folder import CONFIG, checkpoint_files, find_run, group_folder, position, read_config
from run_state.saved_settings import saved_settings
from user_input import FREE_ON_RESUME, UserInput, default_settings, given_settings


def load_settings(argv: list[str] | None = None) -> UserInput:
    """The settings with the flags of `argv` (the process's own by default) in place of the defaults.

    With `--resume`, a setting whose flag is not given is that of the run which is resumed; a default that was edited
    since that run began counts as a flag. Ends the process with exit code 2 and one line for a flag or value that is
    not allowed, and where there is no such run.
    """
    with one_line_errors():
        given = given_settings(argv)
        args = UserInput(**given)
        if args.resume is None:
            return args
        folder = find_run(group_folder(args.runs_path, args.model), args.resume_path)
        config = read_config(folder)
        saved = saved_settings(config, folder / CONFIG)
        edited = {name: value for name, value in _edited(config).items() if name not in given}
        _check_epochs({**edited, **given}.get("epochs", saved.epochs), saved, folder)
        _check_edited(edited, saved, folder)
        return dataclasses.replace(saved, **{**edited, **given, "resume": str(folder)})


def as_begun(args: UserInput) -> UserInput:
    """The settings, with the precision that `auto` has been settled to by the run that is to be resumed.

    Raises:
        InputError: there is no such run.
    """
    if args.resume is None or args.precision != "auto":
        return args
    folder = find_run(group_folder(args.runs_path, args.model), args.resume_path)
    return dataclasses.replace(args, precision=saved_settings(read_config(folder), folder / CONFIG).precision)


def to_go_further(args: UserInput, folder: Path) -> str:
    """What is typed in the current folder for a run with these settings that begins with the weights of `folder`'s."""
    further = dataclasses.replace(args, init_from=project_path(str(folder)), stop_after=None, resume=None)
    here = {"data_dir": shown(args.data_path), "runs_dir": shown(args.runs_path), "init_from": shown(folder)}
    return " ".join([typed("main_general.py"), *flags(further, here)])


def _edited(config: dict[str, Any]) -> dict[str, Any]:
    """The defaults of `user_input.py` that are others than when the run began."""
    before = config.get("defaults")
    if not isinstance(before, dict):  # a run of an earlier version
        return {}
    return {name: value for name, value in default_settings().items() if name in before and before[name] != value}


def _check_epochs(epochs: int, saved: UserInput, folder: Path) -> None:
    """Refuse another number of epochs, and say what there is in its place: the schedule that was followed has its own.

    Raises:
        InputError: it is another one than the run's.
    """
    done, run = max(map(position, checkpoint_files(folder)), default=(0, 0))[0], quoted(folder)
    if epochs == saved.epochs:
        return
    if epochs <= done:
        raise InputError(
            f"epochs: {run} has done {done} of {saved.epochs} epochs already; --stop_after ends a run early"
        )
    anew = to_go_further(dataclasses.replace(saved, epochs=epochs - done), folder)
    if done >= saved.epochs:
        state = (
            f"has done its {counted(done, 'epoch')}, with which the learning rate of its schedule has come to its end"
        )
        choice = "To train on"
    else:
        state = f"has done {done} of {saved.epochs} epochs, on a schedule of so many, which is not bent to {epochs}"
        choice = f"To the end of its own schedule: {typed('main_general.py')} --resume {run}. "
        choice += f"To train for {epochs - done} more in its place"
    raise InputError(
        f"epochs: {run} {state}. {choice}, from its last weights, with a new schedule and in a new folder, which names "
        f"this run: {anew}"
    )


def _check_edited(edited: dict[str, Any], saved: UserInput, folder: Path) -> None:
    """Refuse an edit that would make the run's figures another run's."""
    for name, value in edited.items():
        if name not in FREE_ON_RESUME and value != getattr(saved, name):
            raise InputError(
                f"resume: {name} is {value} in user_input.py now, and {getattr(saved, name)} in the run {folder}; "
                f"put it back, or give --{name} as the run has it"
            )
