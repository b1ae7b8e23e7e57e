"""The end of a run: whether there is anything left to do of it, what it is called, and what to type next."""

import json
from pathlib import Path

from command_line.paths import quoted, typed
from nntrain import EpochProgress
from run_state.board import has_every_epoch
from run_state.checkpoints import RunState, agree, check_state, has_best, read_checkpoint
from run_state.resumption import to_go_further
from run_state.run_folder import (
    CONFUSION,
    METRICS,
    checkpoint_files,
    find_run,
    group_folder,
    has_checkpoint,
    read_config,
)
from user_input import UserInput


def finished_run(args: UserInput) -> tuple[Path, RunState] | None:
    """The run that is to be resumed, where it is whole: all epochs done, and every file written that its end writes.

    Nothing is written, and neither data nor network are needed.

    Raises:
        InputError: there is no such run, or its settings are not those of `args`.
    """
    if args.resume is None:
        return None
    folder = find_run(group_folder(args.runs_path, args.model), args.resume_path)
    config = read_config(folder)
    agree(args, config, folder)
    try:
        saved = read_checkpoint(checkpoint_files(folder)[-1])
        state = RunState(saved["config"], saved["rows"], EpochProgress(**saved["progress"]))
        check_state(state)
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        own = saved["config"]["id"] == config["id"] and lines == [json.dumps(row) for row in state.rows]
        written = (folder / CONFUSION).exists() and has_every_epoch(folder, state.rows)
        whole = own and written and state.ended(args) and has_best(folder, state)
    except Exception:  # whatever is missing or damaged is to be done again
        return None
    return (folder, state) if whole else None


def network_name(args: UserInput) -> str:
    """`λ-ResNet-50 (CCLL, imagenet stem)`."""
    kind = "λ-ResNet" if args.model == "lambda" else "ResNet"
    stages = f"{args.stage_word}, " if args.model == "lambda" else ""
    return f"{kind}-{args.depth} ({stages}{args.stem} stem)"


def what_next(args: UserInput, folder: Path, whole: bool) -> list[str]:
    """The run's folder, and the commands that go on from there, past all of its epochs where it is whole.

    The last is TensorBoard's. What is said of a command stands above it: not every shell takes a remark behind one.
    """
    run, lines = quoted(folder), []
    if has_checkpoint(folder):
        lines = [f"{typed('predict.py')} IMAGE --checkpoint {run}"]
        if "L" in args.stage_word and args.position != "none":
            lines.append(f"{typed('draw_embeddings.py')} --checkpoint {run} --out pictures")
        if whole:
            lines += ["as many epochs more, in a new folder:", to_go_further(args, folder)]
    moved = not folder.is_relative_to(args.runs_path)
    return [run, *lines, f"tensorboard --logdir {quoted(folder if moved else args.runs_path)}"]
