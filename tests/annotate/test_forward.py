"""The forward pass: batches that halve when memory is short, other precisions, and torch.compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch._inductor.config

from annotate.convert import fully_convolutional
from annotate.forward import Forward
from annotate.squash import Squash
from relabel.labels.manifest import Manifest
from relabel.labels.maps import MAPS, LabelMaps
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from tests.conftest import THIN, Relabel, randomise
from tests.label_sets import manifest_of

SIZE, GRID = (128, 192), (16, 24)  # pixels, cells


def tiny_forward(batch_size: int, device: str = "cpu") -> Forward:
    torch.manual_seed(0)
    classifier = randomise(timm.create_model("resnet10t", num_classes=3, **THIN), 0, SIZE)
    squash = Squash(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    two_of_three = LabelMaps(torch.zeros(1, 2, *GRID), torch.zeros(1, 2, *GRID), torch.zeros(1, *GRID))
    manifest = manifest_of(["cat/1.JPEG"], two_of_three, 3)
    return Forward(fully_convolutional(classifier.to(device), SIZE), squash, manifest, batch_size)


def random_images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_alike(parts: list[LabelMaps], others: list[LabelMaps]) -> None:
    for name in MAPS:
        mine, theirs = (torch.cat([getattr(part, name) for part in these]).float() for these in (parts, others))
        close = torch.isclose(mine, theirs, atol=2e-3, rtol=2e-3)
        assert close.float().mean() > 0.9999, name  # two logits that are equal but for rounding may change places


MEMORY_LIMITED = """
import resource
from pathlib import Path
import torch
from relabel.runtime.logs import show_logs
from tests.annotate.test_forward import assert_alike, random_images, tiny_forward

torch.set_num_threads(1)
show_logs()
images = random_images(512)
with torch.inference_mode():
    expected = tiny_forward(8)(images)
    forward = tiny_forward(512)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    in_use = 1024 * int(status["VmSize"].split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 250 * 2**20, resource.RLIM_INFINITY))  # images as floats: 151 MB
    parts = forward(images)
    again = forward(images[:100])
print(forward.batch_size, [len(part) for part in again])
assert_alike(parts, expected)
assert_alike(again, [type(parts[0])(*(torch.cat([getattr(p, n) for p in expected])[:100] for n in vars(parts[0])))])
"""


def test_batch_beyond_memory_is_halved_once_and_for_all_with_the_same_maps() -> None:
    command = [sys.executable, "-c", MEMORY_LIMITED]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed goes back at once, and not when malloc likes
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, env=env)
    assert finished.returncode == 0, finished.stderr
    *said, last = finished.stdout.splitlines()
    assert said[0] == "warning: cpu has no memory for 512 images at a time: going on with 256"
    batch_size = int(last.split()[0])
    assert said[-1].endswith(f"going on with {batch_size}") and batch_size * 2 ** len(said) == 512
    sizes = [batch_size] * (100 // batch_size) + [100 % batch_size] * (100 % batch_size > 0)
    assert last == f"{batch_size} {sizes}"


def test_single_image_beyond_memory_gets_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny_forward(4)

    def allocates_too_much(images: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**60)

    monkeypatch.setattr(forward, "annotator", allocates_too_much)
    with (
        torch.inference_mode(),
        pytest.raises(InputError, match=r"no memory for a single image of 128x192 pixels .*can't all"),
    ):
        forward(random_images(3))
    assert forward.batch_size == 1


def test_probe_beyond_memory_gets_the_same_message() -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)

    def allocates_too_much(images: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**60)

    classifier.forward_features = allocates_too_much
    with pytest.raises(InputError, match=r"cpu has no memory for 2 images of 128x192 pixels .*; use a smaller --input-size"):
        fully_convolutional(classifier, SIZE)


def test_what_is_not_compiled_when_a_batch_of_another_size_comes_gets_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny_forward(4)
    fused = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 8, 8), torch.nn.Tanh())
    fused.name = "tiny"
    fused.compile()
    monkeypatch.setattr(forward, "annotator", fused)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",), "force_disable_caches": True}),
        torch.inference_mode(),
        pytest.raises(InputError, match=r"--compile: torch cannot compile tiny here .* leave it out"),
    ):
        forward(random_images(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.inference_mode()
def test_batch_beyond_the_gpus_memory_is_halved_with_the_same_maps(caplog: pytest.LogCaptureFixture) -> None:
    images, forward = random_images(512), tiny_forward(512, "cuda")
    expected = tiny_forward(8, "cuda")(images)
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 200 * 2**20  # the images alone, as floats, are 150 MB
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        parts = forward(images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "cuda:0 has no memory for 512 images at a time: going on with 256" in caplog.text
    assert forward.batch_size < 512
    assert_alike(parts, expected)


def test_error_that_is_not_of_memory_is_left_alone() -> None:
    forward = tiny_forward(4)
    forward.annotator.double()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="type"):
        forward(random_images(2))
    assert forward.batch_size == 4


def test_float16_is_recorded_and_near_float32(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    options = ["--labels", tmp_path / "labels", *tiny_options, "--amp", "--amp-dtype=float16"]
    assert relabel_here("annotate", image_folder, *options).returncode == 0
    assert Manifest.load(tmp_path / "labels").precision == "float16"
    coarse, fine = (LabelStore.open(labels) for labels in (tmp_path / "labels", undisturbed))
    gap = (coarse.gather(torch.arange(9)).dense(3) - fine.gather(torch.arange(9)).dense(3)).abs()
    assert 0 < float(gap.mean()) < 0.01 * float(fine.gather(torch.arange(9)).scores.float().std())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_annotator_gives_the_same_maps() -> None:  # on a CPU too, in minutes
    eager, compiled = tiny_forward(2, "cuda"), tiny_forward(2, "cuda")
    compiled.compile()
    images = random_images(5)  # batches of 2, 2 and 1
    with torch.inference_mode():
        assert_alike(compiled(images), eager(images))
