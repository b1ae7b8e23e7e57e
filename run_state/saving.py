"""When the checkpoints of a run are written: by epochs, by minutes, and wherever it ends between two steps."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from acceleration.distributed import all_max, on_main
from model_preparation import Training
from run_state.checkpoints import RunState, save_checkpoint
from user_input import UserInput

Item = TypeVar("Item")


class Saver:
    """Writes the checkpoints of one run, and knows how old the last one is."""

    def __init__(self, folder: Path, args: UserInput, state: RunState, training: Training) -> None:
        self.folder, self.args, self.state, self.training = folder, args, state, training
        self._saved = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint; raises `InputError` where that cannot be done."""
        on_main(save_checkpoint, self.folder, self.state, self.training)
        self._saved = time.monotonic()

    def due_by_epochs(self) -> bool:
        """Whether one is due after the epochs that are done."""
        done = self.state.epochs_done
        return done % self.args.checkpoint_every == 0 or self.state.ended(self.args)

    def due_by_minutes(self) -> bool:
        """Whether the last one is old, on which all processes agree: so each must ask equally often."""
        minutes = self.args.checkpoint_minutes
        return minutes is not None and bool(all_max(int(time.monotonic() - self._saved >= 60 * minutes)))

    def until_due(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Hand batches on, one at least, up to where a checkpoint is due by minutes."""
        for batch in batches:
            yield batch
            if self.due_by_minutes():
                return
