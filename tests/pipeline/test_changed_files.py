"""Pictures that changed under the same names after they were annotated: verify finds them, and train warns of them."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from PIL import Image

from relabel.labels.shards import shard_name
from relabel.runtime.files import sha256_of
from tests.conftest import Relabel
from tests.pipeline.test_verify import rewrite

IMAGE = "dog/dog_3.JPEG"


@pytest.fixture
def findings(relabel_here: Relabel, labels: Path) -> Callable[..., list[str]]:
    def run(*options: object) -> list[str]:
        finished = relabel_here("verify", labels, *options, "--min-agreement", 0)
        lines = finished.stdout.splitlines()
        found = [line for line in lines if line.startswith("ERROR ")]
        assert finished.returncode == bool(found)
        return found

    return run


Findings = Callable[..., list[str]]


def flip_a_bit(path: Path) -> None:
    """In the last row of pixels, so that the image has the same size and can still be decoded."""
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def test_shards_record_the_size_and_sha256_of_every_image_file(undisturbed: Path, image_folder: Path) -> None:
    for shard in range(3):
        with h5py.File(undisturbed / shard_name(shard)) as file:
            for key, size, sha256 in zip(file["keys"], file["file_size"], file["file_sha256"], strict=True):
                path = image_folder / key.decode()
                assert (size, sha256.tobytes().hex()) == (path.stat().st_size, sha256_of(path))


def test_image_file_of_another_size_is_found(findings: Findings, image_folder: Path) -> None:
    assert findings("--images", image_folder) == []
    Image.new("RGB", (60, 33)).save(image_folder / IMAGE)
    (found,) = findings("--images", image_folder)
    assert "the files of 1 of 9 images have another size than when they were annotated (first: dog/dog_3.JPEG)" in found


def test_changed_content_of_the_same_size_is_found_by_reading_it(findings: Findings, image_folder: Path) -> None:
    flip_a_bit(image_folder / IMAGE)
    assert findings("--images", image_folder) == []
    (found,) = findings("--images", image_folder, "--contents")
    assert "the files of 1 of 9 images have another content" in found and IMAGE in found


def test_file_that_is_no_image_any_more_is_a_finding_among_the_others(findings: Findings, image_folder: Path) -> None:
    (image_folder / IMAGE).write_bytes(b"x" * (image_folder / IMAGE).stat().st_size)
    (image_folder / "eel/eel_0.JPEG").write_bytes(b"x")
    (image_folder / "cat/cat_0.JPEG").unlink()
    found = findings("--images", image_folder, "--contents")
    assert any("the files of 2 of 8 images have another content" in finding and IMAGE in finding for finding in found)
    assert any("cat/cat_0.JPEG" in finding for finding in found)


def test_changed_content_in_a_tar_is_found(findings: Findings, image_folder: Path, tmp_path: Path) -> None:
    flip_a_bit(image_folder / IMAGE)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(image_folder, ".")
    assert findings("--images", tmp_path / "train.tar") == []
    assert len(findings("--images", tmp_path / "train.tar", "--contents")) == 1


def test_label_set_that_records_no_files_says_that_they_are_not_checked(
    labels: Path, relabel_here: Relabel, image_folder: Path
) -> None:
    rewrite(labels, 1, lambda file: (file.pop("file_size"), file.pop("file_sha256")))
    Image.new("RGB", (60, 33)).save(image_folder / "dog/dog_3.JPEG")  # of shard 1
    finished = relabel_here("verify", labels, "--images", image_folder, "--min-agreement", 0)
    assert finished.returncode == 0
    assert "3 images: the size of their files was not recorded, so it is not checked" in finished.stdout


def test_contents_need_the_images(relabel_here: Relabel, labels: Path) -> None:
    assert (
        "--contents needs the images; give their folder with --images" in relabel_here("verify", labels, "--contents").stderr
    )


@pytest.mark.slow
def test_train_warns_of_changed_files(relabel_here: Relabel, labels: Path, image_folder: Path, tmp_path: Path) -> None:
    def train(run: str) -> str:
        sizes = [f"--set={s}" for s in ("epochs=1", "warmup_epochs=0", "batch_size=4", "image_size=32", "eval_size=32")]
        options = ["--arch=resnet10t", "--recipe=relabel", *sizes, "--workers=0", "--device=cpu"]
        finished = relabel_here("train", image_folder, "--labels", labels, "--run-dir", tmp_path / run, *options)
        assert finished.returncode == 0, finished.stderr
        return finished.stderr + finished.stdout

    assert "another size" not in train("same")
    Image.new("RGB", (60, 33)).save(image_folder / IMAGE)
    os.utime(image_folder / IMAGE)
    assert f"1 of 9 image files have another size than when {labels} was made (first: {IMAGE})" in train("changed")
