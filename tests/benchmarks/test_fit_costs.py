import json
from pathlib import Path

import numpy as np
import pytest

import benchmark
from benchmarks import fit_costs
from benchmarks.layer import CASES, forced_ways, way_name
from benchmarks.measuring import FOLDER
from command_line.errors import InputError
from lambda_ops.rule import COSTS, Costs, cost

BATCH, BASE = 4, 3.0  # images; milliseconds that every way of a shape takes beside


def report(costs: Costs) -> dict:
    """As `benchmark.py layer` would write it on a machine of exactly these costs."""
    cases = []
    for case in CASES:
        arguments = case.rule_arguments(case.layer())
        rows = {}
        for way in forced_ways(arguments[0]):
            median = BASE + BATCH * cost(way, *arguments, costs=costs) / 1e6
            rows[way_name(way)] = {name: {"median": median} for name in ("forward_ms", "forward_backward_ms")}
        rows["chosen"] = rows["einsum"] = {name: {"median": 0.001} for name in ("forward_ms", "forward_backward_ms")}
        cases.append({**case._asdict(), "batch": BATCH, "rows": rows})
    return {"memory": "as the profiler has it", "cases": cases}


def test_the_costs_of_a_machine_are_found_again() -> None:
    machine = Costs(*np.linspace(1.0, 2.0, len(Costs._fields)))
    fitted = fit_costs.fit(fit_costs.timings(report(machine)["cases"], "forward"))
    assert np.allclose(fitted, machine, rtol=0.01)
    assert fit_costs.chosen_to_best(fit_costs.timings(report(machine)["cases"], "forward"), fitted) == [1.0] * len(
        CASES
    )


def test_the_command_prints_what_the_rule_takes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "layer.json"
    path.write_text(json.dumps(report(COSTS["cpu avx512", True])))
    benchmark.main(["fit", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "Costs(" in line] == [
        "    ('cpu avx512', False)",
        "    ('cpu avx512', True)",
    ]
    assert eval(lines[3].split(": ")[1].rstrip(","), {"Costs": Costs})[1:] == pytest.approx(
        COSTS["cpu avx512", True][1:], rel=0.02
    )
    assert "worst 1.00; above 1.1 for 0 of 32 shapes" in lines[1]


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}"])
def test_another_file_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="is no file of benchmark.py layer"):
        benchmark.main(["fit", str(path)])


@pytest.mark.parametrize("other", ["convert", "train", "scaling"])
def test_a_file_of_another_benchmark_is_refused(other: str) -> None:
    path = next(FOLDER.glob(f"{other}-*.json"))
    with pytest.raises(InputError, match=f"^file: .*{path.name} is no file of benchmark.py layer"):
        benchmark.main(["fit", str(path)])
