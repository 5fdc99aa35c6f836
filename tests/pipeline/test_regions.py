"""verify, its spot check, and compare on label sets of regions."""

from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch

from annotate.regions import sparse_answers
from pipeline.compare import compare
from pipeline.spot_check_regions import largest_difference
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import LabelRegions
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import Tail
from tests.conftest import Relabel, refusal
from tests.label_sets import manifest_of, write_label_set
from tests.pipeline.test_verify import rewrite

TAILS: tuple[Tail, ...] = ("mean", "logmeanexp")


@pytest.fixture
def regions(relabel_here: Relabel, image_folder: Path, tmp_path: Path, tiny_options: list[str]) -> Path:
    done = relabel_here("annotate", image_folder, "--labels", tmp_path / "regions", *tiny_options, "--regions=4")
    assert done.returncode == 0, done.stderr
    return tmp_path / "regions"


def set_array(name: str, row: int, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][row] = value

    return change


def test_sound_regions_pass_with_a_spot_check_of_mirrored_crops_too(
    relabel_here: Relabel, regions: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    options = ["--images", image_folder, "--min-agreement=0", "--spot-check=9", "--device=cpu", "--contents"]
    done = relabel_here("verify", regions, *options, "--checkpoint", tiny_checkpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 images with 4 regions, top 2 of 3 classes by resnet10t (exact)" in done.stdout
    assert "36 regions of 9 images annotated again: probabilities differ by at most" in done.stdout
    assert "100.0% have the same top-1 class" in done.stdout
    flags = LabelStore.open(regions, LabelRegions).gather(torch.arange(9)).flags
    assert 0 < int(flags.sum()) < 36, "else no mirrored crop was checked, or no other"


@pytest.mark.parametrize(
    ("name", "value", "finding"),
    [
        ("boxes", [[9, 0, 9, 5]] * 4, "a region's box is empty in 1 of 3 rows, first in row 1"),
        ("count", 5, "more regions are counted than stored (the manifest has 4) in 1 of 3 rows"),
        ("flags", [0, 0, 8, 0], "flags are unknown in 1 of 3 rows"),
        ("classes", [[1, 1]] * 4, "a region stores a class twice in 1 of 3 rows"),
        ("classes", [[1, 3]] * 4, "classes are out of range (the manifest has 3) in 1 of 3 rows"),
        ("scores", [[-1, 0]] * 4, "scores are not sorted in descending order in 1 of 3 rows"),
        ("scores", [[0, float("nan")]] * 4, "scores are not finite in 1 of 3 rows"),
        ("tail", [0, float("-inf"), 0, 0], "tail is not finite in 1 of 3 rows"),
    ],
)
def test_values_that_no_region_can_have_are_found(
    relabel_here: Relabel, regions: Path, name: str, value: object, finding: str
) -> None:
    rewrite(regions, 2, set_array(name, 1, value))
    done = relabel_here("verify", regions)
    assert done.returncode == 1 and finding in done.stdout


def test_rows_after_the_last_region_of_an_image_are_no_fault(relabel_here: Relabel, regions: Path) -> None:
    def empty(file: h5py.File) -> None:
        for name in ("boxes", "flags", "scores", "classes", "tail"):
            file[name][1, 2:] = 0
        file["count"][1] = 2

    rewrite(regions, 2, empty)
    assert relabel_here("verify", regions).returncode == 0


def test_answers_of_other_weights_are_found(
    relabel_here: Relabel, regions: Path, image_folder: Path, tiny_checkpoint: Path, make_checkpoint: Callable[[int], Path]
) -> None:
    options = ["--images", image_folder, "--min-agreement=0", "--spot-check=9", "--device=cpu"]
    done = relabel_here("verify", regions, *options, "--checkpoint", make_checkpoint(1))
    assert "is not the checkpoint that" in done.stderr
    rewrite(regions, 0, set_array("classes", 2, [[0, 1], [1, 2], [2, 0], [0, 2]]))
    done = relabel_here("verify", regions, *options, "--checkpoint", tiny_checkpoint)
    assert done.returncode == 1 and "a stored probability differs by" in done.stdout


def test_checkpoints_of_an_ensemble_are_taken_in_any_order(
    relabel_here: Relabel,
    image_folder: Path,
    tmp_path: Path,
    tiny_options: list[str],
    make_checkpoint: Callable[[int], Path],
) -> None:
    second = ["--model=resnet10t", f"--checkpoint={make_checkpoint(1)}", "--regions=2"]
    labels = tmp_path / "labels"
    assert relabel_here("annotate", image_folder, "--labels", labels, *tiny_options, *second).returncode == 0
    given = [f"--checkpoint={make_checkpoint(seed)}" for seed in (1, 0)]
    options = ["--images", image_folder, "--min-agreement=0", "--spot-check=3", "--device=cpu"]
    done = relabel_here("verify", labels, *options, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass it as --checkpoint too" in relabel_here("verify", labels, *options, given[0]).stderr


def test_classes_of_nearly_the_same_probability_may_change_places() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(400, 50, generator=generator).log_softmax(1)
    log_probs[:, 7] = log_probs.amax(1)  # ties for the first place
    again = log_probs + 1e-5 * torch.randn(400, 50, generator=generator)
    for topk in (1, 4, 50):
        for tail in TAILS:
            logits = sparse_answers(log_probs, topk, tail)
            scores, classes, rest = (t.unsqueeze(0) for t in logits.tensors().values())
            stored = LabelRegions(torch.zeros(1, 400, 4), torch.zeros(1, 400), scores, classes, rest, torch.tensor([400]))
            manifest = manifest_of(["cat/1.JPEG"], stored, 50, tail=tail)
            assert float(largest_difference(stored, again, manifest)) < 1e-4
            assert float(largest_difference(stored, again.roll(1, 0), manifest)) > 0.01


def two_regions(answers: list[list[float]], top: int = 0) -> LabelRegions:
    """One image with two regions of three classes, all stored."""
    scores, classes = torch.tensor([answers]).topk(3, dim=2)
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 1.0, 1.0]]]) + torch.tensor([top / 100, 0, 0, 0])
    return LabelRegions(boxes, torch.zeros(1, 2), scores, classes, torch.zeros(1, 2), torch.tensor([2]))


