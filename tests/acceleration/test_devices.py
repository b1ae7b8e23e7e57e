import re

import pytest
import torch

from acceleration.devices import choose_precision, describe_device, find_device
from command_line.errors import InputError

CPU = torch.device("cpu")


def test_devices_and_precisions_that_are_not_there_are_refused() -> None:
    assert find_device("cpu") == CPU
    for name in ("cuda:99", "tpu", "meta"):
        with pytest.raises(InputError, match=f"device: {name} is not there; this machine has cpu"):
            find_device(name)
    assert choose_precision("auto", CPU) == "fp32"
    with pytest.raises(InputError, match="precision: fp16 needs a CUDA GPU"):
        choose_precision("fp16", CPU)


def test_threads_are_counted_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, words in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert re.fullmatch(rf".+, {words}", describe_device(CPU))
