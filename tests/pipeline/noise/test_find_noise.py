"""`relabel find-noise`: which images it calls wrong, what it suggests, what it writes, and how train takes the lists."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import torch

from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions
from tests.conftest import THIN, Relabel, model_options
from tests.label_sets import write_label_set

CAT, DOG, EEL = range(3)
KEYS = ["cat/cat_0.JPEG", *(f"dog/dog_{i}.JPEG" for i in range(5)), *(f"eel/eel_{i}.JPEG" for i in range(3))]
# The strongest class of the two places of each image, left and right
SHOWN = [(CAT, CAT), (DOG, DOG), (EEL, DOG), (CAT, EEL), (DOG, DOG), (DOG, CAT), (EEL, CAT), (EEL, EEL), (CAT, CAT)]
WRONG = ["dog/dog_2.JPEG", "eel/eel_2.JPEG"]  # their folder's class is in neither place
HEADER = [
    *("key", "is_label_issue", "label_score", "given_label", "predicted_label", "label_probability"),
    *("predicted_probability", "x0", "y0", "x1", "y1", "given_name", "predicted_name"),
]
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def stored_maps() -> LabelMaps:
    """One row of two cells, k = 1. The strongest class of dog_2 has 12 of 14, those of all others 9 of 11."""
    scores = torch.full((9, 1, 1, 2), 9.0)
    scores[KEYS.index("dog/dog_2.JPEG"), 0, 0, 0] = 12.0
    return LabelMaps(scores.log(), torch.tensor(SHOWN).view(9, 1, 1, 2), torch.zeros(9, 1, 2))


def stored_regions() -> LabelRegions:
    """The same two places as regions, less their largest logit, and a third one for none but dog_1: the right half again."""
    maps = stored_maps()
    scores, classes = maps.scores.view(9, 2, 1), maps.classes.view(9, 2, 1)
    boxes = torch.tensor([LEFT, RIGHT, RIGHT]).expand(9, 3, 4)
    count = torch.full((9,), 2)
    count[KEYS.index("dog/dog_1.JPEG")] = 3
    third = torch.cat([scores, scores[:, 1:]], 1), torch.cat([classes, classes[:, 1:]], 1)
    return LabelRegions(boxes, torch.zeros(9, 3, dtype=torch.uint8), third[0] * 0, third[1], -third[0][..., 0], count)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    write_label_set(tmp_path / "maps", KEYS, stored_maps(), 3, shard_size=4, classes=("cat", "dog", "eel"))
    return tmp_path / "maps"


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == HEADER
        return list(reader)


def box_in(row: dict[str, str]) -> tuple[float, ...]:
    return tuple(float(row[edge]) for edge in ("x0", "y0", "x1", "y1"))


@pytest.mark.parametrize("kind", ["maps", "regions"])
def test_images_whose_label_is_in_no_place_are_issues_with_what_they_show_instead(
    kind: str, image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    labels, table = tmp_path / "labels", tmp_path / "noise.csv"
    write_label_set(labels, KEYS, stored_maps() if kind == "maps" else stored_regions(), 3, shard_size=4)
    done = relabel_here("find-noise", labels, "--images", image_folder, "--output", table)
    assert done.returncode == 0, done.stderr
    assert "2 of 9 images (22.2%) do not seem to show their label" in done.stdout
    rows = read_table(table)
    assert sorted(row["key"] for row in rows) == KEYS
    assert [row["key"] for row in rows if row["is_label_issue"] == "True"] == WRONG
    first, second, *rest = rows
    assert (first["key"], first["given_label"], first["predicted_label"]) == ("dog/dog_2.JPEG", "dog", "cat")
    assert (second["key"], second["given_label"], second["predicted_label"]) == ("eel/eel_2.JPEG", "eel", "cat")
    assert box_in(first) == pytest.approx(LEFT, abs=1e-5)
    # dog_2: cat 12 of 12 + 1 + 1 on the left, dog 1 of 14 there and 1 of 11 on the right
    assert float(first["predicted_probability"]) == pytest.approx(12 / 14, abs=1e-3)
    assert float(first["label_probability"]) == pytest.approx(1 / 11, abs=1e-3)
    assert float(first["label_score"]) == pytest.approx((1 / 11) / (12 / 14), abs=1e-3)
    assert float(second["label_score"]) == pytest.approx(1 / 9, abs=1e-3)
    assert [row["label_score"] for row in rest] == ["1"] * 7


def test_threshold_is_the_score_below_which_an_image_is_an_issue(
    maps: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    command = ["find-noise", maps, "--images", image_folder, "--output", tmp_path / "noise.csv"]
    for threshold, expected in ((0.08, 0), (0.11, 1), (0.12, 2), (1.0, 2)):
        assert relabel_here(*command, f"--threshold={threshold}").stdout.startswith(f"{expected} of 9 images"), threshold


def test_image_without_regions_is_no_issue_and_its_cells_are_empty(
    image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    regions = stored_regions()
    regions.count[KEYS.index("dog/dog_2.JPEG")] = 0
    write_label_set(tmp_path / "labels", KEYS, regions, 3)
    command = ["find-noise", tmp_path / "labels", "--images", image_folder, "--output"]
    assert relabel_here(*command, tmp_path / "noise.csv").returncode == 0
    last = read_table(tmp_path / "noise.csv")[-1]
    assert {name for name, text in last.items() if text} == {"key", "is_label_issue", "given_label", "given_name"}
    assert (last["key"], last["is_label_issue"], last["given_label"]) == ("dog/dog_2.JPEG", "False", "dog")
    parquet = pytest.importorskip("pyarrow.parquet")
    assert relabel_here(*command, tmp_path / "noise.parquet").returncode == 0
    last = parquet.read_table(tmp_path / "noise.parquet").to_pylist()[-1]
    assert {name for name, value in last.items() if value is not None} == {
        "key",
        "is_label_issue",
        "given_label",
        "given_name",
    }


def test_parquet_has_the_same_rows_as_csv(maps: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for ending in ("csv", "parquet"):
        output = tmp_path / f"noise.{ending}"
        for _ in range(2):  # an earlier result is replaced
            assert relabel_here("find-noise", maps, "--images", image_folder, "--output", output).returncode == 0
    for row, text in zip(
        parquet.read_table(tmp_path / "noise.parquet").to_pylist(), read_table(output.with_suffix(".csv")), strict=True
    ):
        assert [f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()] == list(text.values())


def test_classes_have_the_names_of_a_file(maps: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    names = tmp_path / "names.txt"
    names.write_text('cat\tBastet, "the" cat\ndog\tAnubis\neel\tAtum\n')
    command = ["find-noise", maps, "--images", image_folder, "--output", tmp_path / "noise.csv", "--class-names", names]
    assert relabel_here(*command).returncode == 0
    first = read_table(tmp_path / "noise.csv")[0]
    assert (first["given_name"], first["predicted_name"]) == ("Anubis (dog)", 'Bastet, "the" cat (cat)')
    names.write_text("cat Bastet\neel Atum\n")
    done = relabel_here(*command)
    assert done.returncode == 1 and "names.txt: 1 of 3 classes have no name (first: dog)" in done.stderr


# --- the lists, and train ----------------------------------------------------------------------------------------------


@pytest.fixture
def lists(maps: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> tuple[Path, Path]:
    """DROP and MOVE of the maps' label set."""
    drop, move = tmp_path / "drop.txt", tmp_path / "lists" / "move.txt"
    options = ["--output", tmp_path / "noise.csv", "--drop", drop, "--move", move]
    done = relabel_here("find-noise", maps, "--images", image_folder, *options)
    assert done.returncode == 0, done.stderr
    return drop, move


