import json

import pytest
import torch

import benchmark
from benchmarks import layer as layer_benchmark
from benchmarks import measuring
from benchmarks.layer import Case
from command_line.errors import InputError


@pytest.mark.parametrize("case", [Case(4, 8, 3), Case(5, 8, None), Case(4, 8, 3, 2), Case(3, 8, 9)])
def test_plain_layers_compute_the_same(case):
    torch.manual_seed(0)
    layer = case.layer()
    x = torch.randn(2, case.dim, case.side, case.side)
    torch.testing.assert_close(layer_benchmark.EinsumLambda(layer, case)(x), layer(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer_benchmark.Conv3dLambda(layer)(x), layer(x), atol=1e-4, rtol=1e-4)


def test_peak_memory_counts_what_is_held_at_once():
    def function():
        for _ in range(3):
            kept = torch.zeros(2**18)  # 1 MiB
            kept = kept + 1

    assert measuring.peak_memory(function, torch.device("cpu")) == pytest.approx(2, abs=1.1)


def test_layer_benchmark_reports_every_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(layer_benchmark, "QUICK_CASES", [Case(4, 8, 3)])
    monkeypatch.setattr(layer_benchmark, "POSITIONS", {"cpu": 32})
    monkeypatch.setattr(layer_benchmark, "MOST_TIMES_SLOWER", 1e9)
    monkeypatch.setattr(layer_benchmark, "MOST_EMBEDDING", 1)
    monkeypatch.setattr(measuring, "QUICK_FOLDER", tmp_path)
    monkeypatch.setattr(layer_benchmark, "BUDGET", 0)
    benchmark.main(["layer", "--quick", "--device", "cpu"])
    (path,) = tmp_path.glob("layer-*-torch-*.json")
    report = json.loads(path.read_text())
    (case,) = report["cases"]
    assert {"chosen", *case["chosen"].values(), "attention 4x4", "lambda 1x4", "convolution", "fft", "conv3d"} <= set(
        case["rows"]
    )
    assert "products" in case["left_out"]["einsum"]
    assert all(row["peak_memory_mib"] > 0 for row in case["rows"].values())
    assert report["summary"]["forward_backward"]["geometric_mean_speed_up"] > 0
    out = capsys.readouterr().out
    assert "chosen is" in out
    assert {name.split()[0] for name in case["rows"]} <= layer_benchmark.LEGEND.keys()
    assert "  chosen       the layer as it is" in out
    assert report["command"] == "python benchmark.py layer --quick"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("layer --device cuda:99", "device: cuda:99 is not there"),
        ("speed", "invalid choice: 'speed'"),
        ("", "required"),
    ],
)
def test_bad_command_lines_are_refused_in_one_line(line, says):
    with pytest.raises(InputError, match=says):
        benchmark.main(line.split())


def test_on_a_mac_the_cpu_is_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "find_device", lambda name: torch.device("mps"))
    assert benchmark.choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device: mps cannot be measured; takes auto, cpu, cuda"):
        benchmark.choose_device("mps")
