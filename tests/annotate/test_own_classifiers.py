"""A user's own classifiers from end to end: timm model folders, unusual sizes and many classes, up to a crop's logits."""

from pathlib import Path
from typing import Any

import h5py
import pytest
import timm
import torch
from torch import nn

from annotate.convert import fully_convolutional
from annotate.squash import Squash
from relabel.images.decoding import read_rgb
from relabel.labels.manifest import Manifest
from relabel.labels.pooling import label_pool
from relabel.labels.shards import shard_name
from relabel.labels.store import LabelStore
from relabel.models.weights import weights_in_folder
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from tests.conftest import THIN, Randomised, Relabel

KEY = "eel/eel_1.JPEG"
BOX = torch.tensor([[0.1, 0.3, 0.7, 0.8]])


def dense_map(classifier: nn.Module, images: Path, size: tuple[int, int], **options: Any) -> torch.Tensor:
    """(1, C, H, W) logits of one image, straight from the annotator."""
    squash = Squash.of_model(classifier, size)
    with torch.inference_mode():
        pixels = squash.normalise(squash(read_rgb(images / KEY))[None])
        logits: torch.Tensor = fully_convolutional(classifier, size, **options)(pixels)
    return logits


@pytest.mark.parametrize(("classes", "dtype"), [(21_843, "uint16"), (70_000, "uint32")])
def test_many_classes_survive_from_annotate_to_the_logits_of_a_crop(
    relabel_here: Relabel,
    randomised: Randomised,
    image_folder: Path,
    tmp_path: Path,
    tiny_options: list[str],
    classes: int,
    dtype: str,
) -> None:
    torch.manual_seed(0)
    classifier: Any = randomised(timm.create_model("resnet10t", num_classes=classes, **THIN), size=(32, 56))
    with torch.no_grad():  # make the last classes win, whose indices may not fit in 16 bits
        classifier.fc.bias[classes - 100 :] += 50
    torch.save(classifier.state_dict(), tmp_path / "x.pth")
    labels = tmp_path / "labels"
    options = [*tiny_options, "--checkpoint", tmp_path / "x.pth", "--num-classes", classes, "--topk=3"]
    finished = relabel_here("annotate", image_folder, "--labels", labels, *options)
    assert finished.returncode == 0, finished.stderr
    with h5py.File(labels / shard_name(0)) as shard:
        assert shard["classes"].dtype == dtype
    verified = relabel_here("verify", labels)  # without the images, which have only three classes
    assert verified.returncode == 0 and f"top 3 of {classes} classes" in verified.stdout
    store = LabelStore.open(labels)
    maps = store.gather(store.rows([KEY]))
    logits = dense_map(classifier, image_folder, (32, 56))
    best = logits.topk(3, dim=1).indices
    assert torch.equal(maps.classes.long(), best) and int(best.min()) >= classes - 100
    pooled = label_pool(maps, BOX, num_classes=classes)
    assert pooled.shape == (1, classes)
    assert int(pooled.argmax()) in best.flatten().tolist()


