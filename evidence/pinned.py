"""What the experiments are defined by: the value of every setting that a run's variation does not name.

An edit of a default in `user_input.py` changes the runs of whoever edits it, and no experiment. A setting that has come
since then has, until it stands here, the value that does what was done before there was it.
"""

import dataclasses
from typing import Any

from user_input import UserInput

PINNED: dict[str, Any] = {
    # the network
    "model": "lambda",
    "depth": 50,
    "stages": "auto",
    "stem": "imagenet",
    "width": 64,
    "key_depth": 16,
    "heads": 4,
    "intra_depth": 1,
    "scope": None,
    "position": "relative",
    "share_embeddings": False,
    "zero_init_residual": True,
    "bn_momentum": 0.1,
    "sync_batch_norm": False,
    # the data
    "dataset": "cifar10",
    "data_dir": "data",
    "image_size": 32,
    "augmentation": "auto",
    "auto_augment": "none",
    "cutout": None,
    "mixup": 0.0,
    "cutmix": 0.0,
    "normalisation": "auto",
    "batch_size": 128,
    "workers": 2,
    "memory_gib": 2.0,
    "training_images": None,
    "validation_fraction": 0.0,
    "validation_folder": True,
    "test_fraction": 0.0,
    "skip_bad_images": False,
    # where the training starts
    "init_from": None,
    "freeze": None,
    "body_lr_factor": 1.0,
    # the training
    "epochs": 90,
    "stop_after": None,
    "warmup_epochs": 5,
    "schedule": "epoch",
    "accumulate": 1,
    "patience": None,
    "optimizer": "adam",
    "initial_lr": 5e-4,
    "momentum": 0.9,
    "beta2": 0.9999,
    "weight_decay": 1e-4,
    "weight_decay_on": "all",
    "clip_gradients": None,
    "label_smoothing": 0.1,
    "average": "none",
    "average_decay": 0.9999,
    "average_epochs": 10,
    # the test
    "test_flips": False,
    "also_test_in_training_mode": False,
    "keep_predictions": 0,
    # the machine, and the run's folder
    "seed": 0,
    "device": "auto",
    "precision": "auto",
    "compile": False,
    "cuda_graph": True,
    "deterministic": False,
    "runs_dir": "runs",
    "checkpoint_every": 5,
    "checkpoint_minutes": None,
    "resume": None,
}


def pinned() -> dict[str, Any]:
    """Every setting of today at the value that experiments have, in the order of `UserInput`."""
    return {field.name: PINNED.get(field.name, field.metadata["before"]) for field in dataclasses.fields(UserInput)}
