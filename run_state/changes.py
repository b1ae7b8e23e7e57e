"""What is other where a run goes on than where it began: refused, told, or taken over for good."""

from pathlib import Path
from typing import Any

from acceleration.distributed import size
from command_line.errors import InputError
from command_line.settings import as_word
from data_preprocessing import Data
from data_sources.fingerprint import differences
from run_state.run_folder import CONFIG, read_config
from run_state.saved_settings import saved_settings
from user_input import FREE_ON_RESUME, UserInput


def check_same_data(folder: Path, data: Data) -> None:
    """Refuse to go on with a run on other data than it was begun with.

    Raises:
        InputError: naming what differs.
    """
    saved = read_config(folder).get("data")
    if isinstance(saved, dict) and (found := differences(saved, data.classes, data.fingerprint)):
        raise InputError(f"data_dir: the data are not those that {folder} was begun with: {'; '.join(found)}")


def take_over(config: dict[str, Any], args: UserInput, folder: Path, data: Data) -> list[str]:
    """Let the `config` of a run in `folder` have the free settings of `args` from now on; lines on all that is other.

    So a later `--resume` alone goes on as this one did, such as past an end that `stop_after` had set.
    """
    return _counts(config["data"], data) + _processes(config, args) + _free_settings(config, args, folder)


def _counts(saved: dict[str, Any], data: Data) -> list[str]:
    """Images that have come or gone since a run of an earlier version began, which kept no fingerprint."""
    before, now = (saved["train_images"], saved["test_images"]), (data.train.images, data.test.images)
    if "fingerprint" in saved or before == now:
        return []
    return [f"begun with {before[0]:,} training and {before[1]:,} test images; there are {now[0]:,} and {now[1]:,} now"]


def _processes(config: dict[str, Any], args: UserInput) -> list[str]:
    before = config.get("processes", size())
    if before == size():
        return []
    effect = "" if args.sync_batch_norm else ": batch norm sees other shares of each batch"
    return [f"processes: {before} when the run began, {size()} now{effect}"]


def _free_settings(config: dict[str, Any], args: UserInput, folder: Path) -> list[str]:
    before = saved_settings(config, folder / CONFIG)
    # without the setting `augmentation`, what it was follows from `memory_gib` (saved_settings), which therefore stays
    kept = {"resume"} if "augmentation" in config["settings"] else {"resume", "memory_gib"}
    names = [name for name in sorted(FREE_ON_RESUME - kept) if getattr(args, name) != getattr(before, name)]
    config["settings"] |= {name: getattr(args, name) for name in names}
    return [f"from now on: {', '.join(f'{name} {as_word(getattr(args, name))}' for name in names)}"] if names else []
