"""The settings of a run that is resumed: its own, but for those that the command line gives anew."""

import dataclasses

from command_line.errors import one_line_errors
from run_state.run_folder import CONFIG, find_run, group_folder, read_config
from user_input import UserInput, from_saved, given_settings


def load_settings(argv: list[str] | None = None) -> UserInput:
    """The settings with the flags of `argv` (the process's own by default) in place of the defaults.

    With `--resume`, a setting whose flag is not given is that of the run which is resumed. Ends the process with exit
    code 2 and one line for a flag or value that is not allowed, and where there is no such run.
    """
    with one_line_errors():
        given = given_settings(argv)
        args = UserInput(**given)
        if args.resume is None:
            return args
        folder = find_run(group_folder(args.runs_path, args.model), args.resume_path)
        saved = from_saved(read_config(folder)["settings"], folder / CONFIG)
        return dataclasses.replace(saved, **{**given, "resume": str(folder)})
