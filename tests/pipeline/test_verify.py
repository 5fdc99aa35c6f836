"""`relabel verify`: every kind of damage gives exit code 1 and a finding, one line that says where it is and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from relabel.images.sources import find_images
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import SHARD_LINES, ShardLine, append_shard_line, read_shard_lines, write_shard_lines
from relabel.labels.shards import shard_name
from relabel.runtime.files import sha256_of
from tests.conftest import Relabel
from tests.label_sets import write_label_set
from tests.processes import start_relabel


@pytest.fixture
def verify(relabel_here: Relabel, labels: Path) -> Callable[..., list[str]]:
    """Verify the copied label set and return its findings. Exit code and last line must agree with them."""

    def run(*options: object) -> list[str]:
        finished = relabel_here("verify", labels, *options)
        lines = finished.stdout.splitlines()
        found = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
        assert finished.returncode == (1 if found else 0)
        count = f"{len(found)} error{'s' * (len(found) != 1)}"
        assert lines[-1] == (count if found else "OK")
        return found

    return run


Verify = Callable[..., list[str]]


def damage(path: Path, content: bytes) -> None:
    path.unlink()  # not in place: the file may still be memory-mapped
    path.write_bytes(content)


def rewrite(labels: Path, shard: int, change: Callable[[h5py.File], object]) -> None:
    """Change a shard's arrays and its recorded hash, as if a writer with a bug had written them."""
    path = labels / shard_name(shard)
    damage(path, path.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    lines = read_shard_lines(labels)
    old = lines[shard]
    lines[shard] = ShardLine(shard, old.file, old.rows, sha256_of(path), old.unreadable)
    write_shard_lines(labels, lines)


def test_undamaged_set_has_no_findings(verify: Verify, image_folder: Path) -> None:
    assert verify() == []
    assert verify("--images", image_folder, "--min-agreement", 0) == []


# --- bytes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_flipped_byte_is_found_by_a_separate_process_and_annotate_writes_the_shard_again(
    relabel_here: Relabel, labels: Path, image_folder: Path, tiny_options: list[str], undisturbed: Path
) -> None:
    path = labels / shard_name(1)
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    damage(path, bytes(flipped))
    finished = start_relabel("verify", labels).finished()
    assert finished.returncode == 1
    assert f"ERROR {path}: its bytes changed after it was written (sha256); delete it and run" in finished.stdout
    assert relabel_here("annotate", image_folder, "--labels", labels, *tiny_options).returncode == 0
    assert path.read_bytes() == (undisturbed / shard_name(1)).read_bytes()
    assert relabel_here("verify", labels).returncode == 0


@pytest.mark.slow
def test_flipped_byte_is_found_wherever_it_is(verify: Verify, labels: Path) -> None:
    path = labels / shard_name(1)
    whole = path.read_bytes()
    for offset in range(3, len(whole), 61):
        flipped = bytearray(whole)
        flipped[offset] ^= 255
        damage(path, bytes(flipped))
        findings = verify()
        assert (
            len(findings) == 1
            and findings[0].startswith(str(path))
            and "run the command that made the label set again" in findings[0]
        ), offset


@pytest.mark.parametrize("length", [0, 100, -1])
def test_truncated_shard_is_found(verify: Verify, labels: Path, length: int) -> None:
    damage(labels / shard_name(2), (labels / shard_name(2)).read_bytes()[:length])
    [finding] = verify()
    assert finding.startswith(f"{labels / shard_name(2)} is truncated or not an HDF5 file")
    assert finding.endswith("delete it and run the command that made the label set again")


def test_extra_bytes_at_the_end_of_a_shard_are_found(verify: Verify, labels: Path) -> None:
    damage(labels / shard_name(2), (labels / shard_name(2)).read_bytes() + b"\0")
    [finding] = verify()
    assert finding.startswith(f"{labels / shard_name(2)}: its bytes changed")


