"""Runs of annotate that are killed, started twice, or use several processes all give a label set with the same bytes.

A lease on an image makes a run wait there for as long as a test needs: opening the file blocks until the lease is released.
"""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from relabel.labels.manifest import MANIFEST
from relabel.labels.shard_lines import SHARD_LINES, read_shard_lines
from relabel.labels.shards import shard_name
from tests.conftest import Contents, Relabel, free_port, leased, wait_until
from tests.processes import Program, place, relabel_in_two, start_relabel

LAST_OF_SHARD_1 = "dog/dog_4.JPEG"


@dataclass
class Held:
    """A run that waits for an image; `let_go` supplies the image."""

    program: Program
    let_go: Callable[[], None]


@contextmanager
def held_in_mid_shard(images: Path, labels: Path, options: list[str], key: str = LAST_OF_SHARD_1) -> Iterator[Held]:
    """A run that has finished shard 0 and waits for an image of shard 1."""
    with leased(images / key) as let_go:  # on leaving it, decoding workers that outlive the run wake up and exit
        program = start_relabel("annotate", images, "--labels", labels, *options)
        try:
            wait_until(lambda: program.has_ended or read_shard_lines(labels), 120, "the first shard")
            assert not program.has_ended, "the run ended early"
            yield Held(program, let_go)
        finally:
            program.kill()


@pytest.mark.slow
def test_rerun_after_a_kill_in_mid_shard_gives_the_bytes_of_an_undisturbed_run(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path, undisturbed: Path, contents: Contents
) -> None:
    labels = tmp_path / "labels"
    command = ("annotate", image_folder, "--labels", labels, *tiny_options)
    with held_in_mid_shard(image_folder, labels, tiny_options) as held:
        assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]
        second = relabel_here(*command, "--topk=1")  # without the lock, this option would stop it, not the held image
        assert second.returncode == 1
        assert f"another `relabel annotate` or `import-labels` is writing to {labels}; wait for it" in second.stderr
        held.program.kill()
        assert held.program.finished().returncode == -signal.SIGKILL
    assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]
    rerun = relabel_here(*command)
    assert rerun.returncode == 0
    assert "1 of 3 shards are finished and intact; making the rest" in rerun.stdout
    assert contents(labels) == contents(undisturbed)


@pytest.mark.slow
def test_killed_run_releases_its_lock_even_while_its_decoding_workers_live_on(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    with held_in_mid_shard(image_folder, labels, [*tiny_options, "--workers=1"]) as held:
        held.program.kill()
        held.program.finished()
        # The image is still held, so an option stops the rerun. It is checked after the lock.
        rerun = relabel_here("annotate", image_folder, "--labels", labels, *tiny_options, "--topk=1")
    assert "is writing to" not in rerun.stderr
    assert "topk: 2, not 1 as in this run" in rerun.stderr


@pytest.mark.slow
def test_interrupted_run_keeps_its_shards_and_exits_with_130(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, contents: Contents
) -> None:
    labels = tmp_path / "labels"
    with held_in_mid_shard(image_folder, labels, tiny_options) as held:
        held.program.kill(signal.SIGINT)
        assert held.program.finished().returncode == 130
    assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, undisturbed: Path, contents: Contents
) -> None:
    both = relabel_in_two("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert [finished.returncode for finished in both] == [0, 0], both
    assert [finished.stdout.count("9 label maps of 4x7 cells") for finished in both] == [1, 0]
    assert contents(tmp_path / "labels") == contents(undisturbed)


@pytest.mark.slow
def test_unreadable_image_in_the_second_process_is_reported_and_stops_both(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, contents: Contents
) -> None:
    (image_folder / LAST_OF_SHARD_1).write_text("no image")  # shard 1 is the second process's
    first, second = relabel_in_two("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert (first.returncode, second.returncode) == (1, 1)
    assert "1 unreadable images in shard 1 of 3:" in second.stderr
    assert f"{image_folder / LAST_OF_SHARD_1}: cannot identify image file" in second.stderr
    assert "another process of this run has ended" in first.stderr
    assert shard_name(1) not in contents(tmp_path / "labels")


@pytest.mark.slow
def test_process_with_different_images_than_the_first_stops_with_the_difference(
    image_folder: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    """This happens on two nodes whose disks hold different images."""
    other = shutil.copytree(image_folder, tmp_path / "elsewhere" / "images")
    (other / LAST_OF_SHARD_1).unlink()
    port = free_port()
    both = [
        start_relabel("annotate", images, "--labels", tmp_path / "labels", *tiny_options, **place(rank, port))
        for rank, images in enumerate((image_folder, other))
    ]
    first, second = (program.finished() for program in both)
    assert (first.returncode, second.returncode) == (1, 1)
    assert "rank 1's settings differ from rank 0's (image_count: 9, not 8" in second.stderr
    assert "another process of this run has ended" in first.stderr


def test_device_number_is_rejected_under_torchrun_which_assigns_it(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relabel_here: Relabel
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options, "--device=cuda:1")
    assert finished.returncode == 1
    assert "--device cuda:1 would put all 2 processes on one device; leave the number out" in finished.stderr
