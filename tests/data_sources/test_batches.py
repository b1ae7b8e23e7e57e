import pytest
import torch

from command_line.errors import InputError
from data_sources import batches
from data_sources.batches import check_shares, evaluation_batch, mix

CPU = torch.device("cpu")


def test_seeds_are_spread() -> None:
    seeds = {mix(seed, epoch) for seed in range(50) for epoch in range(50)}
    assert len(seeds) == 2500


def test_a_gpu_is_tested_on_larger_batches() -> None:
    assert evaluation_batch(96, 32, CPU) == 96
    gpu = torch.device("cuda")
    assert evaluation_batch(256, 32, gpu) == 1024
    assert evaluation_batch(96, 224, gpu) == 96
    assert [evaluation_batch(size, 32, gpu) for size in (128, 16, 4096)] == [1024, 128, 4096]  # less takes less memory


def test_pieces_are_those_of_a_process_and_not_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shares(100, 8, sync_batch_norm=False, pieces=4)
    monkeypatch.setattr(batches, "size", lambda: 2)
    with pytest.raises(InputError, match="^accumulate: 4 pieces of the 4 images .* takes at most 2$"):
        check_shares(100, 8, sync_batch_norm=False, pieces=4)
    check_shares(100, 8, sync_batch_norm=False, pieces=2)
