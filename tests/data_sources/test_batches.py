import torch

from data_sources.batches import evaluation_batch, mix

CPU = torch.device("cpu")


def test_seeds_are_spread() -> None:
    seeds = {mix(seed, epoch) for seed in range(50) for epoch in range(50)}
    assert len(seeds) == 2500


def test_a_gpu_is_tested_on_larger_batches() -> None:
    assert evaluation_batch(96, 32, CPU) == 96
    assert evaluation_batch(96, 32, torch.device("cuda")) == 1024
    assert evaluation_batch(96, 224, torch.device("cuda")) == 96
