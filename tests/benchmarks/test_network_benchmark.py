import json
import math

import pytest
import torch

import benchmark
from benchmarks import converted, measuring, network, scaling
from benchmarks.network import OURS, PLAIN, Row, compare, prepare, rows
from command_line.errors import InputError

CPU = torch.device("cpu")


def test_the_plain_rows_stand_beside_ours_in_float32_only(monkeypatch) -> None:
    monkeypatch.setattr(network, "cpu_computes_in_bf16", lambda: True)
    everything = rows(CPU, False, ["train"])
    variants = [row for row in everything if row.variant]
    assert {(row.network, row.variant) for row in variants} == {
        (network, variant) for network in ("ResNet-50", "λ-ResNet-50") for variant in ("augmented", "compiled")
    }
    assert {(row.stem, row.precision) for row in variants} == {("imagenet", "fp32")}
    assert len(everything) == 2 * (2 * len(OURS) + len(PLAIN)) + len(variants)
    assert {row.precision for row in everything if row.network in PLAIN} == {"fp32"}
    assert {row.network for row in rows(CPU, True, ["infer", "infer folded"])} == {
        *PLAIN,
        "ResNet-50",
        "λ-ResNet-50",
    }


def test_a_cpu_is_not_timed_in_a_precision_that_it_only_imitates(monkeypatch) -> None:
    monkeypatch.setattr(network, "cpu_computes_in_bf16", lambda: False)
    everything = rows(CPU, False, ["train"])
    assert {row.precision for row in everything} == {"fp32"}
    assert len(everything) == 2 * (len(OURS) + len(PLAIN)) + 4


@pytest.mark.parametrize(
    ("network", "variant"),
    [*((name, "") for name in (*PLAIN, "ResNet-50", "λ-ResNet-50", "hybrid CCLL")), ("λ-ResNet-50", "augmented")],
)
def test_a_step_trains(network: str, variant: str) -> None:
    step, *_, model = prepare(Row(network, "imagenet", "fp32", 2, "train", variant), CPU)
    before = model.fc.weight.clone()
    step()
    assert not torch.equal(model.fc.weight, before)
    assert model.training


def test_folded_and_unfolded_inference_give_the_same_logits() -> None:
    results = []
    for task in ("infer", "infer folded"):
        torch.manual_seed(0)
        prepared = prepare(Row("λ-ResNet-50", "imagenet", "fp32", 2, task), CPU)
        assert isinstance(prepared.model.bn1, torch.nn.Identity) == ("folded" in task)
        results.append(prepared.step())
    assert results[0].shape == (2, 10)
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_rows_are_timed_in_processes_and_compared() -> None:
    group = [Row(name, "imagenet", "fp32", 2, "infer") for name in ("torchvision's ResNet-50", "ResNet-50")]
    measured = network.measure_rows(group, CPU, budget=0.0)
    assert [row["network"] for row in measured] == [row.network for row in group]
    assert all(row["flops"] > 1e8 and row["peak_memory_mib"] > 0 for row in measured)
    assert measured[1]["parameters"] == 23_528_522
    assert measured[0]["images_per_second"] == pytest.approx(2e3 / measured[0]["step_ms"]["median"])
    (ratio,) = compare(measured).values()
    assert ratio == pytest.approx(measured[0]["step_ms"]["median"] / measured[1]["step_ms"]["median"], abs=0.01)


def test_a_row_whose_process_dies_is_named() -> None:
    row = Row("no such network", "imagenet", "fp32", 2, "infer")
    with pytest.raises(InputError, match="^no such network, imagenet stem, fp32: its process has ended with code 1;"):
        network.measure_rows([row], CPU, budget=0.0)


