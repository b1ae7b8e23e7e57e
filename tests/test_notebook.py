"""LambdaNetworks.ipynb, executed from top to bottom by a real kernel; and what is saved in it."""

import json
import os
import re
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import draw_embeddings
from command_line.errors import InputError
from command_line.paths import PROJECT

PICTURES = 5  # curve, confusion, embeddings of c2, reach, predictions


def read() -> tuple[nbformat.NotebookNode, list[nbformat.NotebookNode]]:
    """The notebook, and its cells of code."""
    notebook = nbformat.read(PROJECT / "LambdaNetworks.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def pictures(cells: list[nbformat.NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_the_notebook_trains_resumes_shows_and_packs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a warning of the kernel's
    notebook, cells = read()
    assert cells[0].metadata["tags"] == ["parameters"]
    small = "--depth 26 --width 16 --image_size 8 --stem cifar --training_images 200 --device cpu"
    cells[0].source += f"""
SETTINGS = "--dataset digits --epochs 1 {small}"
RUNS = {str(tmp_path / "the runs")!r}
"""
    (training,) = [cell for cell in cells if "main_general.py" in cell.source and "!" in cell.source]
    (packing,) = [cell for cell in cells if "zipfile" in cell.source]
    again = nbformat.v4.new_code_cell(f"RESUME = True\nMODELS = 'baseline'\n{training.source}")
    kept = "logs = archive.rename(archive.with_name('logs.zip'))\nZIP_CHECKPOINTS = True\n"
    whole = nbformat.v4.new_code_cell(kept + packing.source)
    notebook.cells += [again, whole]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PROJECT)}}).execute()
    assert printed(training).count("top-1") >= 2
    assert printed(again).count("is finished; nothing was done and nothing was changed") == 1
    assert "Baseline" in printed(again)
    (curve,) = [cell for cell in cells if "metrics.jsonl" in cell.source]
    assert [line.split()[0] for line in printed(curve).splitlines()] == ["lambda", "baseline"]
    assert pictures(cells) == PICTURES
    assert cells[-1].outputs[0].data["text/plain"] == "torch.Size([2, 64, 32, 32])"
    archives = [tmp_path / "the runs" / name for name in ("logs.zip", "runs.zip")]
    logs, everything = (zipfile.ZipFile(path).namelist() for path in archives)
    assert {name.split("/")[0] for name in logs} == {"Lambda", "Baseline"}
    assert any(name.endswith("metrics.jsonl") for name in logs)
    assert not any(name.endswith(".pt") for name in logs)
    assert any(name.endswith("checkpoints/epoch0001.pt") for name in everything)


def test_what_is_saved_is_one_run_from_top_to_bottom() -> None:
    path = PROJECT / "LambdaNetworks.ipynb"
    _, cells = read()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(cells) == PICTURES
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|tmp|Users)/", text)
    assert str(PROJECT) not in text
    assert path.stat().st_size < 2**20


def test_outside_a_checkout_one_sentence_says_what_to_fill_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (_, project, *_) = read()[1]
    with pytest.raises(Exception, match="^Fill in REPOSITORY above: your fork's address.$") as stopped:
        exec(project.source, {"REPOSITORY": "", "KEEP_ON_DRIVE": False, "RUNS": "runs"})
    assert stopped.value._render_traceback_() == [str(stopped.value)]  # which a notebook shows, and nothing else
    assert os.listdir() == []


def execute(words: str, **names: object) -> None:
    """The one cell with those words, where the names are what the cells before have made of them."""
    (cell,) = [cell for cell in read()[1] if words in cell.source]
    exec(cell.source, names)


class Stop(Exception):
    """In place of the notebook's own."""


def test_without_a_run_one_sentence_ends_the_notebook(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="^resume: there is no run with a checkpoint in "):
        execute("metrics.jsonl", NAMES=["lambda"], RUNS=str(tmp_path), Path=Path, Stop=Stop)


def test_a_run_without_an_epoch_has_no_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    row = {"epoch": 1, "test_top1": 50.0, "train_top1": 40.0}
    for group, rows in {"Lambda": "", "Baseline": f"{json.dumps(row)}\n"}.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "metrics.jsonl").write_text(rows)
    monkeypatch.setattr("run_state.run_folder.find_run", lambda group: group)
    execute("metrics.jsonl", NAMES=["lambda", "baseline"], RUNS=str(tmp_path), Path=Path, Stop=Stop)
    said = capsys.readouterr().out
    assert "baseline   50.00 % of the test images after 1 epochs" in said
    assert "lambda  " not in said


@pytest.mark.parametrize("stages", [("c4", "c5"), ()], ids=["CCLL", "CCCC"])
def test_the_first_stage_that_has_embeddings_is_shown(
    stages: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def draw(words: list[str]) -> None:
        if not stages:
            raise InputError("checkpoint: it has no position embeddings to draw")
        folder = Path(words[-1])
        folder.mkdir()
        for name in ("reach", *(f"embeddings_{stage}" for stage in stages)):
            (folder / f"{name}.png").touch()

    monkeypatch.setattr(draw_embeddings, "main", draw)
    shown: list[Path] = []
    names = {"Image": Path, "InputError": InputError, "display": lambda *pictures: shown.extend(pictures)}
    execute("draw_embeddings", runs={"lambda": tmp_path}, **names)
    assert [path.name for path in shown] == (["embeddings_c4.png", "reach.png"] if stages else [])
    assert ("no position embeddings" in capsys.readouterr().out) == (not stages)
