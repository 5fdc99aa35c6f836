"""`relabel verify`: every kind of damage is a finding, one line that names the place and the remedy, and exit code 1."""

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


@pytest.fixture
def verify(relabel_here: Relabel, labels: Path) -> Callable[..., list[str]]:
    """Verify the copied label set; its findings. Exit code and last line must agree with them."""

    def run(*options: object) -> list[str]:
        finished = relabel_here("verify", labels, *options)
        lines = finished.stdout.splitlines()
        found = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
        assert finished.returncode == (1 if found else 0)
        count = f"{len(found)} finding{'s' * (len(found) != 1)}"
        assert lines[-1] == (count if found else "OK")
        return found

    return run


Verify = Callable[..., list[str]]


def damage(path: Path, content: bytes) -> None:
    path.unlink()  # not in place: an earlier map of the file may still be alive
    path.write_bytes(content)


def rewrite(labels: Path, shard: int, change: Callable[[h5py.File], object]) -> None:
    """Change a shard's arrays, and its hash with them: what an honest but wrong writer would leave."""
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


def test_flipped_byte_is_found_by_a_process_of_its_own_and_remade_by_annotate(
    relabel: Relabel, relabel_here: Relabel, labels: Path, image_folder: Path, tiny_options: list[str], undisturbed: Path
) -> None:
    path = labels / shard_name(1)
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    damage(path, bytes(flipped))
    finished = relabel("verify", labels)
    assert finished.returncode == 1
    assert f"ERROR {path}: its bytes changed after it was written (sha256); delete it and run" in finished.stdout
    assert relabel_here("annotate", image_folder, "--labels", labels, *tiny_options).returncode == 0
    assert path.read_bytes() == (undisturbed / shard_name(1)).read_bytes()
    assert relabel_here("verify", labels).returncode == 0


def test_flipped_byte_is_found_wherever_it_is(verify: Verify, labels: Path) -> None:
    path = labels / shard_name(1)
    whole = path.read_bytes()
    for place in range(3, len(whole), 61):
        flipped = bytearray(whole)
        flipped[place] ^= 255
        damage(path, bytes(flipped))
        findings = verify()
        assert (
            len(findings) == 1
            and findings[0].startswith(str(path))
            and "run the command that made the label set again" in findings[0]
        ), place


@pytest.mark.parametrize("left", [0, 100, -1])
def test_shard_cut_short_is_found(verify: Verify, labels: Path, left: int) -> None:
    damage(labels / shard_name(2), (labels / shard_name(2)).read_bytes()[:left])
    [finding] = verify()
    assert finding.startswith(f"{labels / shard_name(2)} is cut short or no HDF5 file")
    assert finding.endswith("delete it and run the command that made the label set again")


def test_bytes_after_a_shards_end_are_found(verify: Verify, labels: Path) -> None:
    damage(labels / shard_name(2), (labels / shard_name(2)).read_bytes() + b"\0")
    [finding] = verify()
    assert finding.startswith(f"{labels / shard_name(2)}: its bytes changed")


def test_every_damaged_shard_is_found_in_one_go(verify: Verify, labels: Path) -> None:
    (labels / shard_name(0)).unlink()
    damage(labels / shard_name(1), b"not HDF5")
    lines = read_shard_lines(labels)
    del lines[2]
    write_shard_lines(labels, lines)
    missing, damaged, unfinished = verify()
    assert missing.startswith(f"{labels / shard_name(0)} is missing")
    assert damaged.startswith(f"{labels / shard_name(1)} is cut short or no HDF5 file")
    assert unfinished == f"{labels / shard_name(2)}: not finished; run the command that made the label set again"


def test_line_of_a_shard_that_the_manifest_does_not_know_is_found(verify: Verify, labels: Path) -> None:
    append_shard_line(labels, ShardLine(3, shard_name(3), 3, "00"))
    [finding] = verify()
    assert f"{SHARD_LINES} lists shard 3, the manifest knows 3" in finding


