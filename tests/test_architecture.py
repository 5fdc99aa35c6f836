"""The rooms' walls: who may import whom, read off the source tree, and what the command line loads before it has work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.app import app
from tests.conftest import REPOSITORY

# A room and the rooms it may import beside itself. Every folder of code below the top level is in one of them.
ROOMS: dict[str, set[str]] = {
    "relabel/runtime": set(),
    "relabel/images": {"relabel/runtime"},
    "relabel/models": {"relabel/runtime"},
    "relabel/labels": {"relabel/runtime", "relabel/images"},
    "annotate": {"relabel"},
    "train": {"relabel"},
    "pipeline": {"relabel", "annotate", "train"},
    "benchmarks": {"relabel", "annotate", "train", "pipeline"},
}
OURS = {room.split("/")[0] for room in ROOMS} | {"tests"}
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, as a path: at its top or inside a function; `from a import b` is a and a/b."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            assert node.module is not None
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.replace(".", "/") for module in modules}


def files_of(room: str) -> list[Path]:
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert len(files) > 3, f"{room} has moved"
    return files


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}/")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    for path in files_of(room):
        ours = {module for module in imports_of(path) if module.split("/")[0] in OURS}
        forbidden = {m for m in ours if not any(is_in(m, allowed) for allowed in {room, *ROOMS[room]})}
        assert forbidden - {"relabel"} == set(), path


def test_every_folder_of_code_is_a_room_or_in_one() -> None:
    listing = ["git", "ls-files", "*.py"]
    tracked = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    folders = {str(Path(file).parent) for file in tracked.stdout.splitlines()} - {"relabel"}
    assert folders, "else nothing is tracked"
    assert {folder for folder in folders if not any(is_in(folder, room) for room in (*ROOMS, "tests"))} == set()


def test_only_the_program_itself_imports_the_command_line() -> None:
    files = {path for room in ROOMS for path in files_of(room)}
    importing = {str(p.relative_to(REPOSITORY)) for p in files if any(is_in(m, "pipeline/cli") for m in imports_of(p))}
    assert {path for path in importing if not path.startswith("pipeline/cli/")} == {"pipeline/__main__.py"}


def test_the_tests_are_in_the_same_folders_as_the_code() -> None:
    code = {str(path.parent.relative_to(REPOSITORY)) for room in ROOMS for path in files_of(room)}
    tests = {str(path.parent.relative_to(REPOSITORY / "tests")) for path in (REPOSITORY / "tests").rglob("test_*.py")} - {
        "."
    }
    assert tests - code == set()


@pytest.mark.slow
def test_importing_the_library_imports_no_torch() -> None:
    script = "import sys, relabel; assert 'torch' not in sys.modules; relabel.LabelStore; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True, timeout=240)


def test_help_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", "--help"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0
    assert len(COMMANDS) > 9 and all(command in finished.stdout for command in COMMANDS)
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
    finished = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
