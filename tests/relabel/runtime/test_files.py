"""Files and folders are written complete or not at all, and nothing of anybody else's is replaced or deleted."""

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from relabel.runtime.errors import InputError
from relabel.runtime.files import (
    LOCK,
    UNFINISHED,
    atomic_folder,
    atomic_write,
    check_output,
    delete_temporary,
    write_lock,
    write_output,
)
from tests.conftest import REPOSITORY, refusal


def test_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", b"old and longer")
    atomic_write(tmp_path / "x", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"new"}


def test_failed_atomic_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    atomic_write(tmp_path / "x", b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        atomic_write(tmp_path / "x", bytes(1001))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"old"}


def test_only_temporary_files_of_the_named_files_are_deleted(tmp_path: Path) -> None:
    for name in (".x.h5.4711.tmp", ".x.h5.tmp", ".notes.txt.4711.tmp"):
        (tmp_path / name).touch()
    delete_temporary(tmp_path, "x.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".notes.txt.4711.tmp", ".x.h5.tmp"]


# --- the file that a user has named for a result --------------------------------------------------------------------------


def never(_: Path) -> bool:
    return False


def output(path: Path, content: bytes, force: bool = False) -> None:
    check_output(path, never, force)
    write_output(path, content)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_device_stays_one(tmp_path: Path) -> None:
    null = tmp_path / "null"
    os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "link").symlink_to(null)
    for path in (null, tmp_path / "link"):
        output(path, b"gone")
        assert stat.S_ISCHR(null.stat().st_mode)
    assert (tmp_path / "link").is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "null"]


def test_a_full_device_is_an_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        output(Path("/dev/full"), b"something")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    output(tmp_path / "pipe", b"through")
    reader.join()
    assert read == [b"through"] and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("to_file", [True, False], ids=["file", "pipe"])
def test_standard_output_gets_the_result_between_what_is_printed(tmp_path: Path, to_file: bool) -> None:
    code = "from pathlib import Path; from relabel.runtime.files import *; p = Path('/dev/stdout'); print('before');"
    code += "check_output(p, lambda _: False, False); write_output(p, b'result\\n'); print('after')"
    with (tmp_path / "log").open("w+") as log:
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=log if to_file else subprocess.PIPE)
    printed = (tmp_path / "log").read_bytes() if to_file else done.stdout
    assert printed == b"before\nresult\nafter\n"


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far/result")
    for content in (b"first", b"second"):
        check_output(tmp_path / "near", lambda _: True, force=False)
        write_output(tmp_path / "near", content)
        assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "result").read_bytes() == content


