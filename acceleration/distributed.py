"""Several processes at one run: torchrun's workers, on one machine or many, or a plain process that is all there is.

    torchrun --nproc_per_node=2 main_general.py         # one machine: as many processes as it has GPUs
    torchrun --nnodes=4 --nproc_per_node=8 --max_restarts=3 --rdzv_backend=c10d --rdzv_endpoint=<host>:29500 \
        main_general.py                                 # on each of four machines, the first of which is <host>

Each process trains on its share of every batch, and DistributedDataParallel averages the gradients. What the
processes tell each other beside that (sums, a wish to stop, what rank 0 has read) goes over gloo, so that no GPU waits
for it. A plain process finds itself to be rank 0 of 1, and every function here gives it its own values back.

The GPUs' part, by NCCL, follows PyTorch's documentation and has not been run: the tests have gloo and CPUs only.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from command_line import errors

Value = TypeVar("Value")
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")  # gloo's words
# That a process waits for another: one may read a large folder for all, for longer than gloo's half an hour. That one
# has died is told by its closed connection, and by torchrun.
PATIENCE = timedelta(days=1)
TELL_SECONDS = 10.0  # that a process waits for another to tell an error before it does so itself
_store: dist.Store | None = None  # what torchrun's processes have in common from the start


@contextmanager
def world() -> Iterator[None]:
    """Within this context torchrun's processes can talk to each other; a plain process stays alone.

    A process that finds the others gone ends with exit code 1 and one line, for torchrun to restart them all. One that
    dies in PyTorch's own code says where.
    """
    global _store
    if "RANK" not in os.environ:
        yield
        return
    faulthandler.enable()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())  # which `cuda` without a number means
    store, number, count = next(dist.rendezvous("env://"))
    _store = dist.PrefixStore(f"attempt {restarts()}", store)  # torchrun may keep the store of the killed workers
    errors.tell = tell_once
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE, store=_store, rank=number, world_size=count)
    try:
        yield
        _leave_together(_store)
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST):
            raise
        print(f"rank {rank()}: another process of this run has ended", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        # torchrun, seeing the first process gone, ends the others: those that leave by themselves keep their exit code
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.destroy_process_group()


def _leave_together(store: dist.Store) -> None:
    """Wait, at the store, until no process needs another's connection any more: who is slow may be reading from one."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))  # by torchrun, where another has died
    with suppress(RuntimeError):  # who kept the store is gone
        if store.add("done", 1) == size():
            store.set("all done", "")
        while not ended and not store.check(["all done"]):
            time.sleep(0.02)


def rank() -> int:
    """This process's number, from 0 to `size() - 1`."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are, on all machines together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine, and that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def hide_bar() -> bool | None:
    """What tqdm calls `disable`: None shows a bar on a terminal, True never does."""
    return None if is_main() else True


def all_sum(*numbers: float) -> list[float]:
    """Each number's sum over the processes, in float64."""
    if size() == 1:
        return list(numbers)
    together = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(together)
    return together.tolist()


def all_max(number: int) -> int:
    """The highest of the processes' numbers; none goes on before all have come here."""
    if size() == 1:
        return number
    highest = torch.tensor(number)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def first_of_all(value: Value | None) -> Value | None:
    """Of all the processes' values the first that is not None, by rank."""
    if size() == 1:
        return value
    values: list[Value | None] = [None] * size()
    dist.all_gather_object(values, value)
    return next((each for each in values if each is not None), None)


def on_main(function: Callable[..., Value], *arguments: Any) -> Value:
    """What `function(*arguments)` gives rank 0, in every process; what it raises there is raised in all."""
    if size() == 1:
        return function(*arguments)
    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = function(*arguments)
        except (Exception, SystemExit) as error:
            result[1] = error
    dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


@contextmanager
def one_before_the_others() -> Iterator[None]:
    """Let one process of each machine go first, such as for a download that the others then find done."""
    if local_rank() > 0:
        all_max(0)
    try:
        yield
    finally:
        if local_rank() == 0:
            all_max(0)


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's running statistics, which DistributedDataParallel gives them before a step only."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def tell_once(message: str) -> None:
    """Of an error that all processes meet, let the first to come here tell; the others wait until it has.

    Without that, torchrun might see one of the others end, and end this one, before it has come to tell.
    """
    if _store is not None:
        with suppress(RuntimeError):  # who kept the store is gone, or the first to come here was killed
            if _store.add("failures", 1) > 1:
                _store.wait(["told"], timedelta(seconds=TELL_SECONDS))
                return
    print(message, file=sys.stderr, flush=True)
    if _store is not None:
        with suppress(RuntimeError):
            _store.set("told", "")


def launch() -> str | None:
    """What tells this torchrun from all others, and stays when it restarts its workers; None in a plain process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    # a torchrun that was given no rdzv_id: the folder that it makes for errors, <launch>/attempt_<n>/<rank>/<file>
    errors = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return errors.parents[2].name if len(errors.parents) > 2 else None


def restarts() -> int:
    """How often torchrun has restarted the workers."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
