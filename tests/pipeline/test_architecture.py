"""The rooms' walls: who may import whom, read off the source, and what the command line loads before it has work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

STAGES = ("annotate", "train")
CONTRACT = (
    *("errors", "images", "image_sources", "tar_members", "keys", "manifest", "shards", "classifier", "weights", "boxes"),
    *("distributed", "class_names", "compiling", "corruptions", "machine", "export_maps", "demo_data", "scenes"),
    *("whole_folder", "precision", "defaults"),
)
ABOVE_THE_STAGES = {"cli", "verify", "compare", "spot_check", "demo", "picture"}
COMMANDS = (
    *("annotate", "verify", "train", "eval", "demo-data", "recipes", "compare", "import-maps", "export-maps", "export"),
    *("corrupt", "annotators"),
)


def test_every_file_of_pipeline_is_of_the_contract_or_above_the_stages() -> None:
    files = {path.stem for path in (REPOSITORY / "pipeline").glob("*.py")} - {"__init__", "__main__"}
    assert files == {*CONTRACT, *ABOVE_THE_STAGES}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` counts as a and a.b."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            assert node.module is not None
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def rooms_of(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports_of(path)}


def files_of(room: str) -> list[Path]:
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert len(files) > 3, f"{room} has moved"
    return files


@pytest.mark.parametrize(("stage", "other"), [STAGES, STAGES[::-1]])
def test_the_stages_never_import_each_other(stage: str, other: str) -> None:
    assert [path.name for path in files_of(stage) if other in rooms_of(path)] == []


@pytest.mark.parametrize("module", CONTRACT)
def test_the_contract_imports_neither_stage_even_through_another_module(module: str) -> None:
    reached, todo = set(), [f"pipeline.{module}"]
    while todo:
        name = todo.pop()
        path = REPOSITORY / f"{name.replace('.', '/')}.py"
        if name in reached or not path.is_file():
            continue
        reached.add(name)
        todo += imports_of(path)
    assert f"pipeline.{module}" in reached
    assert [name for name in reached if name.split(".")[0] in STAGES] == []


def test_nothing_in_pipeline_but_the_command_line_verify_and_the_demo_imports_a_stage() -> None:
    importing = {path.stem for path in files_of("pipeline") if rooms_of(path) & set(STAGES)}
    assert importing <= ABOVE_THE_STAGES


def test_what_imports_a_stage_is_itself_imported_by_nothing_that_does_not() -> None:
    above = {path.stem for path in files_of("pipeline") if rooms_of(path) & set(STAGES)} | ABOVE_THE_STAGES
    for room in ("pipeline", *STAGES):
        for path in files_of(room):
            if path.parent.name == "pipeline" and path.stem in above | {"__main__"}:
                continue
            assert imports_of(path) & {f"pipeline.{name}" for name in above} == set(), path


def test_nothing_imports_the_command_line_or_the_demo() -> None:
    importing = {
        f"{room}/{path.name}"
        for room in ("pipeline", *STAGES)
        for path in files_of(room)
        if imports_of(path) & {"pipeline.cli", "pipeline.demo"}
    }
    assert importing == {"pipeline/__main__.py"}


def test_no_room_imports_the_tests_or_the_benchmarks() -> None:
    files = [path for room in ("pipeline", *STAGES) for path in files_of(room)]
    assert [path.name for path in files if rooms_of(path) & {"tests", "benchmarks"}] == []


def test_help_imports_no_torch() -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert finished.returncode == 0
    assert all(command in finished.stdout for command in COMMANDS)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    assert "typer" in loaded, "else nothing was listed"
    assert loaded & {"torch", "timm", "torchvision", "h5py", "annotate", "train", "matplotlib", "sklearn"} == set()


def test_help_of_each_command_imports_no_torch() -> None:
    script = f"""
import sys
from typer.testing import CliRunner
from pipeline.cli import app
for command in {COMMANDS}:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.stdout, command
    assert "torch" not in sys.modules and "timm" not in sys.modules, command
"""
    finished = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
