"""annotate killed, started twice, and spread over processes: the label set's bytes tell nothing of it.

A named pipe in place of an image holds a run at that image for as long as a test likes: reading it waits for bytes.
"""

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from relabel.labels.manifest import MANIFEST
from relabel.labels.shard_lines import SHARD_LINES, read_shard_lines
from relabel.labels.shards import shard_name
from tests.conftest import REPOSITORY, TORCHRUN, Contents, Relabel, free_port

LAST_OF_SHARD_1 = "dog/dog_4.JPEG"


@dataclass
class Held:
    """A run that waits for an image; `let_go` gives it the image."""

    process: "subprocess.Popen[str]"
    pipe: int
    content: bytes

    def let_go(self) -> None:
        os.write(self.pipe, self.content)
        unread = struct.pack("i", len(self.content))
        while struct.unpack("i", unread)[0]:  # else the run may not have opened it yet, and would wait for ever
            time.sleep(0.02)
            unread = fcntl.ioctl(self.pipe, termios.FIONREAD, unread)
        self.close()

    def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
        self.pipe = -1


@contextmanager
def held_in_mid_shard(images: Path, labels: Path, options: list[str], key: str = LAST_OF_SHARD_1) -> Iterator[Held]:
    """A run that has finished shard 0 and waits for an image of shard 1; the image is back when this is left."""
    image = images / key
    content = image.read_bytes()
    image.unlink()
    os.mkfifo(image)
    command = [sys.executable, "-m", "pipeline", "annotate", str(images), "--labels", str(labels), *options]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    held = Held(process, os.open(image, os.O_RDWR), content)  # we are its writer, who writes nothing before the end
    try:
        deadline = time.monotonic() + 120
        while not read_shard_lines(labels):
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "no shard after two minutes"
            time.sleep(0.02)
        yield held
    finally:
        process.kill()
        process.wait()
        held.close()  # decoding workers that outlive the run wake up, and end
        image.unlink()
        image.write_bytes(content)


def test_killed_in_mid_shard_and_rerun_gives_the_bytes_of_an_undisturbed_run(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path, undisturbed: Path, contents: Contents
) -> None:
    labels = tmp_path / "labels"
    again = ("annotate", image_folder, "--labels", labels, *tiny_options)
    with held_in_mid_shard(image_folder, labels, tiny_options) as held:
        assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]
        second = relabel_here(*again, "--topk=1")  # were there no lock, it would stop at this and not at the held image
        assert second.returncode == 1
        assert f"another `relabel annotate` or `import-maps` is writing {labels}; wait for it" in second.stderr
        held.process.send_signal(signal.SIGKILL)
        assert held.process.wait() == -signal.SIGKILL
    assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]
    rerun = relabel_here(*again)
    assert rerun.returncode == 0
    assert "1 of 3 shards are there and sound, making the rest" in rerun.stdout
    assert contents(labels) == contents(undisturbed)


def test_killed_runs_lock_goes_with_it_even_while_its_decoding_workers_live_on(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    with held_in_mid_shard(image_folder, labels, [*tiny_options, "--workers=1"]) as held:
        held.process.kill()
        held.process.wait()
        # The image is still held, so the rerun is made to stop at its options; the lock comes first.
        rerun = relabel_here("annotate", image_folder, "--labels", labels, *tiny_options, "--topk=1")
    assert "is writing" not in rerun.stderr
    assert "topk: 2, not 1 of this run" in rerun.stderr


def test_interrupted_run_keeps_its_shards_and_exits_as_shells_expect(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, contents: Contents
) -> None:
    labels = tmp_path / "labels"
    with held_in_mid_shard(image_folder, labels, tiny_options) as held:
        held.process.send_signal(signal.SIGINT)
        assert held.process.wait(timeout=60) == 130
    assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]


def torchrun(*arguments: object) -> "subprocess.CompletedProcess[str]":
    launcher = [*TORCHRUN, "-m", "pipeline"]
    return subprocess.run([*launcher, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def test_two_processes_give_the_bytes_of_one(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, undisturbed: Path, contents: Contents
) -> None:
    finished = torchrun("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("9 label maps of 4x7 cells") == 1
    assert contents(tmp_path / "labels") == contents(undisturbed)


def test_unreadable_image_met_by_the_second_process_stops_both_and_is_named(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, contents: Contents
) -> None:
    (image_folder / LAST_OF_SHARD_1).write_text("no image")  # shard 1 is the second process's
    finished = torchrun("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert finished.returncode != 0
    assert "1 unreadable images in shard 1 of 3:" in finished.stderr
    assert f"{image_folder / LAST_OF_SHARD_1}: cannot identify image file" in finished.stderr
    assert shard_name(1) not in contents(tmp_path / "labels")


def test_process_that_would_write_another_label_set_than_the_first_is_told_so(
    image_folder: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    """As on two nodes whose disks hold different images."""
    other = shutil.copytree(image_folder, tmp_path / "elsewhere" / "images")
    (other / LAST_OF_SHARD_1).unlink()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "annotate", str(images), "--labels", str(tmp_path / "labels"), *tiny_options],
            cwd=REPOSITORY,
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, images in enumerate((image_folder, other))
    ]
    said = [process.communicate(timeout=240)[1] for process in running]
    assert all(process.returncode != 0 for process in running)
    assert "process 1 would write another label set than the first: image_count: 9, not 8" in said[1]
    assert "another process of this run has ended" in said[0]


def test_device_number_is_refused_where_torchrun_gives_it(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relabel_here: Relabel
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options, "--device=cuda:1")
    assert finished.returncode == 1
    assert "--device cuda:1 would put all 2 processes on it; leave the number out" in finished.stderr
