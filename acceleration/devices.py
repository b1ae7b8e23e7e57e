"""The device of a run: which one, what it is called, how it computes, and what its memory holds."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from acceleration.distributed import local_rank, size
from command_line.errors import InputError
from command_line.settings import counted

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# what PyTorch's errors say: of a GPU, of a CPU, and of a size beyond any memory
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` takes cuda where there is one, else mps for a process alone, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available() and size() == 1  # which several processes cannot share
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("another kind of device")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        there = ["cpu"]
        there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"device: {name} is not there; this machine has {', '.join(there)}") from error
    if size() > 1:
        _check_own_device(device)
    return device


def _check_own_device(device: torch.device) -> None:
    """Of several processes each needs a GPU of its own, which `cuda` without a number means, or the CPU."""
    if device.type == "mps" or device.index is not None:
        raise InputError(f"device: {size()} processes cannot share {device}; take cuda, cpu or auto")
    if device.type == "cuda" and local_rank() >= torch.cuda.device_count():
        raise InputError(f"device: more processes than GPUs; this machine has {torch.cuda.device_count()}")


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; `auto` takes bf16 where GPU or CPU computes in it, fp16 on other CUDA GPUs, else
    fp32.

    Raises:
        InputError: fp16 on a device that cannot scale losses.
    """
    if name == "auto":
        if device.type != "cuda":
            return "bf16" if device.type == "cpu" and cpu_computes_in_bf16() else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type != "cuda":
        raise InputError(f"precision: fp16 needs a CUDA GPU, and the device is {device.type}; take bf16, fp32 or auto")
    return name


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network computes on that device in that precision, which is not `auto`."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def cpu_computes_in_bf16() -> bool:
    """Whether the CPU multiplies bf16 numbers itself (AVX512-BF16, AMX): others are slower with it than with fp32."""
    asked = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return any(supported() for supported in asked)


def why_precision(asked: str, chosen: str, device: torch.device) -> str:
    """What is to stand after a precision: the reason for which `auto` has taken it, or what one asked for will cost."""
    if chosen == "bf16" and device.type == "cpu" and not cpu_computes_in_bf16():
        return " (this CPU only imitates it, and is many times as slow as with fp32)"
    if asked != "auto":
        return ""
    computes = "does not compute in bf16" if chosen in ("fp32", "fp16") else "computes in it"
    return f" (auto: this {device.type.upper()} {computes})"


def set_determinism(deterministic: bool) -> None:
    """Deterministic algorithms throughout, or the fastest ones that cuDNN finds by trying."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it; read at its first use
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


@contextmanager
def enough_memory() -> Iterator[None]:
    """Tell in one line that settings take more memory than there is.

    Raises:
        InputError: in place of PyTorch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        shortage = _shortage(error)
        if shortage is None:
            raise
        reason = str(shortage).strip().splitlines()[0][:200] if str(shortage).strip() else type(shortage).__name__
        raise InputError(
            f"batch_size: these settings take more memory than there is ({reason}); lower batch_size or image_size, "
            "take a smaller network, or set memory_gib 0 to read the images from disk"
        ) from error


def _shortage(error: BaseException | None) -> BaseException | None:
    """The error that says that memory ran out: this one, or the one on whose way it came."""
    while error is not None:  # torch.save complains of its archive, which it could not fill
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            return error
        error = error.__context__
    return None


def describe_device(device: torch.device) -> str:
    """The device as a person names it, such as `NVIDIA H100 80GB HBM3` or `AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} MPS"
    try:
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {counted(torch.get_num_threads(), 'thread')}"


def instructions(device: torch.device) -> str:
    """The instruction set that PyTorch's own kernels use on a CPU, such as `AVX2` or `AVX512`; nothing on a GPU."""
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was in use on the device so far; on the CPU, the most that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if resource is None:
        return 0
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
