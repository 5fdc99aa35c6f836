"""The reliability program sees what is wrong: without violations to be seen, a table of zeros would mean nothing."""

import random
from pathlib import Path

import pytest

from benchmarks import reliability
from benchmarks.reliability import flip, row
from benchmarks.tiny_stages import (
    ONE,
    Violation,
    annotate_stage,
    check_same,
    finish,
    start,
    undisturbed_labels,
    write_inputs,
)
from pipeline.verify import Report
from relabel.labels.manifest import Manifest
from relabel.labels.shard_lines import read_shard_lines
from tests.conftest import Relabel


@pytest.fixture
def root(tmp_path: Path, relabel_here: Relabel) -> Path:
    """The program's inputs with an undisturbed label set."""
    write_inputs(tmp_path)
    named = f"--labels={undisturbed_labels(tmp_path)}"
    command = [named if part == "--labels=labels" else part for part in annotate_stage(tmp_path, ONE).arguments]
    assert relabel_here(*command).returncode == 0
    return tmp_path


def test_violations_are_counted_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def trial(rng: random.Random) -> None:
        if rng.random() < 0.5:
            raise Violation("it went wrong")

    counted = row("a fault", 40, "none", 0, trial)
    out, err = capsys.readouterr()
    assert 5 < counted < 35 and out == f"| a fault | 40 | none | {counted} |\n" and err.count("it went wrong") == counted


def test_flipped_bit_that_verify_or_train_misses_is_a_violation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = undisturbed_labels(root)
    before = {path: path.read_bytes() for path in labels.iterdir()}
    flip(root, random.Random(0))
    with monkeypatch.context() as patch:
        patch.setattr(reliability, "verify", lambda labels: Report())
        with pytest.raises(Violation, match=r"verify did not find bit \d of byte \d+ of "):
            flip(root, random.Random(0))
    monkeypatch.setattr(reliability, "open_training_set", lambda *_, **__: "opened")
    with pytest.raises(Violation, match="train did not refuse bit"):
        flip(root, random.Random(0))
    assert {path: path.read_bytes() for path in labels.iterdir()} == before, "every bit is flipped back"
    assert Manifest.load(labels).shard_count == len(read_shard_lines(labels)) == 4


def test_file_that_differs_is_named_and_a_failed_run_is_a_violation(root: Path) -> None:
    stage, labels = annotate_stage(root, ONE), undisturbed_labels(root)
    whole = stage.contents(labels)
    check_same(stage, labels, whole)
    (labels / "manifest.json").write_bytes(b"x")
    (labels / "surplus").touch()
    with pytest.raises(Violation, match=r"^manifest\.json, surplus differ"):
        check_same(stage, labels, whole)
    with pytest.raises(Violation, match="a trial ended with exit code 3"):
        finish(start(["sh", "-c", "exit 3"], root), "a trial")
