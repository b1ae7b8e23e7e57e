"""README and docs: links lead somewhere, examples hold, and every command is executed or named as not executed."""

import doctest
import inspect
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models.resnet import Bottleneck, ResNet

import export_model
import nntest
import predict
import report
from command_line.paths import PROJECT
from lambda_layer import LambdaLayer
from main_general import RunResult, main
from resnet import DEPTHS
from run_state.resumption import load_settings
from run_state.run_folder import read_config
from user_input import load_user_input

sys.path.insert(0, str(PROJECT / "docs"))

import draw_figures
import update_links

PAGES = [*update_links.pages(), PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"(?:\]\(|src(?:set)?=\")([^)\s\"]+)")
TOOLS = ("python ", "pip ", "pytest", "ruff ", "mypy", "tensorboard ", "torchrun ", "git ", "pre-commit ", ".ci/run")

# main_general.py's commands are parsed here, which refuses a wrong flag or value; test_main_general.py has whole runs.
EXECUTED_BY = {
    r"python benchmark.py parameters": "benchmarks/test_parameter_table.py::test_the_papers_counts",
    r"python docs/draw_figures.py": "test_docs.py::test_the_figures_are_those_that_are_drawn",
    r"python docs/update_links.py": "test_docs.py::test_links_into_the_code_have_their_lines",
    r"python predict.py .*": "run_state/test_trained_network.py::test_predictions_of_the_test_images",
    r"python nntest.py .*": "test_testing_alone.py::test_the_runs_own_test_comes_out_as_in_the_run",
    r"python draw_embeddings.py .*": "run_state/test_trained_network.py::test_embeddings_are_drawn",
    r"python export_model.py .*": "run_state/test_trained_network.py::test_exports_give",
    r"python experiments.py .*": "test_experiments.py::test_the_command_line",
    r"python report.py.*": "test_report.py::",
    r"python benchmark.py layer.*": "benchmarks/test_layer_benchmark.py::test_layer_benchmark_reports_every_row",
    r"python benchmark.py fit .*": "benchmarks/test_fit_costs.py::test_the_command_prints",
    r"python benchmark.py train.*": "benchmarks/test_network_benchmark.py::test_rows_are_timed_in_processes",
    r"python benchmark.py infer.*": "benchmarks/test_network_benchmark.py::test_rows_are_timed_in_processes",
    r"python benchmark.py convert.*": "benchmarks/test_network_benchmark.py::test_conversions_are_timed",
    r"python benchmark.py scaling.*": "benchmarks/test_network_benchmark.py::test_scaling_reports",
    r"torchrun .*main_general.py .*": "acceleration/test_distributed.py::",
    r"pip install git\+.*": "test_packaging.py::test_pip_installs",
}
NOT_EXECUTED = {
    r"pip install -r requirements.*|pip install timm lambda-networks|pip install onnx onnxscript": "CI begins with the "
    "first, which needs a network, and has the others",
    r"git clone .*": "the repository's address is not known here",
    r"python -m venv .*": "CI begins with it",
    r"pre-commit install.*": "changes the hooks of the checkout",
    r"tensorboard --logdir .*": "a server that does not end; what it shows is read in test_main_general.py",
    r"ruff .*|mypy|pytest.*|\.ci/run": "CI is this command",
    r"python tests/(full_suite|fault_injection|fuzzing|soak|distributed_runs)\.py.*": "takes minutes; pytest has short "
    "ones of the same",
    r"python tests/sweep\.py|pip install peft .*": "takes packages that are not among the requirements",
    r"python tests/gpu_checks\.py": "takes a CUDA GPU; pytest has the same of the CPU",
    r"python main_general\.py .*--resume runs/Lambda/<run>.*": "names no run; test_main_general.py resumes real ones",
}
PYTHON_NOT_EXECUTED = {
    "torch.hub.load": "the address is not known here; test_packaging.py loads from the checkout",
    "result = main(UserInput(": "a training of five epochs; test_main_general.py has shorter ones",
    ">>> ": "the doctest",
    'torch.export.load("photos.pt2")': "the walk through",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> set[str]:
    """Every command in a block without a language, or in backticks in the text."""
    text = page.read_text(encoding="utf-8")
    lines = [line for language, block in blocks(page) if not language for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
    steps = [step.strip() for line in lines for step in re.sub(r"\s+#.*", "", line).split("&&")]
    return {step for step in steps if step.startswith(TOOLS) or step in ("ruff", ".ci/run")}


def test_the_readme_is_short() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1200  # as `wc -w` counts


def test_every_command_is_executed_or_named_as_not_executed() -> None:
    everything = set().union(*map(commands, PAGES))
    assert len(everything) > 25
    patterns = [*EXECUTED_BY, *NOT_EXECUTED]
    for command in sorted(everything):
        known = [pattern for pattern in patterns if re.fullmatch(pattern, command)]
        if not known and command.startswith("python main_general.py"):
            flags = command.removeprefix("python main_general.py").replace("--model …", "").replace("--resume", "")
            load_user_input(shlex.split(flags))
        else:
            assert len(known) == 1, command
    for pattern in patterns:
        assert any(re.fullmatch(pattern, command) for command in everything), f"no page has {pattern}"
    for where in EXECUTED_BY.values():
        file, test = where.split("::")
        assert f"def {test or 'test_'}" in (PROJECT / "tests" / file).read_text(encoding="utf-8")


def test_the_walk_through_leads_from_photographs_to_an_exported_network(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(photos / "train", tmp_path / "photos")
    shutil.copytree(photos / "test", tmp_path / "more_photos")
    monkeypatch.chdir(tmp_path)
    for depth in (26, 50):
        monkeypatch.setitem(DEPTHS, depth, (1, 1, 1, 1))  # what is shown, any depth has
    torch.save(ResNet(Bottleneck, [1, 1, 1, 1]).state_dict(), tmp_path / "photos" / "resnet50-11ad3fa6.pth")
    page = PROJECT / "docs" / "training_on_your_images.md"
    commands = [
        shlex.split(line)[1:] for language, block in blocks(page) for line in block.splitlines() if not language
    ]
    scripts = {"nntest.py": nntest, "predict.py": predict, "report.py": report, "export_model.py": export_model}
    assert {script for script, *_ in commands} == {"main_general.py", *scripts}
    runs: list[RunResult] = []
    for script, *flags in commands:
        given = [str(runs[0].folder) if flag == "runs/Lambda/<run>" else flag for flag in flags]
        if script == "main_general.py":
            shorter = ["--epochs", "1" if runs else "2", "--image_size", "64"]
            runs.append(main(load_settings([*given, "--runs_dir", "runs", *shorter])))
        else:
            scripts[script].main(given)
    result = runs[0]
    assert ["init" in read_config(run.folder) for run in runs] == [False, True, True]
    assert len((tmp_path / "seen.csv").read_text().splitlines()) == 1 + 33
    tests = result.folder.glob("tests/*/test.json")
    images = {re.sub("-.*", "", path.parent.name): json.loads(path.read_text())["images"] for path in tests}
    assert images == {"epoch0002": 7, "epoch0002_more_photos": 15}
    (loading,) = [block for language, block in blocks(page) if language == "python"]
    names = {"pixels": torch.rand(3, 3, 64, 64)}
    exec(loading, names)
    assert names["logits"].shape == (3, 3)
    assert (result.folder / "checkpoints" / "best.pt").exists()


def test_each_line_of_what_works_names_tests_that_are_there() -> None:
    text = (PROJECT / "docs" / "what_works.md").read_text(encoding="utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not re.match(r"\| (\*\*|---|what|limit )", line)
    ]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            parts = (PROJECT / "tests").glob(file.replace(".py", "*.py"))  # the sweep has several files
            assert any(f"\ndef {name}(" in part.read_text(encoding="utf-8") for part in parts), name


def test_the_page_has_every_line_of_the_sweep() -> None:
    text = (PROJECT / "docs" / "what_works.md").read_text(encoding="utf-8")
    files = [path.read_text(encoding="utf-8") for path in (PROJECT / "tests").glob("sweep*.py")]
    cases = re.findall(r"^@case\(.*\)\ndef (\w+)", "\n".join(files), re.M)
    assert len(cases) > 20
    for name in cases:
        assert f"sweep.py::{name}`" in text
        assert re.search(rf"^\w+ +{name} +passed$", text, re.M)


def test_python_examples_run() -> None:
    found = [block for page in PAGES for language, block in blocks(page) if language == "python"]
    for mark in PYTHON_NOT_EXECUTED:
        assert any(mark in block for block in found)
    executed = [block for block in found if not any(mark in block for mark in PYTHON_NOT_EXECUTED)]
    assert len(executed) >= 3
    for block in executed:
        exec(block, {"x": torch.zeros(2, 64, 8, 9), "LambdaLayer": LambdaLayer, "torch": torch})


@pytest.mark.parametrize("training", [True, False])
def test_the_thirty_lines_are_the_layer(training: bool) -> None:
    (source,) = [block for _, block in blocks(PROJECT / "docs" / "lambda_layers.md") if "PlainLambdaLayer" in block]
    assert len(source.splitlines()) <= 40
    names: dict = {}
    exec(source, names)
    plain = names["PlainLambdaLayer"](12, 5, k=3, h=2, u=2).train(training)
    layer = LambdaLayer(12, input_size=5, key_depth=3, heads=2, intra_depth=2).train(training)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(4, 12, 5, 5)
    y = layer(x)
    torch.testing.assert_close(plain(x), y, rtol=1e-4, atol=1e-5)
    theirs, ours = (torch.autograd.grad(m(x).square().sum(), m.parameters()) for m in (plain, layer))
    ours = dict(zip(dict(layer.named_parameters()), ours, strict=True))
    for (name, _), gradient in zip(plain.named_parameters(), theirs, strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-3)


def test_the_layers_docstring_has_each_argument_before_anything_about_speed() -> None:
    text = LambdaLayer.__doc__
    described = re.findall(r"^        (\w+(?:, \w+)*): ", text.partition("Args:")[2].partition("Raises:")[0], re.M)
    assert [name for names in described for name in names.split(", ")] == [
        name for name in inspect.signature(LambdaLayer.__init__).parameters if name != "self"
    ]
    assert 0 < text.index("Args:") < text.index("cheapest")


def test_the_worked_example_holds() -> None:
    done = doctest.testfile(str(PROJECT / "docs" / "lambda_layers.md"), module_relative=False)
    assert done.attempted >= 10
    assert done.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(BLOCK.sub("", text)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The headings' anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_the_code_have_their_lines_and_the_address_is_that_of_pyproject() -> None:
    for page in update_links.files():
        assert page.read_text(encoding="utf-8") == update_links.updated(page), "run python docs/update_links.py"


def test_one_address_goes_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = "https://github.com/someone/lambda", "https://github.com/another/fork"
    for file in update_links.files():
        text = file.read_text(encoding="utf-8")
        bare = update_links.with_address(text, None)
        known = update_links.with_address(bare, first)
        assert update_links.UNKNOWN not in known.replace("In Colab, fill in", "")
        assert known.count("someone/lambda") == {"README.md": 5, "LambdaNetworks.ipynb": 1, "CITATION.cff": 1}.get(
            file.name, 0
        )
        assert update_links.with_address(known, second) == known.replace("someone/lambda", "another/fork")
        assert update_links.with_address(known, None) == bare
        assert "OWNER" not in text
    readme = update_links.with_address((PROJECT / "README.md").read_text(encoding="utf-8"), first)
    assert f"git clone {first} LambdaNetworks\n" in readme
    assert f"pip install git+{first}`" in readme
    assert 'torch.hub.load("someone/lambda", ' in readme
    assert "(https://colab.research.google.com/github/someone/lambda/blob/main/LambdaNetworks.ipynb)" in readme
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{first}/"\n')
    monkeypatch.setattr(update_links, "PROJECT", tmp_path)
    assert update_links.address() == first


def test_the_address_stands_in_no_other_file() -> None:
    known = update_links.address()
    places = {PROJECT / "pyproject.toml", PROJECT / "docs" / "update_links.py", *update_links.files()}
    folders = (PROJECT, PROJECT / "docs", PROJECT / ".github" / "workflows", PROJECT / ".github" / "ISSUE_TEMPLATE")
    files = {path for folder in folders for path in folder.glob("*.*")} | set(PROJECT.glob("*/*.py"))
    for path in files - places:
        name = str(path.relative_to(PROJECT))
        if not path.is_file() or name.startswith("tests/") or path.suffix not in (".py", ".md", ".yml", ".txt", ".cff"):
            continue
        text = path.read_text(encoding="utf-8")
        assert update_links.UNKNOWN not in text, name
        assert not re.search(r"<this repository>|OWNER/REPOSITORY", text), name
        assert known is None or known not in text, name


def test_the_hosts_workflow_runs_what_the_readme_says() -> None:
    folder = PROJECT / ".github"
    (job,) = yaml.safe_load((folder / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert f"\n{command}\n" in readme
    oldest, newest = re.search(r"Python (3\.\d+) to (3\.\d+)", readme).groups()
    assert job["strategy"]["matrix"]["python"] == [oldest, newest]
    assert f'requires-python = ">={oldest}"' in (PROJECT / "pyproject.toml").read_text()
    for form in (folder / "ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.name != "config.yml":
            assert {"name", "description", "body"} == content.keys()
            assert all(part["attributes"]["label"] for part in content["body"])


def test_the_figures_are_those_that_are_drawn(tmp_path: Path) -> None:
    drawn = {path.name for path in draw_figures.main(tmp_path)}
    assert drawn == {path.name for path in tmp_path.iterdir()}
    assert {f"{name}_{page}.png" for name in ("scope", "memory") for page in draw_figures.INKS} < drawn
    text = (PROJECT / "docs" / "lambda_layers.md").read_text(encoding="utf-8")
    assert drawn == {Path(link).name for link in LINK.findall(text) if link.endswith(".png")}


def test_the_changelog_has_the_version_that_is_installed_and_cited() -> None:
    (version,) = re.findall(r'^version = "(.+)"', (PROJECT / "pyproject.toml").read_text(), re.M)
    assert (
        f"({version})" in (PROJECT / "CHANGELOG.md").read_text()
        or f"## {version}" in (PROJECT / "CHANGELOG.md").read_text()
    )
    assert f"version: {version}\n" in (PROJECT / "CITATION.cff").read_text()
