"""What `fuzzing.py` throws at the project: files damaged by chance, and checkpoints, values and images made to harm."""

import copy
import errno
import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

HOSTILE_CHECKPOINTS, HOSTILE_IMAGES = 7, 10
HOSTILE_VALUES: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 2**70, 10**400, 0.5, float("nan"), float("inf"), -float("inf"), 1e308),
    *("", "text", "ß 模型", "\ud800", "a\0b", "x" * 100_000, "../../etc", "two words", "\n", "9" * 5000),
    *([], {}, [[]], {"": None}, [None] * 1000),
]


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Bytes with some flipped, cut, repeated, left out or replaced."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 3, 30))):
        where, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 4, 50))
        how = chance.randrange(6)
        if how == 0:
            changed[where : where + length] = chance.randbytes(length)
        elif how == 1 and where < len(changed):
            changed[where] ^= 1 << chance.randrange(8)
        elif how == 2:
            del changed[where : where + length]
        elif how == 3:
            changed[where:where] = changed[where : where + length]
        elif how == 4:
            changed[where : where + 4] = chance.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)))
        elif chance.random() < 0.3:
            del changed[where:]
    return bytes(changed)


def forge(content: Any, chance: random.Random) -> Any:
    """A copy of nested containers with one value in them replaced, left out or added."""
    forged = copy.deepcopy(content)
    part = forged
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = chance.choice(keys)
        inner = part[key]
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.15:
            break
        part = inner
    how = chance.randrange(8)
    if how == 0:
        del part[key]
    elif how == 1 and isinstance(part, dict):
        part[chance.choice(("step", "state_dict", "__class__", 7, ""))] = chance.choice(HOSTILE_VALUES)
    else:
        part[key] = hostile_tensor(inner, chance) if isinstance(inner, torch.Tensor) else chance.choice(HOSTILE_VALUES)
    return forged


def hostile_tensor(like: torch.Tensor, chance: random.Random) -> Any:
    return chance.choice(
        [
            torch.zeros(1).expand(2**40),  # four bytes in the file, four TiB to copy
            like.flatten()[:1],
            like[None],
            like.to(torch.complex64),
            like.to(torch.int64),
            torch.empty(like.shape, device="meta"),
            torch.zeros(0),
            None,
            7,
        ]
    )


class Command:
    """Unpickled, it would leave a file behind."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def hostile_checkpoint(path: Path, sound: bytes, marker: Path, how: int) -> None:
    """Write what no disk does by chance, in one of HOSTILE_CHECKPOINTS ways; `marker` would be the work of its code."""
    if how == 0:
        torch.save({"training": Command(os.mkdir, str(marker))}, path)
    elif how == 1:
        path.write_bytes(pickle.dumps(Command(os.mkdir, str(marker))))
    elif how == 2:  # much of nothing, well packed
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
            for _ in range(100):
                file.write(bytes(2**20))
    elif how == 3:  # a size that is not there, in the archive's table
        content = bytearray(sound)
        entry = content.index(b"PK\x01\x02")
        content[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
        path.write_bytes(content)
    elif how == 4:
        torch.save({"training": Command(bytearray, 2**40)}, path)
    elif how == 5:
        os.mkfifo(path)
    else:
        path.mkdir()


def hostile_image(path: Path, how: int) -> None:
    """Write what is no picture for training, in one of HOSTILE_IMAGES ways."""
    sizes = ((50_000, 50_000), (8000, 8000), (13_000, 10_000), (2**31 - 1, 1), (60_000_000, 1))
    if how < len(sizes):  # a few bytes that declare a picture of any size
        header = struct.pack(">IIBBBBB", *sizes[how], 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000))), (b"IEND", b""))
        parts = [struct.pack(">I", len(data)) + name + data + checksum(name + data) for name, data in chunks]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    elif how == 5:  # a program in a language of its own
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")
    elif how == 6:
        os.mkfifo(path)
    elif how == 7:
        path.symlink_to(path)
    elif how == 8:
        Image.new("1", (20_000, 9000)).save(path)
    else:
        Image.new("1", (1, 9000)).save(path)


def checksum(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


class Gone(io.StringIO):
    """A console whose terminal is closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")
