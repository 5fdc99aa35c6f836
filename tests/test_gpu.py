"""The same code on a CUDA device: maps equal the CPU's, and training runs in bfloat16 with its labels resident there."""

import logging
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3

from benchmarks.training_step import resident_crops, training_step
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from tests.label_sets import write_label_set
from train.loop import train
from train.options import TrainOptions
from train.recipe import load_recipe
from train.run_dir.metrics import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_annotating_on_the_gpu_gives_the_cpus_maps(
    relabel_here: Callable[..., "CompletedProcess[str]"], image_folder: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    for device in ("cpu", "cuda"):
        options = [*tiny_options, f"--device={device}"]  # the last one counts
        done = relabel_here("annotate", image_folder, "--labels", tmp_path / device, *options)
        assert done.returncode == 0, done.stderr
    maps = [(store := LabelStore.open(tmp_path / device)).gather(store.rows(store.keys)) for device in ("cpu", "cuda")]
    torch.testing.assert_close(maps[0].dense(3), maps[1].dense(3), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("more", [{}, {"amp_dtype": "float16"}, {"amp": False}, {"compile": True}])
def test_training_on_the_gpu_reads_its_labels_there(
    relabel_here: Callable[..., "CompletedProcess[str]"],
    image_folder: Path,
    tiny_options: list[str],
    tmp_path: Path,
    more: dict[str, Any],
) -> None:
    done = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert done.returncode == 0, done.stderr
    sizes = ["epochs=3", "warmup_epochs=1", "batch_size=4", "image_size=32", "eval_size=32"]
    thin = {"stem_width": 8, "channels": (8, 8, 8, 16)}
    options = TrainOptions(tmp_path / "labels", image_folder, model_kwargs=thin, device="cuda", workers=1, **more)
    train(image_folder, tmp_path / "run", "resnet10t", load_recipe("scenes-relabel", sizes), options)
    last = read_metrics(tmp_path / "run")[-1]
    assert last["step"] == 6 and last["val"]["images"] == 9 and last["loss"] < 10
    assert LabelStore.open(tmp_path / "labels").to("cuda").gather(torch.tensor([8, 0])).scores.device.type == "cuda"


def test_label_set_beyond_half_of_the_free_memory_is_read_from_its_files_and_gives_the_same_maps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logits = torch.randn(3000, 8, 15, 15, generator=torch.Generator().manual_seed(0))
    maps = LabelMaps(*logits.topk(5, dim=1), logits.mean(1))
    write_label_set(tmp_path / "set", [f"cat/{i:04}.JPEG" for i in range(3000)], maps, 8, shard_size=1000)
    resident, other = LabelStore.open(tmp_path / "set").to("cuda"), LabelStore.open(tmp_path / "set")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    filling = torch.empty(free - other.nbytes * 3 // 2, dtype=torch.uint8, device="cuda")
    with caplog.at_level(logging.INFO):
        other.to("cuda")
    del filling
    assert resident.resident and not other.resident
    assert f"{tmp_path}/set: 0.0 GB of label maps are read from the files" in caplog.text
    rows = torch.randint(3000, (64,))
    for name in ("scores", "classes", "tail"):
        mine, theirs = (getattr(store.gather(rows), name) for store in (other, resident))
        assert mine.device.type == "cuda" and mine.dtype == theirs.dtype and torch.equal(mine.cpu(), theirs.cpu())


def test_step_towards_label_maps_never_waits_for_the_gpu(tmp_path: Path) -> None:
    device = torch.device("cuda")
    logits = torch.randn(8, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    maps = LabelMaps(*logits.topk(3, dim=1), logits.mean(1))
    write_label_set(tmp_path / "set", [f"cat/{i}.JPEG" for i in range(8)], maps, 5)
    settings = ["optimizer=sgd", "cutmix_target=regions", "folder_share=0.2", "lr=1e-3", "ema=0.9"]
    recipe = load_recipe("relabel-cutmix", settings)  # jitters and lights colours, too
    step = training_step("resnet10t", recipe, LabelStore.open(tmp_path / "set").to(device), torch.bfloat16, device)
    assert isinstance(step.forward, torch.nn.Module)
    ema = ModelEmaV3(step.forward, decay=recipe.ema, use_warmup=True)
    crops = resident_crops(8, 64, 8, 5, device)
    try:
        for number in range(6):
            if number == 3:  # kernels are chosen and constants on the device by then
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            counted = step(crops, number, 0)
            ema.update(step.forward, number + 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted[0] == 8 and bool(counted.isfinite().all())
