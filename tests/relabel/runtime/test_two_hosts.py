"""Two hosts in network namespaces: a link that goes down and a loopback address; and a launcher that is killed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relabel.labels.shard_lines import read_shard_lines
from tests.annotate.test_several_processes import LAST_OF_SHARD_1
from tests.conftest import REPOSITORY, TORCHRUN, Contents, free_port, leased, wait_until
from tests.relabel.runtime.waiting import STARTED

SOURCE = [sys.executable, "-m", "tests.relabel.runtime.waiting"]
IMPATIENT = "from relabel.runtime import heartbeat; heartbeat.BEAT_S = 0.5; from pipeline.cli import main; main()"
ADDRESSES = ("10.203.7.1", "10.203.7.2")

pytestmark = pytest.mark.slow


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two network namespaces with a link between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need `ip` and root")
    names = (f"relabel-{os.getpid()}-0", f"relabel-{os.getpid()}-1")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine does not allow network namespaces: {error.stderr.decode().strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(host: str, rank: int, log: Path, interface: bool = True, program: list[str] = SOURCE) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29613"}
    if interface:
        environment["GLOO_SOCKET_IFNAME"] = "eth0"
    with log.open("wb") as file:
        command = ["ip", "netns", "exec", host, *program]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)


def test_both_sides_of_a_dead_link_end_and_say_which_process_is_lost_and_a_rerun_gives_the_same_bytes(
    hosts: tuple[str, str],
    image_folder: Path,
    tiny_options: list[str],
    tmp_path: Path,
    undisturbed: Path,
    contents: Contents,
) -> None:
    labels, logs = tmp_path / "labels", [tmp_path / "0.log", tmp_path / "1.log"]
    program = [sys.executable, "-c", IMPATIENT, "annotate", str(image_folder), f"--labels={labels}", *tiny_options]

    def both() -> "list[subprocess.Popen[bytes]]":
        return [start(host, rank, log, program=program) for rank, (host, log) in enumerate(zip(hosts, logs, strict=True))]

    with leased(image_folder / LAST_OF_SHARD_1):  # the second process waits for it, and then the first for the second
        running = both()
        try:
            wait_until(lambda: set(read_shard_lines(labels)) == {0, 2} if labels.exists() else False, 120, "two shards")
            ip("-n", hosts[1], "link", "set", "eth0", "down")
            assert [process.wait(timeout=40) for process in running] == [1, 1]
        finally:
            for process in running:
                process.kill()
    first, second = (log.read_text() for log in logs)
    assert "relabel: nothing was heard of process 1 on" in first
    assert "for 12.0 s: the process, its machine or the link to it has failed" in first
    assert "relabel: process 0 on" in second and f"at {ADDRESSES[0]}:29613 did not answer for 12.0 s" in second
    for said in (first, second):
        hint = f"to continue: start all processes again, each with `relabel annotate {image_folder} --labels={labels} "
        assert f"Finished work is kept; {hint}" in said and "(train: with --resume)" in said
        assert "Traceback" not in said
    ip("-n", hosts[1], "link", "set", "eth0", "up")
    again = both()
    assert [process.wait(timeout=120) for process in again] == [0, 0], [log.read_text() for log in logs]
    assert contents(labels) == contents(undisturbed)


def test_host_whose_name_stands_for_its_loopback_address_is_named_on_both_sides(
    hosts: tuple[str, str], tmp_path: Path
) -> None:
    """As on Debian: /etc/hosts says 127.0.1.1."""
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename}\n")
    running = []
    for rank, (host, log) in enumerate(zip(hosts, logs, strict=True)):
        folder = Path("/etc/netns") / host  # `ip netns exec` mounts it over /etc
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "hosts", folder / "hosts")
        running.append(start(host, rank, log, interface=rank == 0))  # only the second host's is unset
    try:
        codes = [process.wait(timeout=120) for process in running]
    finally:
        for process, host in zip(running, hosts, strict=True):
            process.kill()
            shutil.rmtree(Path("/etc/netns") / host)
    assert codes == [1, 1]
    for log in logs:
        said = log.read_text()
        assert "stands for 127.0.1.1 (this machine has eth0)" in said and "Set GLOO_SOCKET_IFNAME there" in said
        assert "Traceback" not in said


def test_processes_end_soon_after_torchrun_was_killed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        command = [*TORCHRUN, "-m", "tests.relabel.runtime.waiting"]
        launcher = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while (tmp_path / "log").read_text().count(STARTED) < 2:
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.1)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 30
    while any(running(int(worker)) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (
        "relabel: torchrun, which started this process, has ended. Finished work is kept" in (tmp_path / "log").read_text()
    )


def test_store_that_is_gone_is_named(tmp_path: Path) -> None:
    """As when torchrun is killed while its processes are still importing torch."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"} | place
    done = subprocess.run(SOURCE, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "relabel: cannot join the 2 processes of this run at 127.0.0.1:" in done.stderr
    wrong = subprocess.run(SOURCE, cwd=REPOSITORY, env=environment | {"WORLD_SIZE": "abc"}, capture_output=True, text=True)
    assert wrong.returncode == 1 and "variable WORLD_SIZE is 'abc'" in wrong.stderr


def running(pid: int) -> bool:
    """Whether a process is there and not merely waiting for its parent to notice that it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