def test_all_damaged_shards_are_found_in_one_run(verify: Verify, labels: Path) -> None:
    (labels / shard_name(0)).unlink()
    damage(labels / shard_name(1), b"not HDF5")
    lines = read_shard_lines(labels)
    del lines[2]
    write_shard_lines(labels, lines)
    missing, damaged, unfinished = verify()
    assert missing.startswith(f"{labels / shard_name(0)} is missing")
    assert damaged.startswith(f"{labels / shard_name(1)} is truncated or not an HDF5 file")
    assert unfinished == f"{labels / shard_name(2)}: not finished; run the command that made the label set again"


def test_line_of_a_shard_that_is_not_in_the_manifest_is_found(verify: Verify, labels: Path) -> None:
    append_shard_line(labels, ShardLine(3, shard_name(3), 3, "00"))
    [finding] = verify()
    assert f"{SHARD_LINES} lists shard 3, but the manifest has only 3 shards; annotate again" in finding


def test_line_with_a_wrong_number_of_rows_is_found(verify: Verify, labels: Path) -> None:
    lines = read_shard_lines(labels)
    lines[1] = ShardLine(1, shard_name(1), 2, lines[1].sha256)
    write_shard_lines(labels, lines)
    [finding] = verify()
    assert finding.startswith(f"{labels / shard_name(1)}: keys is ") and "[3], the manifest says" in finding


# --- values ---------------------------------------------------------------------------------------------------------------


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def swap_scores(file: h5py.File) -> None:
    file["scores"][1, :, 2, 5] = [-1.0, 1.0]


def store_a_class_twice(file: h5py.File) -> None:
    file["classes"][1, :, 2, 5] = [1, 1]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (put("scores", (1, 0, 3, 6), float("nan")), "scores are not finite"),
        (put("scores", (1, 0, 0, 0), float("inf")), "scores are not finite"),
        (put("tail", (1, 2, 6), float("-inf")), "tail is not finite"),
        (swap_scores, "scores are not sorted in descending order"),
        (put("classes", (1, 1, 0, 6), 3), "classes are out of range (the manifest has 3)"),
        (store_a_class_twice, "a cell stores a class twice"),
    ],
)
def test_wrong_value_is_found_with_its_file_row_and_key(
    verify: Verify, labels: Path, image_folder: Path, change: Callable[[h5py.File], None], finding: str
) -> None:
    rewrite(labels, 2, change)
    for options in ([], ["--images", image_folder, "--min-agreement", 0]):
        [found] = verify(*options)
        assert found == (
            f"{labels / shard_name(2)}: {finding} in 1 of 3 rows, first in row 1 (eel/eel_1.JPEG);"
            " delete it and run the command that made the label set again"
        )


def test_wrong_values_in_several_rows_are_one_finding_with_the_number_of_rows(verify: Verify, labels: Path) -> None:
    rewrite(labels, 0, lambda file: [put("tail", (row, 0, 0), float("nan"))(file) for row in (1, 2)])
    [found] = verify()
    assert "tail is not finite in 2 of 3 rows, first in row 1 (dog/dog_0.JPEG)" in found


def test_row_of_a_wrong_value_is_right_beyond_the_first_batch_of_rows(relabel_here: Relabel, tmp_path: Path) -> None:
    keys = [f"cat/{number:04}.JPEG" for number in range(600)]
    maps = LabelMaps(torch.ones(600, 1, 1, 1), torch.zeros(600, 1, 1, 1, dtype=torch.int64), torch.zeros(600, 1, 1))
    for row in (258, 599):
        maps.classes[row] = 7
    write_label_set(tmp_path / "set", keys, maps, 7)
    output = relabel_here("verify", tmp_path / "set").stdout
    assert "classes are out of range (the manifest has 7) in 2 of 600 rows, first in row 258 (cat/0258.JPEG)" in output


# --- keys -----------------------------------------------------------------------------------------------------------------


