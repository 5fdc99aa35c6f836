"""Decoding processes: what they copy of the main process's memory; and errors within seconds where shared memory is full."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from relabel.runtime.workers import init_worker
from tests.conftest import REPOSITORY, THIN, model_options

SMALL_SHM = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from pipeline.cli import app
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    print(json.dumps([done.exit_code, done.stderr]), flush=True)
"""


class Copied(Dataset[int]):
    """Bytes that a garbage collection adds to the memory that the process has for itself alone."""

    def __getitem__(self, index: int) -> int:
        before = own_memory()
        gc.collect()
        return own_memory() - before


def own_memory() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def test_garbage_collection_in_a_worker_copies_none_of_the_main_processs_memory() -> None:
    objects = [[number] for number in range(300_000)]  # 20 MB or more
    [copied] = DataLoader(Copied(), sampler=[0], batch_size=None, num_workers=1, worker_init_fn=init_worker)
    assert copied < 5e6 and objects[-1] == [299_999]


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "sh", "-c", SMALL_SHM, "-", "true"], capture_output=True).returncode != 0,
    reason="no mount namespaces here",
)
def test_full_shared_memory_ends_every_command_with_what_to_do(
    image_folder: Path, tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "maps" / "cat").mkdir(parents=True)
    scores, classes = torch.zeros(3, 300, 300), torch.arange(3.0).view(3, 1, 1).expand(3, 300, 300)
    torch.save(torch.stack([scores, classes]), tmp_path / "maps" / "cat" / "cat_0.pt")
    settings = ("epochs=1", "warmup_epochs=0", "batch_size=8", "image_size=224", "eval_size=32")
    train = ["train", image_folder, "--run-dir", tmp_path / "run", "--arch=resnet10t", "--recipe=single"]
    weights = [f"--checkpoint={tiny_checkpoint}", *model_options(THIN)]
    large = ["--input-size=256x448", "--shard-size=9", "--batch-size=9"]
    commands = (
        ["annotate", image_folder, "--labels", tmp_path / "a", *tiny_options, *large, "--workers=1"],
        [*train, *(f"--set={setting}" for setting in settings), "--workers=1", "--device=cpu"],
        ["import-labels", tmp_path / "maps", "--labels", tmp_path / "b", "--num-classes=3", "--workers=1"],
        ["eval", image_folder, "--arch=resnet10t", *weights, "--eval-size=448", "--workers=1", "--device=cpu"],
    )
    given = json.dumps([[str(argument) for argument in command] for command in commands])
    command = ["unshare", "-m", "sh", "-c", SMALL_SHM, "-", sys.executable, "-c", RUN_ALL, given]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(results) == len(commands), done.stderr
    for code, said in results:
        assert code == 1 and "unable to allocate shared memory" in said and "use fewer --workers" in said