def test_a_share_above_the_whole_matrix_rate_is_explained(capsys) -> None:
    row = {"name": "ResNet-50", "stem": "imagenet", "batch_size": 2, "precision": "fp32", "images_per_second": 20.0}
    row |= {"step_ms": {"median": 100.0, "low": 99.0, "high": 101.0}, "peak_memory_mib": 3.0, "flops": 4e9}
    network.print_rows([row, row | {"name": "other", "flops": 6e9}], {"fp32": 5e10})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "ms" not in line and "100.0" in line] == ["80%", "120%*"]
    assert "as a share of 50 GFLOP/s" in lines[5]
    assert lines[7].startswith("  * more than all of it")
    network.print_rows([row], {"fp32": 5e10})
    assert "*" not in capsys.readouterr().out


def test_conversions_are_timed_beside_theirs(monkeypatch, tmp_path, capsys) -> None:
    layers = [converted.timm_layer(4, 8, 3), converted.lambda_networks_layer(4, 8, None, 2)]
    small = converted.timm_network("lambda_resnet26t")._replace(side=32)
    monkeypatch.setattr(converted, "QUICK_CASES", [*layers, small])
    monkeypatch.setattr(converted, "POSITIONS", {"cpu": 32})
    monkeypatch.setattr(converted, "IMAGES", {"cpu": 2})
    monkeypatch.setattr(converted, "BUDGET", 0.0)
    monkeypatch.setattr(measuring, "QUICK_FOLDER", tmp_path)
    benchmark.main(["convert", "--quick", "--device", "cpu"])
    (path,) = tmp_path.glob("convert-*.json")
    report = json.loads(path.read_text())
    assert [case["lambda_layers"] for case in report["cases"]] == [1, 1, 3]
    for case in report["cases"]:
        assert case["difference"] < 1e-4
        assert case["rows"].keys() == {"theirs", "theirs, channels last", "ours", "ours, channels last"}
        for measured in ("training", "evaluation"):
            best = {
                side: min(case["rows"][side + word][measured]["ms"]["median"] for word in ("", ", channels last"))
                for side in ("theirs", "ours")
            }
            assert case["speed_up"][measured] == pytest.approx(best["theirs"] / best["ours"], abs=0.01)
    layers = [case["speed_up"]["training"] for case in report["cases"][:2]]
    assert report["geometric_mean_speed_up"]["layers"]["training"] == pytest.approx(math.prod(layers) ** 0.5, abs=0.01)
    assert "timm, 4×4, d = 8, r = 3, batch 2: outputs differ by" in capsys.readouterr().out


def test_without_the_packages_one_line_names_them(monkeypatch) -> None:
    monkeypatch.setattr(converted, "find_spec", lambda package: None if package == "timm" else package)
    with pytest.raises(InputError, match="^convert: timm not installed; pip install timm$"):
        converted.benchmark_convert(CPU, quick=True)


def test_scaling_reports_and_draws_every_point(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(scaling, "SIDES", (2, 4))
    monkeypatch.setattr(scaling, "BATCHES", (1, 2))
    monkeypatch.setattr(scaling, "DEPTHS", (26,))
    monkeypatch.setattr(scaling, "IMAGE_SIZE", 8)
    monkeypatch.setattr(scaling, "DIM", 8)
    monkeypatch.setattr(scaling, "BATCH", 1)
    monkeypatch.setattr(scaling, "SIDE", 4)
    monkeypatch.setattr(scaling, "NETWORK_BATCH", 2)
    monkeypatch.setattr(scaling, "BUDGET", 0.0)
    monkeypatch.setattr(scaling, "MOST_ATTENTION", 1000)
    content = scaling.benchmark_scaling(CPU, quick=True)
    left_out = [point for point in content["points"] if "left_out" in point]
    assert [(point["axis"], point["value"]) for point in left_out] == [("side", 4), ("batch", 1), ("batch", 2)]
    assert len(content["points"]) == (2 + 2 + 1) * 4
    scaling.plot(content, "a machine", tmp_path / "scaling.svg")
    assert "self-attention" in (tmp_path / "scaling.svg").read_text()
    assert "left out: each attention map takes" in capsys.readouterr().out
