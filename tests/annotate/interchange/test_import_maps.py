"""Published maps, one .pt per image, become a label set: from a folder or a tar, safely, with either axis order."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from annotate.interchange.import_maps import import_maps
from pipeline.verify import verify
from relabel.labels.boxes import whole_image
from relabel.labels.pooling import label_pool
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from tests.conftest import refusal

NAMES = ("cat/a", "cat/b", "dog/c", "dog/d", "dog/e")
CLASSES = 7


def published(seed: int, half: bool = False) -> torch.Tensor:
    """[2, 3, 2, 4]: three scores and their classes in each of 2x4 cells."""
    generator = torch.Generator().manual_seed(seed)
    scores, classes = torch.randn(CLASSES, 2, 4, generator=generator).topk(3, dim=0)
    stored = torch.stack([scores, classes.float()])
    return stored.half() if half else stored


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        path = tmp_path / "top3" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(published(i, half=i % 2 == 1), path)  # some published maps are float16
    return tmp_path / "top3"


def assert_holds_the_maps(labels: Path, transposed: bool = False) -> None:
    store = LabelStore.open(labels)
    assert store.keys == [f"{name}.JPEG" for name in NAMES]
    assert store.manifest.tail == "zero" and store.manifest.kind == "imported"
    stored = store.gather(store.rows(store.keys))
    for i in range(len(NAMES)):
        scores, classes = published(i).transpose(2, 3) if transposed else published(i)
        assert torch.equal(stored.scores[i], scores.half())
        assert torch.equal(stored.classes[i].float(), classes)
    assert stored.tail.abs().max() == 0


def test_folder_and_tar_give_the_same_label_set(maps: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "maps.tar", "w") as tar:
        for name in NAMES[::-1]:  # in another order
            tar.add(maps / f"{name}.pt", f"imagenet_top3/{name}.pt")
    import_maps(maps, tmp_path / "from_folder", CLASSES, shard_size=2)
    import_maps(tmp_path / "maps.tar", tmp_path / "from_tar", CLASSES, shard_size=2, workers=0)
    assert_holds_the_maps(tmp_path / "from_folder")
    assert_holds_the_maps(tmp_path / "from_tar")
    for shard in (tmp_path / "from_folder").glob("*.h5"):
        assert shard.read_bytes() == (tmp_path / "from_tar" / shard.name).read_bytes()


def test_transposed_maps_are_transposed_back(maps: Path, tmp_path: Path) -> None:
    import_maps(maps, tmp_path / "labels", CLASSES, axes="xy")
    assert_holds_the_maps(tmp_path / "labels", transposed=True)


def test_class_that_is_not_stored_counts_as_zero_as_in_the_papers_code(maps: Path, tmp_path: Path) -> None:
    import_maps(maps, tmp_path / "labels", CLASSES)
    store = LabelStore.open(tmp_path / "labels")
    pooled = label_pool(store.gather(store.rows(["cat/a.JPEG"])), whole_image(1), CLASSES)
    scores, classes = published(0)
    by_hand = torch.zeros(CLASSES, 2, 4).scatter_(0, classes.long(), scores).mean((1, 2))
    torch.testing.assert_close(pooled[0], by_hand, atol=2e-3, rtol=2e-3)


def test_images_give_the_keys_their_true_extensions(maps: Path, tmp_path: Path) -> None:
    for name, extension in zip(NAMES, ("png", "JPEG", "jpg", "JPEG", "JPEG"), strict=True):
        path = tmp_path / "images" / f"{name}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    import_maps(maps, tmp_path / "labels", CLASSES, images=tmp_path / "images")
    assert LabelStore.open(tmp_path / "labels").keys[:3] == ["cat/a.png", "cat/b.JPEG", "dog/c.jpg"]
    (tmp_path / "images" / "dog" / "e.JPEG").unlink()
    with pytest.raises(InputError, match=r"1 maps have no image .* \(first: .*dog/e\.pt"):
        import_maps(maps, tmp_path / "other", CLASSES, images=tmp_path / "images")


def test_invalid_files_are_all_listed_and_a_rerun_keeps_finished_shards(maps: Path, tmp_path: Path) -> None:
    torch.save(torch.zeros(2, 3, 4, 2), maps / "dog/c.pt")
    (maps / "dog/d.pt").write_bytes((maps / "dog/d.pt").read_bytes()[:40])
    with pytest.raises(InputError) as caught:
        import_maps(maps, tmp_path / "labels", CLASSES, shard_size=2)
    message = str(caught.value)
    assert "2 invalid maps in shard 1 of 3" in message
    assert "dog/c.pt: shape [2, 3, 4, 2], but the first map has [2, 3, 2, 4]" in message
    assert "dog/d.pt: not a tensor file" in message
    before = (tmp_path / "labels" / "shard-00000.h5").stat().st_mtime_ns
    torch.save(published(2), maps / "dog/c.pt")
    torch.save(published(3), maps / "dog/d.pt")
    import_maps(maps, tmp_path / "labels", CLASSES, shard_size=2)
    assert_holds_the_maps(tmp_path / "labels")
    assert (tmp_path / "labels" / "shard-00000.h5").stat().st_mtime_ns == before


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_disappears_before_it_is_read_is_reported(maps: Path, tmp_path: Path, workers: int) -> None:
    (maps / "cat/c.pt").symlink_to("gone.pt")
    with pytest.raises(InputError, match=r"1 invalid maps in shard 0 of 1:\n  .*cat/c\.pt: No such file or directory\nFix"):
        import_maps(maps, tmp_path / "labels", CLASSES, workers=workers)


def test_class_indices_that_their_dtype_cannot_represent_are_rejected(maps: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class indices are torch\.float16, which is exact only up to 2048"):
        import_maps(maps, tmp_path / "labels", 2050)
    import_maps(maps, tmp_path / "other", 2049)


class Malice:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_file_with_code_is_rejected_and_not_run(maps: Path, tmp_path: Path) -> None:
    torch.save(Malice(tmp_path / "ran"), maps / "cat/b.pt")
    with pytest.raises(InputError, match=r"cat/b\.pt: not a tensor file"):
        import_maps(maps, tmp_path / "labels", CLASSES)
    assert not (tmp_path / "ran").exists()


def test_unusable_source_is_rejected_with_the_reason(maps: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty contains no \.pt files"):
        import_maps(tmp_path / "empty", tmp_path / "labels", CLASSES)
    with pytest.raises(InputError, match="nowhere does not exist"):
        import_maps(tmp_path / "nowhere", tmp_path / "labels", CLASSES)
    packed = shutil.make_archive(str(tmp_path / "maps"), "gztar", maps)
    with pytest.raises(InputError, match="not an uncompressed tar"):
        import_maps(Path(packed), tmp_path / "labels", CLASSES)
    with pytest.raises(InputError, match="class indices below 3; check --num-classes"):
        import_maps(maps, tmp_path / "labels", 3)
    shutil.copytree(maps, maps / "again")
    with pytest.raises(InputError, match="are both maps of"):
        import_maps(maps, tmp_path / "labels", CLASSES)


def test_name_that_was_cut_at_its_first_dot_finds_its_image(maps: Path, tmp_path: Path) -> None:
    for name in ("cat/a.x.JPEG", "cat/b.JPEG", "dog/c.1.png", "dog/d.JPEG", "dog/e.JPEG"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    import_maps(maps, tmp_path / "labels", CLASSES, images=tmp_path / "images")
    assert LabelStore.open(tmp_path / "labels").keys[:3] == ["cat/a.x.JPEG", "cat/b.JPEG", "dog/c.1.png"]
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "dog" / "c.2.png")  # which of the two is not known
    with pytest.raises(InputError, match=r"1 maps have no image .* \(first: .*dog/c\.pt"):
        import_maps(maps, tmp_path / "other", CLASSES, images=tmp_path / "images")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stored: stored[0].fill_(1e30), "its scores are not finite numbers of float16"),
        (lambda stored: stored[0, 0, 0].fill_(float("nan")), "its scores are not finite numbers of float16"),
        (lambda stored: stored[1, 1].copy_(stored[1, 0]), "a cell has a class twice"),
    ],
)
def test_map_that_verify_would_refuse_is_not_imported(tmp_path: Path, change: Any, reason: str) -> None:
    stored = torch.stack([torch.randn(2, 3, 4), torch.arange(2).view(2, 1, 1).expand(2, 3, 4).float()])
    (tmp_path / "maps" / "cat").mkdir(parents=True)
    torch.save(stored, tmp_path / "maps" / "cat" / "a.pt")
    torch.save(stored.clone().requires_grad_(), tmp_path / "maps" / "cat" / "b.pt")
    import_maps(tmp_path / "maps", tmp_path / "labels", 7, workers=1)
    assert verify(tmp_path / "labels").findings == []
    change(stored)
    torch.save(stored, tmp_path / "maps" / "cat" / "a.pt")
    message = refusal(lambda: import_maps(tmp_path / "maps", tmp_path / "other", 7, workers=0))
    assert f"{tmp_path}/maps/cat/a.pt: {reason}" in message


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (torch.ones(2, 2, 3, 4).to_sparse(), "the tensor is not dense"),
        (torch.ones(2, 2, 3, 4, device="meta"), "the tensor is without values"),
        (torch.ones(1).expand(2, 2000, 300, 400), "the tensor is an expanded view"),
        (torch.ones(2, 0, 3, 4), "found [2, 0, 3, 4]"),
        (torch.ones(2, 2, 3, 4, dtype=torch.complex64), "the tensor is complex"),
    ],
)
def test_map_that_is_no_array_of_numbers_is_named(tmp_path: Path, stored: torch.Tensor, reason: str) -> None:
    (tmp_path / "maps" / "cat").mkdir(parents=True)
    torch.save(stored, tmp_path / "maps" / "cat" / "a.pt")
    message = refusal(lambda: import_maps(tmp_path / "maps", tmp_path / "labels", 7, workers=0))
    assert f"{tmp_path}/maps/cat/a.pt: {reason}" in message
