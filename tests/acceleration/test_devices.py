import re

import pytest
import torch

from acceleration import devices
from acceleration.devices import choose_precision, describe_device, enough_memory, find_device, why_precision
from command_line.errors import InputError

CPU = torch.device("cpu")
COMPUTES_IN_BF16 = devices.cpu_computes_in_bf16  # `conftest.py` puts another in its place


def test_devices_and_precisions_that_are_not_there_are_refused() -> None:
    assert find_device("cpu") == CPU
    for name in ("cuda:99", "tpu", "meta"):
        with pytest.raises(InputError, match=f"device: {name} is not there; this machine has cpu"):
            find_device(name)
    with pytest.raises(InputError, match="precision: fp16 needs a CUDA GPU"):
        choose_precision("fp16", CPU)


def test_of_several_processes_none_takes_the_gpu_of_a_mac_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(devices, "size", lambda: 2)
    assert find_device("auto") == CPU


def raise_on_the_way(first: Exception, then: Exception) -> None:
    """As torch.save does, which closes its archive when it could not fill it."""
    try:
        raise first
    finally:
        raise then


def test_memory_that_runs_out_is_told_whatever_came_of_it() -> None:
    told = r"^batch_size: these settings take more memory than there is \(MemoryError\);"
    with pytest.raises(InputError, match=told), enough_memory():
        raise_on_the_way(MemoryError(), RuntimeError("unexpected pos 92228224 vs 92228112"))
    with pytest.raises(RuntimeError, match="second"), enough_memory():
        raise_on_the_way(ValueError("first"), RuntimeError("second"))


def test_threads_are_counted_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, words in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert re.fullmatch(rf".+, {words}", describe_device(CPU))


@pytest.mark.parametrize(
    ("flags", "chosen", "why"),
    [
        ((True, False), "bf16", " (auto: this CPU computes in it)"),
        ((False, True), "bf16", " (auto: this CPU computes in it)"),
        ((False, False), "fp32", " (auto: this CPU does not compute in bf16)"),
    ],
)
def test_auto_takes_bf16_where_the_cpu_computes_in_it(
    flags: tuple[bool, bool], chosen: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_in_bf16", COMPUTES_IN_BF16)
    for name, flag in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), flags, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda flag=flag: flag)
    assert choose_precision("auto", CPU) == chosen
    assert why_precision("auto", chosen, CPU) == why
    assert why_precision(chosen, chosen, CPU) == ""
    assert ("imitates" in why_precision("bf16", "bf16", CPU)) is (chosen == "fp32")