def test_files_that_the_command_has_not_made_are_kept_unless_forced(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "link"
    precious.write_text("mine")
    link.symlink_to(precious)
    for path in (precious, link):
        assert f"{path} exists and is not an earlier result" in refusal(lambda path=path: output(path, b"new"))  # type: ignore[misc]
        assert precious.read_text() == "mine"
    output(link, b"new", force=True)
    assert precious.read_text() == "new" and link.is_symlink()
    (tmp_path / "empty").touch()  # as mktemp makes
    output(tmp_path / "empty", b"new")


def test_places_where_nothing_can_be_written_are_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a folder; name a file in it" in refusal(lambda: check_output(tmp_path, never, force=True))
    message = refusal(lambda: check_output(tmp_path / "file" / "result", never, force=False))
    assert f"{tmp_path / 'file'} is not a folder that can be written to" in message
    check_output(tmp_path / "new" / "deep" / "result", never, force=False)
    assert not (tmp_path / "new").exists()


# --- folders --------------------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    with atomic_folder(folder) as unfinished:
        (unfinished / "content").touch()


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    for name in ("absent", "empty", "far"):
        if name != "absent":
            (tmp_path / name).mkdir()
        if name == "far":
            (tmp_path / "near").symlink_to("far")
        make(tmp_path / ("near" if name == "far" else name))
        assert [p.name for p in (tmp_path / name).iterdir()] == ["content"]
    (tmp_path / "dangling").symlink_to("made")
    make(tmp_path / "dangling")
    assert (tmp_path / "made" / "content").exists() and (tmp_path / "near").is_symlink()
    assert not list(tmp_path.glob(".*"))


def test_files_devices_and_full_folders_are_refused_as_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (Path("/dev/null"), tmp_path / "file"):
        assert f"{path} is not a folder" in refusal(lambda path=path: make(path))  # type: ignore[misc]
    assert f"{tmp_path} is not empty" in refusal(lambda: make(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and Path("/dev/null").is_char_device()


def test_a_folder_that_fails_is_as_it_was_before(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        for error in (OSError("disk"), KeyboardInterrupt()):
            with pytest.raises((InputError, KeyboardInterrupt)), atomic_folder(folder):
                raise error
    assert [p.name for p in tmp_path.iterdir()] == ["empty"] and not list((tmp_path / "empty").iterdir())


@pytest.mark.slow
def test_folders_of_somebody_else_beside_the_output_are_kept_and_those_of_dead_writers_deleted(tmp_path: Path) -> None:
    for name in (".out.tmp", ".out.4711.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    (tmp_path / ".out.link.tmp").symlink_to(tmp_path / ".out.tmp")
    (tmp_path / ".out.4712.tmp").mkdir()
    (tmp_path / ".out.4712.tmp" / UNFINISHED).touch()
    (tmp_path / ".out.4712.tmp" / "half").touch()
    make(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.4711.tmp", ".out.link.tmp", ".out.tmp", "out"]
    assert (tmp_path / ".out.tmp" / "precious").exists() and (tmp_path / ".out.4711.tmp" / "precious").exists()


def test_the_unfinished_folder_of_a_living_writer_is_kept(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from relabel.runtime.files import atomic_folder
with atomic_folder(Path({str(tmp_path / "out")!r})) as unfinished:
    print(unfinished, flush=True)
    input()
    (unfinished / "content").write_text("theirs")
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, text=True, **pipes)  # type: ignore[call-overload]
    unfinished = Path(other.stdout.readline().strip())
    with atomic_folder(tmp_path / "out"):
        assert unfinished.is_dir()
        other.communicate("\n", timeout=60)
        assert other.returncode == 0 and (tmp_path / "out" / "content").read_text() == "theirs"
        (tmp_path / "out" / "content").rename(tmp_path / "kept")
    assert (tmp_path / "kept").exists()


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="no mount namespaces here"
)
def test_an_empty_mount_point_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    code = f"""
from pathlib import Path
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_folder
for name in ("out", "link"):
    try:
        with atomic_folder(Path({str(tmp_path)!r}, name)):
            print("started")
    except InputError as error:
        print(error)
with atomic_folder(Path({str(tmp_path)!r}, "out", "inside")) as unfinished:
    (unfinished / "content").touch()
print(list(Path({str(tmp_path)!r}, "out").glob("*/*")))
"""
    mounted = f'mount -t tmpfs tmpfs {tmp_path / "out"} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, "-", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert "started" not in done.stdout and done.stdout.count("that fails here (Device or resource busy)") == 2, done.stderr
    assert "out/inside/content" in done.stdout


# --- locks ----------------------------------------------------------------------------------------------------------------


def test_a_lock_leaves_what_a_link_in_its_place_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "labels").mkdir()
    path = tmp_path / "labels" / LOCK

    def locked() -> None:
        with write_lock(tmp_path / "labels", "`relabel annotate`", "--labels"):
            pass

    path.symlink_to(tmp_path / "precious")
    assert f"{path} is not a regular file" in refusal(locked)
    path.unlink()
    path.symlink_to(tmp_path / "dangling")
    assert f"{path} is not a regular file" in refusal(locked) and not (tmp_path / "dangling").exists()
    path.unlink()
    os.mkfifo(path)
    assert f"{path} is not a regular file" in refusal(locked)
    path.unlink()
    path.mkdir()
    assert f"{path} is not a regular file" in refusal(locked)
    path.rmdir()
    path.hardlink_to(tmp_path / "precious")
    locked()
    assert (tmp_path / "precious").read_text() == "mine"