def kl(p: list[float], q: list[float]) -> float:
    a, b = torch.tensor(p).log_softmax(0), torch.tensor(q).log_softmax(0)
    return float((a.exp() * (a - b)).sum())


def test_compared_targets_are_those_of_the_stored_regions(tmp_path: Path) -> None:
    first, second = [[0.0, -1.0, -2.0], [-3.0, 0.0, -1.0]], [[0.0, -2.0, -2.0], [-3.0, -1.0, 0.0]]
    for name, answers in (("a", first), ("b", second)):
        write_label_set(tmp_path / name, ["cat/1.JPEG"], two_regions(answers), 3)
    expected = (kl(first[0], second[0]) + kl(first[1], second[1])) / 2
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.kl == pytest.approx(expected, rel=1e-3) and found.boxes == "2 stored regions"
    write_label_set(tmp_path / "moved", ["cat/1.JPEG"], two_regions(second, top=1), 3)
    assert "hold the answers to different crops" in refusal(lambda: compare(tmp_path / "a", tmp_path / "moved"))


def test_label_maps_are_compared_over_the_stored_regions(tmp_path: Path) -> None:
    answers = [[0.0, -1.0, -2.0], [-3.0, 0.0, -1.0]]
    write_label_set(tmp_path / "regions", ["cat/1.JPEG"], two_regions(answers), 3)
    scores, classes = torch.randn(1, 3, 2, 4).topk(3, dim=1)
    write_label_set(tmp_path / "maps", ["cat/1.JPEG"], LabelMaps(scores, classes, torch.zeros(1, 2, 4)), 3)
    maps = LabelStore.open(tmp_path / "maps", LabelMaps).gather(torch.tensor([0]))
    pooled = [label_pool(maps, box, 3)[0].tolist() for box in two_regions(answers).boxes.unbind(1)]
    expected = sum(kl(p, q) for p, q in zip(pooled, answers, strict=True)) / 2
    assert compare(tmp_path / "maps", tmp_path / "regions").kl == pytest.approx(expected, rel=1e-2)


def test_images_without_regions_count_as_in_both_sets_and_not_in_the_mean(tmp_path: Path) -> None:
    answers = [[0.0, -1.0, -2.0], [-3.0, 0.0, -1.0]]
    other = [[0.0, -2.0, -2.0], [-3.0, -1.0, 0.0]]
    for name, said in (("a", answers), ("b", other)):
        one = two_regions(said)
        tensors = {field: torch.cat([tensor, tensor]) for field, tensor in one.tensors().items()}
        both = LabelRegions(**tensors | {"count": torch.tensor([2, 0])})
        write_label_set(tmp_path / name, ["cat/1.JPEG", "dog/2.JPEG"], both, 3)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.images, found.only_first, found.only_second) == (2, 0, 0)
    expected = sum(kl(p, q) for p, q in zip(answers, other, strict=True)) / 2
    assert found.kl == pytest.approx(expected, rel=1e-3)
    assert [key for key, _ in found.worst_images] == ["cat/1.JPEG"]