def test_line_with_another_number_of_rows_is_found(verify: Verify, labels: Path) -> None:
    lines = read_shard_lines(labels)
    lines[1] = ShardLine(1, shard_name(1), 2, lines[1].sha256)
    write_shard_lines(labels, lines)
    [finding] = verify()
    assert finding.startswith(f"{labels / shard_name(1)}: keys is ") and "[3], the manifest says" in finding


# --- values ---------------------------------------------------------------------------------------------------------------


def put(name: str, place: tuple[int, ...], value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][place] = value

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
        (swap_scores, "scores are not sorted, largest first"),
        (put("classes", (1, 1, 0, 6), 3), "classes are beyond the 3 of the manifest"),
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
            f"{labels / shard_name(2)} row 1 (eel/eel_1.JPEG): {finding}, in 1 rows in all;"
            " delete it and run the command that made the label set again"
        )


def test_wrong_values_in_several_rows_are_one_finding_with_their_number(verify: Verify, labels: Path) -> None:
    rewrite(labels, 0, lambda file: [put("tail", (row, 0, 0), float("nan"))(file) for row in (1, 2)])
    [found] = verify()
    assert "row 1 (dog/dog_0.JPEG): tail is not finite, in 2 rows in all" in found


def test_wrong_values_far_down_a_shard_are_named_by_their_row(relabel_here: Relabel, tmp_path: Path) -> None:
    keys = [f"cat/{number:04}.JPEG" for number in range(600)]
    maps = LabelMaps(torch.ones(600, 1, 1, 1), torch.zeros(600, 1, 1, 1, dtype=torch.int64), torch.zeros(600, 1, 1))
    for row in (258, 599):
        maps.classes[row] = 7
    write_label_set(tmp_path / "set", keys, maps, 7)
    said = relabel_here("verify", tmp_path / "set").stdout
    assert "row 258 (cat/0258.JPEG): classes are beyond the 7 of the manifest, in 2 rows in all" in said


# --- keys -----------------------------------------------------------------------------------------------------------------


def test_doubled_key_is_found(verify: Verify, labels: Path) -> None:
    def double(file: h5py.File) -> None:
        file["keys"][2] = file["keys"][1]

    rewrite(labels, 1, double)
    doubled, digest = verify()
    assert doubled.startswith(f"{labels}: 1 keys stand in it twice (first: dog/dog_3.JPEG)")
    assert "image digest" in digest


def test_keys_other_than_the_manifests_are_found(verify: Verify, labels: Path) -> None:
    rewrite(
        labels,
        1,
        lambda file: file["keys"].write_direct(np.array([b"dog/dog_x.JPEG"] * 3, dtype="S14"), np.s_[:1], np.s_[:1]),
    )
    [finding] = verify()
    assert finding.startswith(f"{labels}/manifest.json: its image digest is not that of the shards' keys")


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


def test_labels_of_other_images_are_found_from_both_sides(verify: Verify, tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        (tmp_path / "others" / name).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "others" / name / "other.JPEG")
    missing, surplus = verify("--images", tmp_path / "others")
    assert "3 of 3 images" in missing and "have no label map (first: cat/other.JPEG)" in missing
    assert "9 label maps have no image" in surplus and "(first: cat/cat_0.JPEG)" in surplus


# --- meaning --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path, image_folder: Path) -> Callable[[list[int]], Path]:
    """`labelled(order)`: a label set whose maps have class order[folder's class] on top, in one corner only."""

    def write(order: list[int]) -> Path:
        folder = find_images(image_folder)
        top = torch.tensor(order)[torch.from_numpy(folder.targets)]
        dense = torch.zeros(9, 3, 4, 7)
        dense[torch.arange(9), top, 0, 6] = 5  # one hot corner decides the pooled class
        scores, classes = dense.topk(2, dim=1)
        write_label_set(tmp_path / "labels", folder.keys, LabelMaps(scores, classes, torch.zeros(9, 4, 7)), 3, shard_size=4)
        return tmp_path / "labels"

    return write


