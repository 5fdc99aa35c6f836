"""Faults while a label set is made, with real processes and real files.

After each fault, every finished shard is intact, verify reports what is missing, and a rerun gives the bytes of an
undisturbed run.
"""

import dataclasses
import errno
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.cli.app import app
from pipeline.spot_check import spot_check
from pipeline.verify import verify
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.shard_lines import SHARD_LINES, append_shard_line, read_shard_lines
from relabel.labels.shards import shard_name
from relabel.models.classifier import create_classifier
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from tests import processes
from tests.annotate.test_several_processes import LAST_OF_SHARD_1, held_in_mid_shard
from tests.conftest import REPOSITORY, THIN, TORCHRUN, Contents, Relabel, leased, wait_until
from tests.processes import MOMENTS, Kill, Moment, Program, exit_codes

pytestmark = pytest.mark.slow

FIRST_OF_SHARD_1, NEXT_TO_IT = "dog/dog_2.JPEG", "dog/dog_3.JPEG"  # in the same batch


@pytest.fixture
def completes(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path, undisturbed: Path, contents: Contents
) -> Callable[[], None]:
    """`completes()` checks that finished shards are intact, verify finds what is missing, and a rerun completes the set."""

    def check() -> None:
        labels = tmp_path / "labels"
        whole = contents(undisturbed)
        assert all(content == whole[name] for name, content in contents(labels).items() if name.endswith(".h5"))
        verified = relabel_here("verify", labels)
        assert verified.returncode == 1 and f"{labels / shard_name(1)}: not finished; run the command" in verified.stdout
        rerun = relabel_here("annotate", image_folder, "--labels", labels, *tiny_options)
        assert rerun.returncode == 0, rerun.stderr
        assert contents(labels) == whole
        assert relabel_here("verify", labels).returncode == 0

    return check


def ended(program: Program) -> str:
    """Wait for a run that stops by itself, and return its error message."""
    done = program.finished()
    assert done.returncode == 1 and done.stderr.startswith("relabel: ") and "Traceback" not in done.stderr
    return done.stderr


# --- processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_run_killed_at_any_write_and_rerun_gives_the_bytes_of_an_undisturbed_run(
    relabel_here: Relabel,
    image_folder: Path,
    tiny_options: list[str],
    tmp_path: Path,
    undisturbed: Path,
    contents: Contents,
    moment: Moment,
) -> None:
    labels, whole = tmp_path / "labels", contents(undisturbed)
    command = ["annotate", str(image_folder), "--labels", str(labels), *tiny_options]
    for number in itertools.count(1):
        (code,) = exit_codes([processes.start(app, command, kill=Kill(labels, moment, number))])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        complete = {name for name in contents(labels) if not name.startswith(".") and name != SHARD_LINES}
        assert all((labels / name).read_bytes() == whole[name] for name in complete)
        assert (MANIFEST in complete) == (number > 1 or moment == "after a rename"), "it comes first"
        rerun = relabel_here(*command)
        assert rerun.returncode == 0, rerun.stderr
        assert contents(labels) == whole, f"killed {moment}: number {number}"
        assert relabel_here("verify", labels).returncode == 0
        shutil.rmtree(labels)
    assert contents(labels) == whole
    assert number > 5, "the manifest, three shards and the list of shards are written"


@pytest.mark.slow
def test_terminated_run_keeps_its_shards_and_a_rerun_completes(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, contents: Contents, completes: Callable[[], None]
) -> None:
    with held_in_mid_shard(image_folder, tmp_path / "labels", tiny_options) as held:
        held.program.kill(signal.SIGTERM)
        assert held.program.finished().returncode == -signal.SIGTERM
    assert sorted(contents(tmp_path / "labels")) == [MANIFEST, shard_name(0), SHARD_LINES]
    completes()


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
def test_killed_decoding_process_stops_the_run_with_a_message(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, completes: Callable[[], None]
) -> None:
    with held_in_mid_shard(image_folder, tmp_path / "labels", [*tiny_options, "--workers=1"]) as held:
        for worker in children_of(held.program.pid):
            os.kill(worker, signal.SIGKILL)
        message = ended(held.program)
    assert "a decoding process died: DataLoader worker (pid" in message and "use fewer --workers" in message
    completes()