def train_command(images: Path, run: Path, recipe: str, *more: str) -> list[object]:
    settings = ["image_size=16", "eval_size=16", "batch_size=4", "warmup_epochs=0"]
    where = ["train", images, "--run-dir", run, "--arch=resnet10t", *model_options(THIN), f"--recipe={recipe}"]
    return [*where, *(f"--set={setting}" for setting in settings), "--workers=0", "--device=cpu", *more]


def test_drop_lists_the_other_images_and_move_lists_all_with_the_suggested_labels(lists: tuple[Path, Path]) -> None:
    drop, move = map(find_images, lists)
    assert drop.keys == tuple(key for key in KEYS if key not in WRONG)
    assert drop.classes == move.classes == ("cat", "dog", "eel")
    assert move.keys == tuple(KEYS)
    assert move.targets.tolist() == [CAT, DOG, DOG, CAT, DOG, DOG, EEL, EEL, CAT]
    assert all(move.read(index).size == (50 + 3 * index, 30 + index) for index in range(9))


def test_a_list_keeps_classes_of_which_no_image_is_left(image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    (image_folder / "fox").mkdir()
    maps = stored_maps()
    maps.classes[0] = EEL  # the only cat
    classes = ("cat", "dog", "eel", "fox")
    write_label_set(tmp_path / "labels", KEYS, maps, 4, classes=classes)
    lists = [tmp_path / "drop.txt", tmp_path / "move.txt"]
    options = ["--output", tmp_path / "noise.csv", "--drop", lists[0], "--move", lists[1]]
    done = relabel_here("find-noise", tmp_path / "labels", "--images", image_folder, *options)
    assert done.returncode == 0 and "3 of 9 images" in done.stdout, done.stderr
    drop, move = map(find_images, lists)
    assert drop.classes == move.classes == classes
    assert KEYS[0] not in drop.keys and move.targets[0] == EEL


@pytest.mark.slow
def test_train_leaves_out_what_drop_leaves_out(
    lists: tuple[Path, Path], maps: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    for key in WRONG:
        (image_folder / key).write_bytes(b"no image any more")  # whoever reads it fails
    more = ["--labels", str(maps), "--set=epochs=3"]
    done = relabel_here(*train_command(lists[0], tmp_path / "run", "scenes-relabel", *more))
    assert done.returncode == 0, done.stderr
    whole = relabel_here(*train_command(image_folder, tmp_path / "whole", "scenes-relabel", *more))
    assert whole.returncode == 1 and any(key in whole.stderr for key in WRONG)


@pytest.mark.slow
def test_train_learns_the_labels_that_a_list_gives_and_finds_the_label_maps_by_the_folders(
    lists: tuple[Path, Path], maps: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    done = relabel_here(
        *train_command(lists[1], tmp_path / "run", "scenes-relabel", "--labels", str(maps), "--set=epochs=1")
    )
    assert done.returncode == 0, done.stderr
    all_eels = tmp_path / "eels.txt"
    all_eels.write_text("".join(f"images/{key}\teel\n" for key in KEYS))
    done = relabel_here(*train_command(all_eels, tmp_path / "eels", "scenes-single", "--set=epochs=12", "--set=lr=0.1"))
    assert done.returncode == 0, done.stderr
    for images, accuracy in ((all_eels, "100.00"), (image_folder, "33.33")):  # three of the nine are in the eels' folder
        done = relabel_here("eval", images, "--checkpoint", tmp_path / "eels" / "weights.pth", "--workers=0", "--device=cpu")
        assert accuracy in done.stdout, done.stdout + done.stderr


def test_a_list_that_changes_labels_is_itself_a_source(
    lists: tuple[Path, Path], maps: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    again = tmp_path / "again.txt"
    options = ["--output", tmp_path / "again.csv", "--drop", again]
    done = relabel_here("find-noise", maps, "--images", lists[1], *options)
    assert done.returncode == 0 and done.stdout.startswith("0 of 9 images"), done.stderr
    assert find_images(again).targets.tolist() == find_images(lists[1]).targets.tolist()


# --- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output=noise.xlsx"], r"--output noise.xlsx: expected a name that ends in .csv or .parquet"),
        (["--output=noise.csv", "--drop=drop"], r"--drop drop: expected a name that ends in .txt"),
        (["--output=noise.csv", "--drop=x.txt", "--move=./x.txt"], "name the same file"),
        (["--output=noise.csv", "--threshold=0"], r"--threshold 0.0: expected a share within (0, 1]"),
        (["--output=noise.csv", "--threshold=nan"], "--threshold nan: expected a share within"),
        (["--output=mine.csv"], "mine.csv exists and is not an earlier result of this command"),
        (["--output=noise.csv", "--drop=mine.txt"], "mine.txt exists and is not an earlier result of this command"),
        (["--output=mine.parquet"], "mine.parquet exists and is not an earlier result of this command"),
        (["--output=noise.csv", "--class-names=none.txt"], "cannot read class names from none.txt"),
        (["--output=noise.csv", "--images=other"], "9 of 9 images of other have no label map in"),
        (["--output=noise.csv", "--images=fewer"], "does not match fewer: expected 3 classes, found 2: eel has no folder"),
        (["--output=noise.csv", "--images=none"], "none does not exist"),
        (["--output=noise.csv", "--images=images.tar", "--move=x.txt"], "those of images.tar are not files of their own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    options: list[str],
    message: str,
    maps: Path,
    image_folder: Path,
    tmp_path: Path,
    relabel_here: Relabel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.csv", "mine.txt", "mine.parquet"):
        Path(name).write_text("key,is_label_issue\n")
    for key in KEYS:
        other = Path("other", key)
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / key, other.with_name(f"other_{other.name}"))
    shutil.copytree(image_folder, "fewer", ignore=shutil.ignore_patterns("eel"))
    shutil.make_archive("images", "tar", ".", "images")
    before = sorted(os.listdir())  # noqa: PTH208
    images = [] if any(option.startswith("--images") for option in options) else ["--images=images"]
    done = relabel_here("find-noise", maps, *images, *options)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(os.listdir()) == before and Path("mine.csv").read_text() == "key,is_label_issue\n"  # noqa: PTH208


def test_a_name_with_a_line_break_cannot_be_listed(image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    broken = "dog/dog\u2028.JPEG"
    shutil.copy(image_folder / KEYS[1], image_folder / broken)
    keys = sorted([*KEYS, broken])
    of_ten = LabelMaps(torch.ones(10, 1, 1, 1), torch.zeros(10, 1, 1, 1, dtype=torch.int64), torch.zeros(10, 1, 1))
    write_label_set(tmp_path / "labels", keys, of_ten, 3)
    command = ["find-noise", tmp_path / "labels", "--images", image_folder, "--output", tmp_path / "noise.csv"]
    assert relabel_here(*command).returncode == 0
    done = relabel_here(*command, "--move", tmp_path / "move.txt")
    assert done.returncode == 1 and "cannot be listed, as its name has a line break" in done.stderr
    assert not (tmp_path / "move.txt").exists()


def test_damaged_labels_are_named(labels: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    shard = labels / "shard-00001.h5"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    done = relabel_here("find-noise", labels, "--images", image_folder, "--output", tmp_path / "noise.csv")
    assert done.returncode == 1 and "shard-00001.h5: its bytes changed after it was written" in done.stderr
    assert not (tmp_path / "noise.csv").exists()


@pytest.mark.slow
def test_a_place_without_permission_is_named_without_a_traceback(
    maps: Path, image_folder: Path, tmp_path: Path, relabel: Relabel
) -> None:
    done = relabel("find-noise", maps, "--images", image_folder, "--output", "/proc/noise.csv")
    assert done.returncode == 1 and "/proc/" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