def test_duplicate_key_is_found(verify: Verify, labels: Path) -> None:
    def duplicate(file: h5py.File) -> None:
        file["keys"][2] = file["keys"][1]

    rewrite(labels, 1, duplicate)
    finding, digest = verify()
    assert finding.startswith(f"{labels}: 1 keys occur more than once (first: dog/dog_3.JPEG)")
    assert "image digest" in digest


def test_keys_that_do_not_match_the_manifest_are_found(verify: Verify, labels: Path) -> None:
    rewrite(
        labels,
        1,
        lambda file: file["keys"].write_direct(np.array([b"dog/dog_x.JPEG"] * 3, dtype="S14"), np.s_[:1], np.s_[:1]),
    )
    [finding] = verify()
    assert finding.startswith(f"{labels}/manifest.json: its image digest does not match the shards' keys")


def test_image_without_label_map_is_found(verify: Verify, labels: Path, image_folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(image_folder / "cat" / "new.JPEG")
    [finding] = verify("--images", image_folder, "--min-agreement", 0)
    assert finding.startswith(
        f"{labels}: 1 of 10 images of {image_folder} have no label map (first: cat/new.JPEG); annotate"
    )


def test_label_map_without_image_is_found(verify: Verify, labels: Path, image_folder: Path) -> None:
    (image_folder / "dog" / "dog_1.JPEG").unlink()
    (image_folder / "dog" / "dog_2.JPEG").unlink()
    [finding] = verify("--images", image_folder, "--min-agreement", 0)
    assert finding.startswith(f"{labels}: 2 label maps have no image in {image_folder} (first: dog/dog_1.JPEG)")


def test_labels_of_different_images_give_a_finding_for_each_side(verify: Verify, tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        (tmp_path / "others" / name).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "others" / name / "other.JPEG")
    missing, surplus = verify("--images", tmp_path / "others")
    assert "3 of 3 images" in missing and "have no label map (first: cat/other.JPEG)" in missing
    assert "9 label maps have no image" in surplus and "(first: cat/cat_0.JPEG)" in surplus


# --- agreement ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path, image_folder: Path) -> Callable[[list[int]], Path]:
    """`labelled(order)`: a label set whose whole-image top-1 is order[ground-truth label], by one corner of the map only."""

    def write(order: list[int]) -> Path:
        folder = find_images(image_folder)
        top = torch.tensor(order)[torch.from_numpy(folder.targets)]
        dense = torch.zeros(9, 3, 4, 7)
        dense[torch.arange(9), top, 0, 6] = 5  # one hot corner decides the pooled class
        scores, classes = dense.topk(2, dim=1)
        write_label_set(tmp_path / "labels", folder.keys, LabelMaps(scores, classes, torch.zeros(9, 4, 7)), 3, shard_size=4)
        return tmp_path / "labels"

    return write


def test_right_class_order_agrees_with_every_ground_truth_label(
    relabel_here: Relabel, labelled: Callable[[list[int]], Path], image_folder: Path
) -> None:
    finished = relabel_here("verify", labelled([0, 1, 2]), "--images", image_folder, "--min-agreement", 1)
    assert finished.returncode == 0
    assert "whole-image top-1 is the ground-truth label for 100.0% of 9 images" in finished.stdout


def test_wrong_class_order_is_found_with_the_worst_classes(
    relabel_here: Relabel, labelled: Callable[[list[int]], Path], image_folder: Path
) -> None:
    labels = labelled([0, 2, 1])  # dog and eel, eight of nine images, exchanged
    finished = relabel_here("verify", labels, "--images", image_folder)
    assert finished.returncode == 1
    assert "the ground-truth label for 11.1% of 9 images; lowest: dog 0%, eel 0%, cat 100%" in finished.stdout
    assert (
        f"ERROR {labels}: whole-image top-1 is the ground-truth label for 11.1% of images, expected at least 20%"
        in finished.stdout
    )
    assert relabel_here("verify", labels, "--images", image_folder, "--min-agreement", 0.1).returncode == 0
    assert relabel_here("verify", labels).returncode == 0, "agreement cannot be checked without the images"


def test_worst_classes_are_shown_with_the_given_class_names(
    relabel_here: Relabel, labelled: Callable[[list[int]], Path], image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("dog wolf, tamed\neel long fish\n")
    options = ["--images", image_folder, "--class-names", tmp_path / "names.txt"]
    finished = relabel_here("verify", labelled([0, 2, 1]), *options)
    assert "lowest: wolf, tamed (dog) 0%, long fish (eel) 0%, cat 100%" in finished.stdout


def test_images_with_a_different_number_of_classes_are_found(
    relabel_here: Relabel, labels: Path, image_folder: Path
) -> None:
    (image_folder / "fox").mkdir()
    (image_folder / "dog" / "dog_4.JPEG").rename(image_folder / "fox" / "fox_0.JPEG")
    finished = relabel_here("verify", labels, "--images", image_folder, "--min-agreement", 0)
    assert finished.returncode == 1
    assert "expected 3 classes, found 4" in finished.stdout


# --- not a label set ------------------------------------------------------------------------------------------------------


def test_folder_that_is_not_a_label_set_gets_one_message(relabel_here: Relabel, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        finished = relabel_here("verify", folder)
        assert finished.returncode == 1
        assert finished.stderr.startswith(f"relabel: {folder} is not a label set: missing manifest.json")


def test_missing_image_folder_gets_one_message(relabel_here: Relabel, labels: Path, tmp_path: Path) -> None:
    finished = relabel_here("verify", labels, "--images", tmp_path / "nowhere")
    assert finished.returncode == 1 and f"{tmp_path}/nowhere does not exist" in finished.stderr


def test_unknown_format_version_and_damaged_line_each_get_one_message(relabel_here: Relabel, labels: Path) -> None:
    (labels / SHARD_LINES).write_text("no json\n" + (labels / SHARD_LINES).read_text())
    finished = relabel_here("verify", labels)
    assert finished.returncode == 1 and f"{labels}/{SHARD_LINES} line 1 is damaged" in finished.stderr
    fields = json.loads((labels / "manifest.json").read_text())
    (labels / "manifest.json").write_text(json.dumps(fields | {"format": 2}))
    finished = relabel_here("verify", labels)
    assert finished.returncode == 1 and "label format 2, this relabel reads 1" in finished.stderr


def test_report_names_model_grid_and_counts(relabel_here: Relabel, labels: Path) -> None:
    first = relabel_here("verify", labels).stdout.splitlines()[0]
    assert first == f"{labels}: 9 label maps of 4x7 cells, top 2 of 3 classes by resnet10t (exact)"
    assert Manifest.load(labels).kind == "exact"


@pytest.mark.parametrize(("key", "reason"), [(b"../dog_3.JPEG", "is not a path inside a folder"), (b"dog/\xff", "utf-8")])
def test_key_that_is_not_a_path_is_found(verify: Verify, labels: Path, image_folder: Path, key: bytes, reason: str) -> None:
    rewrite(labels, 1, lambda file: file["keys"].write_direct(np.array([key], dtype="S14"), np.s_[:1], np.s_[1:2]))
    finding = next(found for found in verify() if reason in found)
    assert finding.startswith(str(labels / shard_name(1))) and finding.endswith("do not use this label set")
    assert any("have no image" in found for found in verify("--images", image_folder, "--min-agreement", 0))


def test_any_number_of_workers_finds_the_same(labels: Path, relabel_here: Relabel) -> None:
    said = {relabel_here("verify", labels, *options).stdout for options in ([], ["--workers=0"], ["--workers=3"])}
    assert len(said) == 1 and said.pop().endswith("OK\n")
    refused = relabel_here("verify", labels, "--workers=-1")
    assert refused.returncode == 1 and "--workers -1: expected at least 0" in refused.stderr