@pytest.mark.slow
def test_killed_process_stops_the_others_and_a_rerun_of_one_process_makes_its_shards(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, completes: Callable[[], None]
) -> None:
    labels, image = tmp_path / "labels", image_folder / LAST_OF_SHARD_1  # shard 1 is the second process's
    command = [*TORCHRUN, "-m", "pipeline"]
    command += ["annotate", str(image_folder), "--labels", str(labels), *tiny_options]
    with leased(image):
        launcher = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: launcher.poll() is not None or len(read_shard_lines(labels)) == 2, 120, "two shards")
            assert launcher.poll() is None, "the run ended by itself"
            pid: dict[bytes, int] = {}  # by b"RANK=0" and b"RANK=1"
            for child in children_of(launcher.pid):
                environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                pid |= {entry: child for entry in environment if entry.startswith(b"RANK=")}
            os.kill(pid[b"RANK=1"], signal.SIGKILL)
            _, stderr = launcher.communicate(timeout=120)
        finally:
            launcher.kill()
    assert launcher.returncode != 0 and "(SIGKILL)" in stderr
    assert not Path(f"/proc/{pid[b'RANK=0']}").exists()
    completes()


def test_folder_on_a_file_system_without_locks_is_written_with_a_warning(
    relabel_here: Relabel,
    image_folder: Path,
    tiny_options: list[str],
    tmp_path: Path,
    undisturbed: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_locks(*_: object) -> None:  # what some network file systems answer
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert finished.returncode == 0
    assert f"warning: {tmp_path}/labels is on a file system without locks" in finished.stdout
    assert contents(tmp_path / "labels") == contents(undisturbed)


# --- files that disappear or change ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--skip-unreadable"], ["--skip-unreadable", "--workers=1"]])
def test_image_deleted_while_running_is_reported_and_once_restored_a_rerun_completes(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, completes: Callable[[], None], more: list[str]
) -> None:
    deleted = image_folder / NEXT_TO_IT
    content = deleted.read_bytes()
    with held_in_mid_shard(image_folder, tmp_path / "labels", [*tiny_options, *more], FIRST_OF_SHARD_1) as held:
        deleted.unlink()
        held.let_go()
        message = ended(held.program)
    assert message.startswith(
        f"relabel: {deleted}: [Errno 2] No such file or directory. Make it readable, or remove it from"
    )
    deleted.write_bytes(content)
    completes()


@pytest.mark.slow
def test_images_whose_folder_goes_away_are_not_skipped_as_unreadable(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, completes: Callable[[], None]
) -> None:
    away, options = tmp_path / "away", [*tiny_options, "--skip-unreadable"]
    with held_in_mid_shard(image_folder, tmp_path / "labels", options, FIRST_OF_SHARD_1) as held:
        image_folder.rename(away)
        held.let_go()
        message = ended(held.program)
    assert f"{image_folder}/dog/" in message and "[Errno 2] No such file or directory" in message
    assert sorted(read_shard_lines(tmp_path / "labels")) == [0]
    away.rename(image_folder)
    completes()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make the folder read-only. Root ignores the mode, so for root set the immutable attribute."""
    if os.geteuid() == 0:
        lock, unlock = ["chattr", "+i", str(folder)], ["chattr", "-i", str(folder)]
    else:
        lock, unlock = ["chmod", "a-w", str(folder)], ["chmod", "u+w", str(folder)]
    if subprocess.run(lock, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("root cannot make a folder read-only on this file system")
    try:
        yield
    finally:
        subprocess.run(unlock, check=True, timeout=60)


@pytest.mark.slow
def test_folder_that_becomes_read_only_loses_no_shard_and_a_rerun_completes(
    image_folder: Path, tiny_options: list[str], tmp_path: Path, contents: Contents, completes: Callable[[], None]
) -> None:
    labels = tmp_path / "labels"
    with held_in_mid_shard(image_folder, labels, tiny_options) as held, read_only(labels):
        held.let_go()
        message = ended(held.program)
    assert message.startswith(f"relabel: annotating into {labels} stopped: [Errno ")
    assert "Finished shards are kept; rerun" in message
    assert sorted(contents(labels)) == [MANIFEST, shard_name(0), SHARD_LINES]
    completes()


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_flipped_bit_anywhere_in_the_manifest_is_detected(labels: Path) -> None:
    manifest, whole = Manifest.load(labels), (labels / MANIFEST).read_bytes()
    for position in range(len(whole)):
        (labels / MANIFEST).write_bytes(flipped(whole, position))
        try:
            assert Manifest.load(labels) == manifest, position  # only if white space became other white space
        except InputError as error:
            assert str(labels / MANIFEST) in str(error)
        else:
            assert whole[position : position + 1].isspace(), position


@pytest.mark.slow
def test_flipped_bit_anywhere_in_the_list_of_shards_is_detected(labels: Path) -> None:
    whole = (labels / SHARD_LINES).read_bytes()
    for position in range(0, len(whole), 3):
        (labels / SHARD_LINES).write_bytes(flipped(whole, position))
        try:
            assert verify(labels).findings, position
        except InputError as error:
            assert str(labels / SHARD_LINES) in str(error)


@pytest.fixture
def repaired(
    relabel_here: Relabel, image_folder: Path, labels: Path, tiny_options: list[str], undisturbed: Path, contents: Contents
) -> Callable[[], str]:
    """`repaired()` checks that a rerun restores the damaged label set to the undisturbed one, and returns its output."""

    def rerun() -> str:
        finished = relabel_here("annotate", image_folder, "--labels", labels, *tiny_options)
        assert finished.returncode == 0, finished.stderr
        assert contents(labels) == contents(undisturbed)
        return finished.stdout

    return rerun


@pytest.mark.parametrize("field", ['"shard": 1', "shard-00001.h5", '"rows": 3', '"sha256": "', '"manifest": "'])
def test_rerun_repairs_the_list_of_shards(labels: Path, repaired: Callable[[], str], field: str) -> None:
    whole = (labels / SHARD_LINES).read_bytes()
    position = whole.index(field.encode()) + len(field) - (not field.endswith(': "'))  # last of `field`, or next after it
    (labels / SHARD_LINES).write_bytes(flipped(whole, position))
    assert verify(labels).findings
    repaired()


@pytest.mark.parametrize("left", [None, b"", 0.3, "flipped"], ids=["missing", "empty", "cut", "flipped"])
def test_rerun_restores_a_manifest_that_matches_every_finished_shard(
    relabel_here: Relabel,
    image_folder: Path,
    labels: Path,
    tiny_options: list[str],
    contents: Contents,
    repaired: Callable[[], str],
    left: bytes | float | str | None,
) -> None:
    whole = (labels / MANIFEST).read_bytes()
    (labels / MANIFEST).unlink()
    if left == "flipped":
        (labels / MANIFEST).write_bytes(flipped(whole, whole.index(b"topk") + 7))
    elif left is not None:
        (labels / MANIFEST).write_bytes(left if isinstance(left, bytes) else whole[: int(left * len(whole))])
    before = contents(labels)
    other = relabel_here("annotate", image_folder, "--labels", labels, *tiny_options, "--topk=1")
    assert other.returncode == 1 and contents(labels) == before, "different settings must not restore it"
    assert "writing it again, since every finished shard matches it" in repaired()


def test_rerun_keeps_a_line_that_another_process_appended_after_a_torn_one(
    labels: Path, repaired: Callable[[], str]
) -> None:
    lines = read_shard_lines(labels)
    first, second, third = (lines[i].to_json() for i in range(3))
    (labels / SHARD_LINES).write_text(first + second[:40])  # what a full disk left
    append_shard_line(labels, lines[2])
    assert (labels / SHARD_LINES).read_text() == first + second[:40] + "\n" + third
    with pytest.raises(InputError, match=r"line 2 is damaged .* run the command that made the label set again"):
        read_shard_lines(labels)
    third_shard = (labels / shard_name(2)).stat().st_mtime_ns
    repaired()
    assert (labels / shard_name(2)).stat().st_mtime_ns == third_shard


def test_flipped_bit_anywhere_in_a_checkpoint_is_detected_or_changes_no_weight(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole, path = tiny_checkpoint.read_bytes(), tmp_path / "weights.pth"
    weights = torch.load(tiny_checkpoint, weights_only=True)
    rejected = 0
    for position in range(50, len(whole), len(whole) // 60):
        path.write_bytes(flipped(whole, position))
        for load in (load_torch_file, loaded_into_a_classifier):
            try:
                loaded = load(path)
            except InputError as error:
                assert str(path) in str(error)
                rejected += 1
            else:
                assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items()), position
    assert rejected > 60


def loaded_into_a_classifier(path: Path) -> dict[str, torch.Tensor]:
    return dict(create_classifier("resnet10t", checkpoint=path, num_classes=3, model_kwargs=THIN).state_dict())


def test_spot_check_reads_no_image_outside_the_folder(
    relabel_here: Relabel, labels: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    line, path = read_shard_lines(labels)[0], labels / shard_name(0)
    content = path.read_bytes()
    assert content.count(b"cat/cat_0.JPEG") == 1
    (image_folder.parent / "images.JPEG").write_bytes((image_folder / "cat/cat_0.JPEG").read_bytes())
    path.write_bytes(content.replace(b"cat/cat_0.JPEG", b"../images.JPEG"))
    append_shard_line(labels, dataclasses.replace(line, sha256=sha256_of(path)))
    options = ["--images", image_folder, "--spot-check", 9, "--checkpoint", tiny_checkpoint, "--min-agreement", 0]
    finished = relabel_here("verify", labels, *options)
    assert finished.returncode == 1 and "is not a path inside a folder" in finished.stdout
    with pytest.raises(InputError, match="is not a path inside a folder; do not trust this label set"):
        spot_check(labels, image_folder, 9, tiny_checkpoint, "cpu")
