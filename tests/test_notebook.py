"""LambdaNetworks.ipynb, executed from top to bottom by a real kernel."""

import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from command_line.paths import PROJECT


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def test_the_notebook_trains_resumes_shows_and_packs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a warning of the kernel's
    notebook = nbformat.read(PROJECT / "LambdaNetworks.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].metadata["tags"] == ["parameters"]
    # no server that stays when the test is over, and no minute of timings: benchmark.py has tests of its own
    cells[0].source += f"""
SETTINGS = "--dataset digits --epochs 1 --depth 26 --stages CCCL --image_size 8 --device cpu"
BENCHMARK = ""
TENSORBOARD = False
RUNS = {str(tmp_path / "the runs")!r}
"""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PROJECT)}}).execute()
    texts = {cell.source.split("\n")[0]: printed(cell) for cell in cells}
    trained, resumed = (
        next(text for source, text in texts.items() if mark in source)
        for mark in ("main_general.py --model", "main_general.py --resume")
    )
    assert "epoch 1" in trained  # the bar
    assert "tensorboard --logdir" in trained
    assert "is finished; nothing was done and nothing was changed" in resumed
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert pictures == 3  # confusion, embeddings of c5, reach
    assert cells[-1].outputs[0].data["text/plain"] == "torch.Size([2, 64, 32, 32])"
    (archive,) = tmp_path.glob("the runs/Lambda/*.zip")
    names = zipfile.ZipFile(archive).namelist()
    assert any(name.endswith("checkpoints/epoch0001.pt") for name in names)