def test_right_class_order_agrees_with_every_folder(
    relabel_here: Relabel, labelled: Callable[[list[int]], Path], image_folder: Path
) -> None:
    finished = relabel_here("verify", labelled([0, 1, 2]), "--images", image_folder, "--min-agreement", 1)
    assert finished.returncode == 0
    assert "whole-image top-1 is the folder's class for 100.0% of 9 images" in finished.stdout


def test_wrong_class_order_is_found_with_the_worst_classes(
    relabel_here: Relabel, labelled: Callable[[list[int]], Path], image_folder: Path
) -> None:
    labels = labelled([0, 2, 1])  # dog and eel, eight of nine images, exchanged
    finished = relabel_here("verify", labels, "--images", image_folder)
    assert finished.returncode == 1
    assert "the folder's class for 11.1% of 9 images; lowest: dog 0%, eel 0%, cat 100%" in finished.stdout
    assert (
        f"ERROR {labels}: whole-image top-1 is the folder's class for 11.1% of images, expected at least 20%"
        in finished.stdout
    )
    assert relabel_here("verify", labels, "--images", image_folder, "--min-agreement", 0.1).returncode == 0
    assert relabel_here("verify", labels).returncode == 0, "meaning cannot be judged without the images"


def test_worst_classes_are_called_by_the_names_given(
    relabel_here: Relabel, labelled: Callable[[list[int]], Path], image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("dog wolf, tamed\neel long fish\n")
    options = ["--images", image_folder, "--class-names", tmp_path / "names.txt"]
    finished = relabel_here("verify", labelled([0, 2, 1]), *options)
    assert "lowest: wolf, tamed (dog) 0%, long fish (eel) 0%, cat 100%" in finished.stdout


def test_annotator_of_another_class_count_is_found(relabel_here: Relabel, labels: Path, image_folder: Path) -> None:
    (image_folder / "fox").mkdir()
    (image_folder / "dog" / "dog_4.JPEG").rename(image_folder / "fox" / "fox_0.JPEG")
    finished = relabel_here("verify", labels, "--images", image_folder, "--min-agreement", 0)
    assert finished.returncode == 1
    assert "expected 3 classes, found 4" in finished.stdout


# --- what is no label set -------------------------------------------------------------------------------------------------


def test_folder_that_is_no_label_set_gets_one_message(relabel_here: Relabel, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        finished = relabel_here("verify", folder)
        assert finished.returncode == 1
        assert finished.stderr.startswith(f"relabel: {folder} is no label set: it holds no manifest.json")


def test_image_folder_that_does_not_exist_gets_one_message(relabel_here: Relabel, labels: Path, tmp_path: Path) -> None:
    finished = relabel_here("verify", labels, "--images", tmp_path / "nowhere")
    assert finished.returncode == 1 and f"{tmp_path}/nowhere does not exist" in finished.stderr


def test_other_format_version_and_damaged_line_get_one_message(relabel_here: Relabel, labels: Path) -> None:
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


@pytest.mark.parametrize(("key", "said"), [(b"../dog_3.JPEG", "is no path within a folder"), (b"dog/\xff", "utf-8")])
def test_key_that_no_folder_has_is_found(verify: Verify, labels: Path, image_folder: Path, key: bytes, said: str) -> None:
    rewrite(labels, 1, lambda file: file["keys"].write_direct(np.array([key], dtype="S14"), np.s_[:1], np.s_[1:2]))
    finding = next(found for found in verify() if said in found)
    assert finding.startswith(str(labels / shard_name(1))) and finding.endswith("such a set is not to be trusted")
    assert any("have no image" in found for found in verify("--images", image_folder, "--min-agreement", 0))
