from benchmarks import parameter_table


def test_the_papers_counts_are_met_but_for_the_rows_that_are_named(capsys) -> None:
    rows = parameter_table.paper_rows()
    assert {row.name for row in rows if not parameter_table.matches(row)} == set(parameter_table.UNMATCHED)
    assert len(rows) == 25
    parameter_table.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows)
    assert [line.split()[-2:] for line in printed if line.startswith("LLLL")] == [["15.0", "15.00"]]
