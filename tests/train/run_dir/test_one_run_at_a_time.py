"""Two trainings do not write into one folder at once, and a training replaces nothing that is not a run's."""

import subprocess
import sys
from pathlib import Path

import pytest

from relabel.runtime.files import LOCK
from tests.conftest import REPOSITORY, refusal
from tests.train.runs import recipe, run_training
from train.run_dir.metrics import read_metrics

HOLD = """
import sys
from pathlib import Path
from relabel.runtime.files import write_lock
with write_lock(Path(sys.argv[1]), "`relabel train`", "--run-dir"):
    print("held", flush=True)
    input()
"""


def test_second_training_is_refused_while_the_first_lives_and_starts_when_it_was_killed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    for resume in (False, True):
        said = refusal(lambda resume=resume: run_training(data, run, recipe(epochs=2), resume=resume))  # type: ignore[misc]
        assert f"another `relabel train` is writing to {run}; wait for it to finish, or use another --run-dir" in said
    assert [path.name for path in run.iterdir()] == [LOCK]
    first.kill()
    first.wait()
    run_training(data, run, recipe(epochs=2))
    assert [metrics["epoch"] for metrics in read_metrics(run)] == [1, 2]


def test_lock_of_a_training_ends_with_it_in_the_same_process(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path / "run", recipe(epochs=2))
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=REPOSITORY, input="\n", capture_output=True, text=True
    )
    assert done.stdout == "held\n", done.stderr


@pytest.mark.parametrize("name", ["weights.pth", "metrics.jsonl", "curves.png"])
def test_files_that_no_run_has_written_are_not_replaced(data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    (tmp_path / ".notes.tmp").write_text("precious")
    assert f"{tmp_path} holds {name}, but no run that wrote it" in refusal(lambda: run_training(data, tmp_path, recipe()))
    assert (tmp_path / name).read_text() == (tmp_path / ".notes.tmp").read_text() == "precious"
