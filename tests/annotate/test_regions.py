"""`relabel annotate --regions`: the answers to random crops, against a slow loop over the same crops with plain torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from annotate.regions import draw_regions, sparse_answers
from relabel.labels.manifest import Manifest
from relabel.labels.regions import MIRRORED, LabelRegions, window_of
from relabel.labels.store import LabelStore
from tests.conftest import CLASS_SIZES, THIN, Relabel, randomise, refusal
from tests.processes import relabel_in_two

SIZE = (32, 56)
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.fixture
def options(tiny_options: list[str]) -> list[str]:
    return [*tiny_options, "--regions=5", "--topk=2"]


def answer(model: nn.Module, image: Image.Image, window: tuple[int, ...], mirrored: bool, size: tuple[int, int]) -> Tensor:
    """(C,) log-probabilities of one crop, by plain Pillow and torch."""
    rows, columns = size
    pixels = pil_to_tensor(image.crop(window).resize((columns, rows), Image.Resampling.BICUBIC))
    normalised = pixels.float() / 255
    settings: Any = model.pretrained_cfg
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    batch = ((normalised - mean) / std).unsqueeze(0)
    with torch.inference_mode():
        logits: Tensor = model(batch.flip(3) if mirrored else batch)
    return logits[0].log_softmax(0)


def load(checkpoint: Path) -> nn.Module:
    classifier: nn.Module = timm.create_model("resnet10t", num_classes=3, **THIN)
    classifier.load_state_dict(torch.load(checkpoint))
    return classifier.eval()


def expected_of(store: LabelStore[LabelRegions], images: Path, models: list[tuple[nn.Module, tuple[int, int]]]) -> Tensor:
    """(N, regions, C) targets of every stored region, from its box and its flags."""
    regions = store.gather(store.rows(store.keys))
    of_images = []
    for key, boxes, flags in zip(store.keys, regions.boxes, regions.flags, strict=True):
        image = Image.open(images / key).convert("RGB")
        windows = [window_of(box, *image.size) for box in boxes]
        mirrored = (flags & MIRRORED).bool().tolist()
        answers = [
            torch.stack(
                [answer(model, image, window, mirror, size) for window, mirror in zip(windows, mirrored, strict=True)]
            )
            for model, size in models
        ]
        of_images.append(torch.stack(answers).mean(0).softmax(1))
    return torch.stack(of_images)


def test_targets_are_the_classifiers_answers_to_the_stored_crops(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, options: list[str], tiny_checkpoint: Path
) -> None:
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *options, "--topk=3")
    assert finished.returncode == 0, finished.stderr
    store = LabelStore.open(tmp_path / "labels", LabelRegions)
    targets = store.gather(store.rows(store.keys)).dense(3).softmax(2)
    torch.testing.assert_close(targets, expected_of(store, image_folder, [(load(tiny_checkpoint), SIZE)]), atol=1e-3, rtol=0)


def test_stored_classes_keep_their_probabilities_and_the_others_share_the_rest() -> None:
    log_probs = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(1)
    targets = sparse_answers(log_probs, 4, "logmeanexp").dense(11).softmax(1)
    for target, exact in zip(targets, log_probs.exp(), strict=True):
        order = exact.argsort(descending=True)
        torch.testing.assert_close(target[order[:4]], exact[order[:4]])
        torch.testing.assert_close(target[order[4:]], exact[order[4:]].mean().expand(7))


def test_ensemble_averages_log_probabilities_of_models_that_make_no_maps(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    torch.manual_seed(1)
    vit = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, **VIT), 1)
    vit.load_state_dict({name: value * 3 if "head" in name else value for name, value in vit.state_dict().items()})
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    kwargs = [f"--model-kwargs={name}={value}" for name, value in VIT.items()]
    labels = tmp_path / "labels"
    options = ["--num-classes=3", "--regions=3", "--topk=3", "--workers=0", "--batch-size=4", "--input-size=32"]
    alone = ["--model=vit_tiny_patch16_224", f"--checkpoint={tmp_path / 'vit.pth'}", *kwargs]
    finished = relabel_here("annotate", image_folder, "--labels", labels, *alone, *alone[:2], *options)
    assert finished.returncode == 0, finished.stderr
    store = LabelStore.open(labels, LabelRegions)
    assert store.manifest.ensemble is not None and store.manifest.ensemble[0].model == "vit_tiny_patch16_224"
    targets = store.gather(store.rows(store.keys)).dense(3).softmax(2)
    expected = expected_of(store, image_folder, [(vit.eval(), (32, 32))])
    torch.testing.assert_close(targets, expected, atol=1e-3, rtol=0)
    assert float(expected.std(0).max()) > 0.02, "else any answers would do"


def test_crops_depend_only_on_key_and_number() -> None:
    size, scale, ratio = (61, 40), (0.08, 1.0), (0.75, 1.3333)
    few, many = (draw_regions("cat/1.JPEG", size, count, scale, ratio) for count in (3, 20))
    assert many[:3] == few
    assert draw_regions("cat/2.JPEG", size, 20, scale, ratio) != many
    shares = [(right - left) * (bottom - top) / (61 * 40) for (left, top, right, bottom), _ in many]
    assert not any(mirrored for _, mirrored in draw_regions("cat/1.JPEG", size, 20, scale, ratio, hflip=0))
    assert min(shares) < 0.3 and max(shares) > 0.6 and 0 < sum(mirrored for _, mirrored in many) < 20


def test_stored_boxes_are_the_windows_to_the_pixel(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, options: list[str]
) -> None:
    scale = ["--crop-scale=0.2,0.5", "--crop-ratio=0.5,2"]
    assert relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *options, *scale).returncode == 0
    store = LabelStore.open(tmp_path / "labels", LabelRegions)
    assert (store.manifest.crop_scale, store.manifest.crop_ratio) == ((0.2, 0.5), (0.5, 2))
    regions = store.gather(store.rows(store.keys))
    for key, boxes, flags in zip(store.keys, regions.boxes, regions.flags, strict=True):
        size = Image.open(image_folder / key).size
        stored = [(window_of(box, *size), bool(flag)) for box, flag in zip(boxes, flags.tolist(), strict=True)]
        assert stored == draw_regions(key, size, 5, (0.2, 0.5), (0.5, 2))


@pytest.mark.parametrize("width", [1, 500, 65_535])
def test_windows_come_back_exactly_from_16_bits(width: int) -> None:
    edges = np.unique(np.linspace(1, width, 2000).astype(int))
    boxes = torch.tensor([[0, 0, edge, edge] for edge in edges.tolist()], dtype=torch.float64) / width
    zeros = torch.zeros(len(edges), 1)
    regions = LabelRegions(boxes.unsqueeze(1), zeros, zeros.unsqueeze(2), zeros.unsqueeze(2), zeros, zeros[:, 0])
    stored = LabelRegions.from_stored(regions.as_stored(1).tensors())
    assert [window_of(box, width, width)[2] for box in stored.boxes[:, 0]] == edges.tolist()


@pytest.mark.slow
def test_bytes_do_not_depend_on_batches_processes_or_interruptions(
    relabel_here: Relabel,
    image_folder: Path,
    tmp_path: Path,
    options: list[str],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert relabel_here("annotate", image_folder, "--labels", alone, *options, "--workers=2").returncode == 0
    both = relabel_in_two("annotate", image_folder, "--labels", shared, *options)
    assert [done.returncode for done in both] == [0, 0], both
    assert contents(alone) == contents(shared)
    (shared / "shard-00001.h5").unlink()
    assert relabel_here("annotate", image_folder, "--labels", shared, *options).returncode == 0
    assert contents(alone) == contents(shared)


def test_set_of_regions_is_not_continued_with_other_crops(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, options: list[str], tiny_options: list[str]
) -> None:
    labels = tmp_path / "labels"
    assert relabel_here("annotate", image_folder, "--labels", labels, *options).returncode == 0
    said = relabel_here("annotate", image_folder, "--labels", labels, *options, "--crop-scale=0.5,1").stderr
    assert "different settings (crop_scale: [0.08, 1.0], not [0.5, 1.0]" in said
    assert "regions: 5, not None" in relabel_here("annotate", image_folder, "--labels", labels, *tiny_options).stderr


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (["--regions=0"], "regions is 0; expected at least 1"),
        (["--regions=70000"], "--regions 70000: expected at most 65535"),
        (["--flip"], "--flip is for label maps; regions do not need it"),
        (["--tail=zero"], "--tail zero is for label maps; use logmeanexp or mean for regions"),
        (["--crop-scale=0.5"], "--crop-scale '0.5': expected two numbers, as MIN,MAX"),
        (["--crop-scale=0.5,2"], "--crop-scale 0.5,2: expected 0 < smallest <= largest <= 1"),
        (["--hflip=1.5"], "--hflip 1.5: expected a probability within [0, 1]"),
        (["--crop-ratio=2,nan"], "--crop-ratio 2,nan: expected 0 < smallest <= largest"),
        (["--model=resnet10t"], "1 --checkpoint for 2 --model: expected one for each, or none"),
    ],
)
def test_unsuitable_option_gets_a_message(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, options: list[str], added: list[str], said: str
) -> None:
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *options, *added)
    assert finished.returncode == 1 and said in finished.stderr
    assert not (tmp_path / "labels").exists()


def test_crop_options_need_regions(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, tiny_options: list[str]
) -> None:
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "l", *tiny_options, "--crop-scale=0.5,1")
    assert "--crop-scale needs --regions: a label map is made of the whole image" in finished.stderr


def test_label_maps_where_regions_are_expected_are_refused(undisturbed: Path) -> None:
    said = refusal(lambda: LabelStore.open(undisturbed, LabelRegions))
    assert said == f"{undisturbed} holds label maps; expected regions here"
    assert sum(CLASS_SIZES.values()) == len(LabelStore.open(undisturbed))


def test_manifest_of_regions_is_read_back_as_saved(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, options: list[str]
) -> None:
    labels = tmp_path / "labels"
    twice = [option for option in options if option.startswith(("--model=", "--checkpoint="))]
    assert relabel_here("annotate", image_folder, "--labels", labels, *options, *twice).returncode == 0
    fields = json.loads((labels / "manifest.json").read_text())
    manifest = Manifest.load(labels)
    manifest.save(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == fields
    assert manifest.grid is None and manifest.ensemble is not None and len(manifest.ensemble) == 1
    fields["ensemble"][0]["std"] = "wide"
    del fields["sha256"]
    (labels / "manifest.json").write_text(json.dumps(fields))
    assert "ensemble" in refusal(lambda: Manifest.load(labels))
