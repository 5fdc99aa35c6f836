"""The forward pass: batches are halved when memory runs out; lower precision; torch.compile."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch._inductor.config

from annotate.convert import fully_convolutional
from annotate.forward import MapForward
from annotate.squash import Squash
from relabel.labels.manifest import Manifest
from relabel.labels.maps import MAPS, LabelMaps
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from tests.conftest import THIN, Relabel, randomise
from tests.label_sets import manifest_of

SIZE, GRID = (128, 192), (16, 24)  # pixels, cells


def tiny_forward(batch_size: int, device: str = "cpu") -> MapForward:
    torch.manual_seed(0)
    classifier = randomise(timm.create_model("resnet10t", num_classes=3, **THIN), 0, SIZE)
    squash = Squash(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    two_of_three = LabelMaps(torch.zeros(1, 2, *GRID), torch.zeros(1, 2, *GRID), torch.zeros(1, *GRID))
    manifest = manifest_of(["cat/1.JPEG"], two_of_three, 3)
    return MapForward(fully_convolutional(classifier.to(device), SIZE), squash, manifest, batch_size)


def random_images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_close_maps(actual: list[LabelMaps], expected: list[LabelMaps]) -> None:
    for name in MAPS:
        here, there = (torch.cat([getattr(part, name) for part in parts]).float() for parts in (actual, expected))
        close = torch.isclose(here, there, atol=2e-3, rtol=2e-3)
        assert close.float().mean() > 0.9999, name  # rounding may swap two nearly equal logits


MEMORY_LIMITED = """
import resource
from pathlib import Path
import torch
from relabel.runtime.logs import show_logs
from tests.annotate.test_forward import assert_close_maps, random_images, tiny_forward

show_logs()
torch.set_num_threads(1)
images = random_images(512)
with torch.inference_mode():
    expected = tiny_forward(8)({"images": images})
    forward = tiny_forward(512)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    in_use = 1024 * int(status["VmSize"].split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 250 * 2**20, resource.RLIM_INFINITY))  # images as floats: 151 MB
    parts = forward({"images": images})
    again = forward({"images": images[:100]})
print(forward.batch_size, [len(part) for part in again])
assert_close_maps(parts, expected)
assert_close_maps(again, [type(parts[0])(*(torch.cat([getattr(p, n) for p in expected])[:100] for n in vars(parts[0])))])
"""


@pytest.mark.slow
def test_batch_that_exceeds_memory_is_halved_for_good_with_the_same_maps() -> None:
    command = [sys.executable, "-c", MEMORY_LIMITED]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # return freed memory to the system at once
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, env=env)
    assert finished.returncode == 0, finished.stderr
    *warnings, last = finished.stdout.splitlines()
    assert warnings[0] == "warning: cpu: not enough memory for 512 images at a time; using 256"
    batch_size = int(last.split()[0])
    assert warnings[-1].endswith(f"; using {batch_size}") and batch_size * 2 ** len(warnings) == 512
    sizes = [batch_size] * (100 // batch_size) + [100 % batch_size] * (100 % batch_size > 0)
    assert last == f"{batch_size} {sizes}"


def test_single_image_that_exceeds_memory_gets_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny_forward(4)

    def allocates_too_much(images: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**60)

    monkeypatch.setattr(forward, "annotator", allocates_too_much)
    with (
        torch.inference_mode(),
        pytest.raises(InputError, match=r"not enough memory for a single image of 128x192 pixels .*can't all"),
    ):
        forward({"images": random_images(3)})
    assert forward.batch_size == 1


def test_probe_that_exceeds_memory_gets_the_same_message() -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)

    def allocates_too_much(images: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**60)

    classifier.forward_features = allocates_too_much
    with pytest.raises(InputError, match=r"cpu: not enough memory for 2 images of 128x192 pixels .*; use a smaller --input"):
        fully_convolutional(classifier, SIZE)


@pytest.mark.slow
def test_compile_error_at_a_later_batch_size_gets_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny_forward(4)
    fused: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 8, 8), torch.nn.Tanh())
    fused.name = "tiny"
    fused.compile()
    monkeypatch.setattr(forward, "annotator", fused)
    monkeypatch.setattr(forward, "name", fused.name)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",), "force_disable_caches": True}),
        torch.inference_mode(),
        pytest.raises(InputError, match=r"--compile: torch cannot compile tiny here .* leave it out"),
    ):
        forward({"images": random_images(2)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.inference_mode()
def test_batch_that_exceeds_gpu_memory_is_halved_with_the_same_maps(caplog: pytest.LogCaptureFixture) -> None:
    images, forward = random_images(512), tiny_forward(512, "cuda")
    expected = tiny_forward(8, "cuda")({"images": images})
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 200 * 2**20  # the images as floats take 150 MB
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        parts = forward({"images": images})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "cuda:0: not enough memory for 512 images at a time; using 256" in caplog.text
    assert forward.batch_size < 512
    assert_close_maps(parts, expected)


def test_error_other_than_out_of_memory_is_raised_unchanged() -> None:
    forward = tiny_forward(4)
    forward.annotator.double()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="type"):
        forward({"images": random_images(2)})
    assert forward.batch_size == 4


def test_float16_is_recorded_and_close_to_float32(
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
def test_compiled_annotator_gives_the_same_maps() -> None:  # would pass on a CPU too, but takes minutes there
    eager, compiled = tiny_forward(2, "cuda"), tiny_forward(2, "cuda")
    compiled.compile()
    images = random_images(5)  # batches of 2, 2 and 1
    with torch.inference_mode():
        assert_close_maps(compiled({"images": images}), eager({"images": images}))
