"""The CPU's batch norm over all processes; `test_distributed.py` has several of them."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from acceleration.sync_batch_norm import synchronise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_one_process_it_is_batch_norm(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda total: None)
    plain = nn.BatchNorm2d(3).to(dtype)
    ours = synchronise(nn.Sequential(copy.deepcopy(plain)), torch.device("cpu"))[0]
    assert type(ours) is not type(plain)
    x = torch.randn(4, 3, 5, 5, dtype=dtype) * 3 + 2
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
