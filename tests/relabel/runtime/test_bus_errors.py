"""A label set that loses bytes under a process that has it open: one line and exit code 1, instead of a silent death."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from relabel.labels.maps import LabelMaps
from relabel.labels.shards import shard_name
from relabel.labels.store import LabelStore
from relabel.runtime.bus_errors import explain_bus_errors
from tests.conftest import Finished
from tests.label_sets import write_label_set
from tests.processes import start_program

pytestmark = pytest.mark.slow


def row(store: LabelStore) -> None:
    store.gather(torch.tensor([0, 5]))


def sha256_in_a_thread(store: LabelStore) -> None:
    store.check()


def copy_in_a_thread(store: LabelStore) -> None:
    store.to("cpu", resident=True)


def cut_while_open(labels: Path, read: Callable[[LabelStore], None], explained: bool) -> None:
    if explained:
        explain_bus_errors()
    store = LabelStore.open(labels)
    os.truncate(labels / shard_name(1), 5000)
    read(store)
    print("read what is not there")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two shards of three images, each with 24 kB of maps."""
    keys = [f"cat/{number}" for number in range(6)]
    classes = torch.arange(2).view(1, 2, 1, 1).expand(6, 2, 40, 50)
    write_label_set(tmp_path / "set", keys, LabelMaps(torch.ones(classes.shape), classes, torch.zeros(6, 40, 50)), 3, 3)
    return tmp_path / "set"


def reader(labels: Path, read: Callable[[LabelStore], None], explained: bool = True) -> Finished:
    return start_program(cut_while_open, labels, read, explained).finished()


@pytest.mark.parametrize("read", [row, sha256_in_a_thread, copy_in_a_thread])
def test_shard_that_becomes_shorter_while_it_is_read_is_named(labels: Path, read: Callable[[LabelStore], None]) -> None:
    cut = reader(labels, read)
    assert cut.returncode == 1 and cut.stdout == "" and cut.stderr.count("\n") == 1
    assert (
        f"relabel: a file could not be read: {labels / shard_name(1)} became shorter while it was open. Finished"
        in cut.stderr
    )
    assert shard_name(0) not in cut.stderr
    assert "`relabel verify` checks a label set" in cut.stderr and "run again (train: with --resume)" in cut.stderr


def test_without_the_handler_the_process_would_die_in_silence(labels: Path) -> None:
    cut = reader(labels, row, explained=False)
    assert cut.returncode == -signal.SIGBUS and cut.stderr == ""
