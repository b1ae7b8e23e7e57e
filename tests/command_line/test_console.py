"""Consoles of any encoding, and such as are closed, full, or read no further."""

import io
import subprocess
import sys

import pytest

import benchmark
import draw_embeddings
import experiments
import export_model
import predict
import report
from command_line.console import lasting_console
from command_line.errors import one_line_errors
from command_line.paths import PROJECT
from run_state.resumption import load_settings

SCRIPTS = (load_settings, predict.main, benchmark.main, draw_embeddings.main, experiments.main, export_model.main)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp437", "ascii"])
def test_help_survives_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (*SCRIPTS, report.main):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        with pytest.raises(SystemExit) as end, one_line_errors():
            script(["--help"])
        assert end.value.code == 0
        text = written.getvalue().decode(encoding)
        assert "usage: " in text
        assert "--" in text
        assert "?" not in text.split("usage: ")[0]


def test_what_an_encoding_has_not_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    with lasting_console():
        print("λ-ResNet, 3×3, Bär, \udcff")
    assert written.getvalue() == b"lambda-ResNet, 3x3, B\\xe4r, \\udcff\n"


def in_a_shell(line: str, code: str) -> subprocess.CompletedProcess:
    """`line` with `$run` for a Python that executes `code`."""
    environment = {"run": code, "PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}
    line = line.replace("$run", f'{sys.executable} -c "$run"')
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=False)


SCRIPT = """
from command_line.errors import one_line_errors
with one_line_errors():
    for number in range(10_000):  # more than a pipe holds
        print("a line of a table", number)
"""
RUN = """
import os, sys
from command_line.console import lasting_console
from command_line.errors import one_line_errors
with one_line_errors():
    with lasting_console():
        for number in range(10_000):
            print("an epoch", number)
            print("a bar", file=sys.stderr)
        os.write(int(sys.argv[1]) if len(sys.argv) > 1 else 3, b"done")
"""
FULL = "error: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("$run | head -n 1; exit ${PIPESTATUS[0]}", 141, ""),
        ("$run > /dev/full", 2, FULL),
        ("$run 2>&- >/dev/full", 2, None),
        ("$run >&- 2>&-", 0, None),
    ],
)
def test_a_script_ends_where_nobody_reads_it(line: str, code: int, error: str | None) -> None:
    done = in_a_shell(line, SCRIPT)
    assert done.returncode == code
    assert error is None or done.stderr == error


@pytest.mark.parametrize(
    "line",
    [
        "$run | head -n 1; exit ${PIPESTATUS[0]}",
        "$run 2>&1 >/dev/full | head -n 1 >&2; exit ${PIPESTATUS[0]}",
        "$run >/dev/full 2>/dev/full",
        "$run >&- 2>&-",
        "$run <&- >&- 2>&-",
    ],
)
def test_a_run_goes_on_without_a_console(line: str, tmp_path) -> None:
    done = in_a_shell(f"exec 3>{tmp_path}/done; {line}", RUN)
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "done"
    assert "Exception ignored" not in done.stderr


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path) -> None:
    code = f"""
import os
from command_line.console import lasting_console
with lasting_console():
    file = open({str(tmp_path / "file")!r}, "w")
    os.write(2, b"a library's warning")
    file.write("ours")
"""
    assert in_a_shell("$run >&- 2>&-", code).returncode == 0
    assert (tmp_path / "file").read_text() == "ours"
