"""The settings of a run as its config tells them, in the words of today."""

import dataclasses
from pathlib import Path
from typing import Any

from command_line.errors import InputError
from user_input import SMALL_IMAGE, UserInput, from_saved


def saved_settings(config: dict[str, Any], source: Path) -> UserInput:
    """The settings of `config`, which `source` holds: a run's config.json, or a checkpoint.

    A precision that `auto` has settled stays, whatever device the run goes on with; but for fp16, which only a GPU has.

    Before there was the setting `augmentation`, small images that did not fit in memory were cropped and normalised as
    ImageNet's: such a run has `resized_crop`.

    Raises:
        InputError: a setting of another version cannot be honoured, or what is said of the data is damaged.
    """
    args = from_saved(config["settings"], source)
    if args.precision == "auto" and config.get("precision") in ("fp32", "bf16"):
        args = dataclasses.replace(args, precision=config["precision"])
    if "augmentation" in config["settings"] or args.image_size > SMALL_IMAGE:
        return args
    try:
        streamed = _streamed(args, config["data"])
    except (KeyError, TypeError) as error:
        raise InputError(f"resume: {source} cannot be read (its data: {type(error).__name__})") from error
    return dataclasses.replace(args, augmentation="resized_crop") if streamed else args


def _streamed(args: UserInput, data: dict[str, Any]) -> bool:
    from data_preprocessing import fits_in_memory  # here, since they load PyTorch, which most command lines need not
    from data_sources.normalisation import IMAGENET_STATISTICS  # likewise

    if args.normalisation == "auto":
        return tuple(data["mean"]) == IMAGENET_STATISTICS[0]
    pixels = (data["train_images"] + data["test_images"]) * args.image_size**2  # as they were counted then
    return args.normalisation == "study" and not fits_in_memory(pixels, args.memory_gib)
