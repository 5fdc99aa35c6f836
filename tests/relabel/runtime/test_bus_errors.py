"""A label set that loses bytes under a process that has it open: one line and exit code 1, instead of a silent death."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from relabel.labels.maps import LabelMaps
from relabel.labels.shards import shard_name
from tests.conftest import REPOSITORY, Finished
from tests.label_sets import write_label_set

pytestmark = pytest.mark.slow

READER = """
import os, sys
from relabel.labels.store import LabelStore
from relabel.runtime.bus_errors import explain_bus_errors
import torch
if sys.argv[2] == "explained":
    explain_bus_errors()
store = LabelStore.open(sys.argv[1])
os.truncate(store.labels / "shard-00001.h5", 5000)
{read}
print("read what is not there")
"""


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two shards of three images, each with 24 kB of maps."""
    keys = [f"cat/{number}" for number in range(6)]
    classes = torch.arange(2).view(1, 2, 1, 1).expand(6, 2, 40, 50)
    write_label_set(tmp_path / "set", keys, LabelMaps(torch.ones(classes.shape), classes, torch.zeros(6, 40, 50)), 3, 3)
    return tmp_path / "set"


def reader(labels: Path, read: str, handling: str) -> Finished:
    command = [sys.executable, "-c", READER.format(read=read), str(labels), handling]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "read", ["store.gather(torch.tensor([0, 5]))", "store.check()", "store.to('cpu', resident=True)"],
    ids=["row", "sha256 in a thread", "copy in a thread"],
)  # fmt: skip
def test_shard_that_becomes_shorter_while_it_is_read_is_named(labels: Path, read: str) -> None:
    cut = reader(labels, read, "explained")
    assert cut.returncode == 1 and cut.stdout == "" and cut.stderr.count("\n") == 1
    assert (
        f"relabel: a file could not be read: {labels / shard_name(1)} became shorter while it was open. Finished"
        in cut.stderr
    )
    assert shard_name(0) not in cut.stderr
    assert "`relabel verify` checks a label set" in cut.stderr and "run again (train: with --resume)" in cut.stderr


def test_without_the_handler_the_process_would_die_in_silence(labels: Path) -> None:
    cut = reader(labels, "store.gather(torch.tensor([0, 5]))", "unexplained")
    assert cut.returncode == -signal.SIGBUS and cut.stderr == ""