def test_model_folder_saved_by_timm_annotates_at_a_chosen_size(
    relabel_here: Relabel, randomised: Randomised, image_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    trained: Any = randomised(timm.create_model("test_vit2", num_classes=3))
    nn.init.normal_(trained.pos_embed, std=0.1)
    timm.models.save_for_hf(trained, tmp_path / "mine", safe_serialization=True)
    labels = tmp_path / "labels"
    run = ["annotate", image_folder, "--labels", labels, f"--model=local-dir:{tmp_path / 'mine'}"]
    run += ["--input-size=64x96", "--topk=3", "--device=cpu", "--workers=0"]
    finished = relabel_here(*run)
    assert finished.returncode == 0, finished.stderr
    manifest = Manifest.load(labels)
    assert (manifest.input_size, manifest.grid, manifest.kind) == ((64, 96), (4, 6), "nonlinear")
    weights = tmp_path / "mine" / "model.safetensors"
    assert (manifest.weights, manifest.weights_sha256) == (weights.name, sha256_of(weights))
    trained.set_input_size(img_size=(64, 96))
    store = LabelStore.open(labels)
    stored = store.gather(store.rows([KEY])).dense(3)
    torch.testing.assert_close(stored, dense_map(trained, image_folder, (64, 96)), atol=5e-3, rtol=5e-3)

    check = ["verify", labels, "--images", image_folder, "--min-agreement", 0, "--spot-check", 2, "--device=cpu"]
    checked = relabel_here(*check, "--checkpoint", weights)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert relabel_here(*check).returncode == 0  # the folder still holds the recorded weights

    timm.models.save_for_hf(randomised(trained, seed=1), tmp_path / "mine", safe_serialization=True)  # trained further
    again = relabel_here(*run)
    assert again.returncode == 1 and "weights_sha256: " in again.stderr
    checked = relabel_here(*check)
    assert checked.returncode == 1 and "model.safetensors is not the checkpoint" in checked.stderr


def push(repository: Path, classifier: nn.Module, revision: str) -> None:
    """Write what the Hugging Face hub's cache contains after this revision of a repository was downloaded."""
    timm.models.save_for_hf(classifier, repository / "snapshots" / revision, safe_serialization=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(revision)


@pytest.mark.slow
def test_classifier_from_the_hub_annotates_and_its_later_revisions_are_rejected(
    relabel_here: Relabel, randomised: Randomised, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    repository = tmp_path / "hf" / "hub" / "models--me--mine"
    torch.manual_seed(0)
    classifier = randomised(timm.create_model("test_resnet", num_classes=3))
    push(repository, classifier, "1111")
    labels = tmp_path / "labels"
    run = ["annotate", image_folder, "--labels", labels, "--model=hf-hub:me/mine", "--input-size=64x96"]
    run += ["--topk=3", "--device=cpu", "--workers=0"]
    finished = relabel_here(*run)
    assert finished.returncode == 0, finished.stderr
    manifest = Manifest.load(labels)
    pushed = repository / "snapshots" / "1111" / "model.safetensors"
    assert (manifest.model, manifest.weights, manifest.weights_sha256) == ("hf-hub:me/mine", "pretrained", sha256_of(pushed))
    store = LabelStore.open(labels)
    stored = store.gather(store.rows([KEY])).dense(3)
    torch.testing.assert_close(stored, dense_map(classifier, image_folder, (64, 96)), atol=5e-3, rtol=5e-3)
    check = ["verify", labels, "--images", image_folder, "--min-agreement", 0, "--spot-check", 2, "--device=cpu"]
    assert relabel_here(*check).returncode == 0

    push(repository, randomised(classifier, seed=1), "2222")  # trained further
    again = relabel_here(*run)
    assert again.returncode == 1 and f"weights_sha256: '{sha256_of(pushed)}', not " in again.stderr
    checked = relabel_here(*check)
    assert checked.returncode == 1
    assert f"the published weights of hf-hub:me/mine have changed since {labels} was made" in checked.stderr


def test_weights_in_a_model_folder_are_chosen_by_file_name(tmp_path: Path) -> None:
    model = f"local-dir:{tmp_path}"
    (tmp_path / "config.json").touch()
    assert weights_in_folder(model) is None and weights_in_folder("resnet50") is None
    (tmp_path / "mine.pth").touch()
    assert weights_in_folder(model) == tmp_path / "mine.pth"
    (tmp_path / "yours.pth").touch()
    with pytest.raises(InputError, match=r"several weights files \(mine\.pth, yours\.pth\); keep only one, or rename"):
        weights_in_folder(model)
    (tmp_path / "pytorch_model.bin").touch()
    assert weights_in_folder(model) == tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").touch()
    assert weights_in_folder(model) == tmp_path / "model.safetensors"


def test_size_that_a_model_cannot_be_built_for_gets_a_one_line_message(
    relabel_here: Relabel, randomised: Randomised, image_folder: Path, tmp_path: Path
) -> None:
    torch.save(randomised(timm.create_model("nest_tiny_jx", num_classes=3)).state_dict(), tmp_path / "x.pth")
    options = ["--model=nest_tiny_jx", "--checkpoint", tmp_path / "x.pth", "--num-classes=3", "--topk=1", "--device=cpu"]
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *options, "--input-size=64x96")
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1
    assert "cannot create nest_tiny_jx with {'img_size': (64, 96)}: Model only handles square inputs" in finished.stderr
