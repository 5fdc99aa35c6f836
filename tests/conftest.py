"""What the tests of all rooms share: a small lopsided image folder, a tiny annotator, and the command line to run on them.

Images and weights come from fixed seeds, so that every copy of the folder has the same bytes and gets the same label set.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # tests run beside one another; set before torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for published weights

import contextlib
import fcntl
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pipeline.cli.app import app
from relabel.runtime.errors import InputError

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in a script's background ignores it, and so do its runs

REPOSITORY = Path(__file__).resolve().parents[1]
CLASS_SIZES = {"cat": 1, "dog": 5, "eel": 3}  # images per class
THIN = {"stem_width": 8, "channels": (8, 8, 8, 16), "output_stride": 8}
SHARD_SIZE = 3  # 9 images: three shards; at batch size 2 each shard ends with half a batch

Finished = subprocess.CompletedProcess[str]
Relabel = Callable[..., Finished]
Contents = Callable[[Path], dict[str, bytes]]
Randomised = Callable[..., nn.Module]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def model_options(kwargs: dict[str, Any]) -> list[str]:
    """As the command line takes what is passed to timm.create_model."""
    return [f"--model-kwargs={name}={value}".replace(" ", "") for name, value in kwargs.items()]


def free_port() -> int:
    """For two processes to meet at, where the test and not torchrun starts them."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Fail the test if `condition` does not hold within `seconds`. It may raise too, to end the wait at once."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.005)


def refusal(of: Callable[[], object]) -> str:
    """The message of the InputError that calling it raises."""
    with pytest.raises(InputError) as caught:
        of()
    return str(caught.value)


@contextlib.contextmanager
def leased(path: Path) -> Iterator[Callable[[], None]]:
    """Make every process that opens the file wait until the yielded function is called, or for 45 s, Linux's default."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # Linux sends it to the holder when a process waits
    holder = os.open(path, os.O_RDONLY)
    fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def release() -> None:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    try:
        yield release
    finally:
        os.close(holder)


def write_images(root: Path) -> Path:
    """Nine real JPEGs of nine sizes, none of them square."""
    rng = np.random.default_rng(0)
    number = 0
    for name, count in CLASS_SIZES.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            coarse = rng.integers(0, 256, size=(3, 5, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((50 + 3 * number, 30 + number)).save(root / name / f"{name}_{i}.JPEG")
            number += 1
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of one's own in ImageNet's layout: IMAGES/cat, dog and eel with 1, 5 and 3 JPEGs."""
    return write_images(tmp_path / "images")


def randomise(classifier: nn.Module, seed: int, size: tuple[int, int] | None = None) -> nn.Module:
    """Norms and head away from their initial values, as if trained: zeros and ones would hide what a map gets wrong.

    With a size in pixels, batch norm's statistics come from a batch of noise: else what an image changes dies out.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in classifier.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if "Norm" in type(module).__name__ and isinstance(weight, torch.Tensor):
                weight.copy_(1 + 0.2 * noise(weight))
                if bias is not None:  # RMS norms have none
                    bias.copy_(0.2 * noise(bias))
        heads: Any = classifier.get_classifier()  # type: ignore[operator]
        for head in heads if isinstance(heads, tuple | list) else [heads]:
            for module in head.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.weight.copy_(0.2 * noise(module.weight))
                    if module.bias is not None:
                        module.bias.copy_(noise(module.bias))
        for name, parameter in classifier.named_parameters():
            if name.endswith("attention_biases"):  # of levit; at their initial zeros all its cells are alike
                parameter.copy_(noise(parameter))
        batch_norms = [module for module in classifier.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if size is not None and batch_norms:
            for module in batch_norms:
                module.momentum = 1.0  # one batch says it all
            classifier.train()(torch.randn(4, 3, *size, generator=generator))
    return classifier.eval()


@pytest.fixture(scope="session")
def randomised() -> Callable[..., nn.Module]:
    """`randomised(classifier, seed=0, size=None)`: the same classifier, in eval mode, its norms and head random."""
    return lambda classifier, seed=0, size=None: randomise(classifier, seed, size)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`make_checkpoint(seed)`: a thin resnet10t of three classes, saved as a state_dict."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(seed: int) -> Path:
        path = folder / f"tiny-{seed}.pth"
        if not path.exists():
            torch.manual_seed(seed)
            classifier = timm.create_model("resnet10t", num_classes=len(CLASS_SIZES), **THIN)
            torch.save(randomise(classifier, seed, (32, 56)).state_dict(), path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[[int], Path]) -> Path:
    return make_checkpoint(0)


@pytest.fixture(scope="session")
def tiny_options(tiny_checkpoint: Path) -> list[str]:
    """The options of `relabel annotate` that make label maps of 4x7 cells with the tiny annotator."""
    model = model_options(THIN)
    sizes = ["--num-classes=3", "--input-size=32x56", "--topk=2", f"--shard-size={SHARD_SIZE}", "--batch-size=2"]
    return ["--model=resnet10t", *model, f"--checkpoint={tiny_checkpoint}", *sizes, "--workers=0", "--device=cpu"]


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Of torch's global generator, in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def relabel() -> Relabel:
    """Run the command line as a process of its own, from the repository's root."""

    def run(*arguments: object) -> Finished:
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)

    return run


@pytest.fixture(scope="session")
def relabel_here() -> Relabel:
    """Run the command line in this process, which saves the seconds that importing torch takes. A bug raises here."""

    def run(*arguments: object) -> Finished:
        given = list(map(str, arguments))
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        return subprocess.CompletedProcess(given, result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, relabel_here: Relabel, tiny_options: list[str]) -> Path:
    """The label set of the image folder, made once by this process with two decoding workers. Only to be read."""
    images = write_images(tmp_path_factory.mktemp("undisturbed") / "images")
    labels = images.parent / "labels"
    finished = relabel_here("annotate", images, "--labels", labels, *tiny_options, "--workers=2")
    assert finished.returncode == 0, finished.stderr
    return labels


@pytest.fixture
def labels(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed label set, to be damaged."""
    return shutil.copytree(undisturbed, tmp_path / "labels")


@pytest.fixture(scope="session")
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with file_size_limit(n):` the kernel refuses to write beyond n bytes of a file, as a full disk would."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """`contents(labels)`: every file of a label set by name, leftovers included; the lock's file is not part of the set."""
    return lambda folder: {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}
