import benchmark
from benchmarks import parameter_table


def test_the_papers_counts_are_met_but_for_the_rows_that_are_named(capsys, monkeypatch) -> None:
    rows = parameter_table.paper_rows()
    monkeypatch.setattr(parameter_table, "paper_rows", lambda: rows)  # counting takes seconds
    assert {row.name for row in rows if not row.matches} == set(parameter_table.UNMATCHED)
    assert len(rows) == 25
    benchmark.main(["parameters"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "18 of 25 counts are the paper's to 0.1 million."
    assert [line for line in printed if line.startswith("(")] == [
        f"({number}) {reason.splitlines()[0]}" for number, reason in enumerate(parameter_table.REASONS, 1)
    ]
    marked = {line[:28].strip(): line.split()[-1] for line in printed[1:26] if line.endswith(")")}
    assert marked == {
        "k = 8, h = 2, u = 1": "(1)",
        "k = 8, h = 16, u = 1": "(1)",
        "k = 2, h = 8, u = 1": "(1)",
        "k = 4, h = 8, u = 1": "(1)",
        "CCLL": "(2)",
        "depth 152": "(3)",
        "depth 200": "(3)",
    }
    assert [line.split()[-2:] for line in printed if line.startswith("LLLL")] == [["15.0", "15.00"]]
