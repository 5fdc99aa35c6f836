"""`relabel show`: what it says is what the label set says, of either kind; and what it cannot show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from annotate.config import AnnotateConfig
from pipeline.show.figure import draw
from pipeline.show.seen import from_label_set, made_here
from relabel.images.classes import ClassNames
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import LabelRegions
from relabel.labels.store import LabelStore
from tests.conftest import THIN as THIN_MODEL
from tests.conftest import Relabel, model_options
from tests.label_sets import write_label_set

KEY = "dog/dog_3.JPEG"
BOX = (0.25, 0.0, 0.75, 0.5)


def test_targets_and_cells_are_those_of_the_label_set(undisturbed: Path, image_folder: Path) -> None:
    (seen,) = from_label_set(undisturbed, [image_folder / KEY], [BOX], 2, ClassNames())
    store = LabelStore.open(undisturbed, LabelMaps)
    maps = store.gather(store.rows([KEY]))
    assert (seen.label, seen.label_class, seen.name_of(2)) == ("dog", 1, "eel")
    assert seen.probabilities is not None
    torch.testing.assert_close(seen.probabilities, maps.dense(3).softmax(1)[0])
    assert len(seen.crops) == 3
    for crop in seen.crops:
        torch.testing.assert_close(crop.target, label_pool(maps, torch.tensor([crop.box]), 3).softmax(1)[0])
    width, height = Image.open(image_folder / KEY).size
    cut = Image.open(image_folder / KEY).crop((round(width / 4), 0, round(width * 0.75), round(height / 2)))
    assert np.array_equal(np.asarray(seen.crops[0].picture), np.asarray(cut))


def test_map_of_the_central_square_is_shown_over_that_square(image_folder: Path, tmp_path: Path) -> None:
    maps = LabelMaps(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.int32), torch.zeros(1, 2, 2))
    write_label_set(tmp_path / "labels", [KEY], maps, 3, window=1.0)
    (seen,) = from_label_set(tmp_path / "labels", [image_folder / KEY], [], 0, ClassNames())
    picture = Image.open(image_folder / KEY)
    width, height = picture.size
    assert width > height and seen.picture.size == (height, height)
    left = round((width - height) / 2)
    assert np.array_equal(np.asarray(seen.picture), np.asarray(picture.crop((left, 0, left + height, height))))


def test_annotating_on_the_spot_shows_what_annotate_would_store(
    undisturbed: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    config = AnnotateConfig("resnet10t", THIN_MODEL, tiny_checkpoint, 3, topk=2, input_size=(32, 56))
    (here,) = made_here(config, [image_folder / KEY], [BOX], 0, ClassNames(), "cpu")
    (there,) = from_label_set(undisturbed, [image_folder / KEY], [BOX], 0, ClassNames())
    torch.testing.assert_close(here.crops[0].target, there.crops[0].target, atol=1e-3, rtol=0)
    torch.testing.assert_close(here.whole, there.whole, atol=1e-3, rtol=0)
    assert here.name_of(2) == "class 2" and here.label is None


def test_stored_regions_are_shown_as_the_teacher_saw_them(
    relabel_here: Relabel, image_folder: Path, tmp_path: Path, tiny_options: list[str]
) -> None:
    labels = tmp_path / "regions"
    assert relabel_here("annotate", image_folder, "--labels", labels, *tiny_options, "--regions=4").returncode == 0
    (seen,) = from_label_set(labels, [image_folder / KEY], [], 3, ClassNames())
    store = LabelStore.open(labels, LabelRegions)
    regions = store.gather(store.rows([KEY]))
    assert seen.probabilities is None and len(seen.crops) == 3
    assert [crop.mirrored for crop in seen.crops] == regions.flags[0, :3].bool().tolist()
    torch.testing.assert_close(torch.stack([c.target for c in seen.crops]), regions.dense(3).softmax(2)[0, :3])
    picture = tmp_path / "regions.png"
    assert relabel_here("show", image_folder / KEY, "--labels", labels, "--output", picture).returncode == 0
    assert (
        "leave --box out"
        in relabel_here("show", image_folder / KEY, "--labels", labels, "--box=0,0,1,1", "--output", picture).stderr
    )


def test_picture_of_a_thousand_classes_with_hostile_names_is_drawn() -> None:
    from pipeline.show.seen import Crop, Seen

    names = ("<script>$x_5$", "‮right to left", "a" * 300, "\udcff", "猫")
    probabilities = torch.randn(1000, 32, 32, generator=torch.Generator().manual_seed(0)).mul(4).softmax(0)
    picture = Image.new("RGB", (61, 40), (90, 120, 150))
    crop = Crop(BOX, picture, probabilities.mean((1, 2)), True)
    name_of = lambda number: names[number % 5]  # noqa: E731
    seen = Seen("$a_$/b.jpg", picture, "$5", 7, name_of, probabilities.mean((1, 2)), probabilities, [crop] * 4)
    assert draw([seen, seen], "test")[:8] == b"\x89PNG\r\n\x1a\n"


def test_picture_replaces_only_its_own_kind(
    relabel_here: Relabel, undisturbed: Path, image_folder: Path, tmp_path: Path
) -> None:
    picture, other = tmp_path / "seen.png", tmp_path / "other.png"
    arguments = ["show", image_folder / KEY, image_folder / "cat/cat_0.JPEG", "--labels", undisturbed, "--output"]
    for _ in range(2):
        done = relabel_here(*arguments, picture)
        assert done.stdout == f"{picture}: 2 images, 6 crops\n", done.stderr
    with Image.open(picture) as drawn:
        assert drawn.width > 1000 and len(drawn.convert("RGB").getcolors(10**6) or []) > 100
    Image.new("RGB", (5, 5)).save(other)
    assert "--force" in relabel_here(*arguments, other).stderr
    assert relabel_here(*arguments, other, "--force").returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--box=0,0,2,1"], "--box '0,0,2,1': expected x0 < x1 and y0 < y1, within [0, 1]"),
        (["--box=a"], "--box 'a': expected x0,y0,x1,y1 in fractions of the image"),
        (["--random=99"], "--random 99 with 0 --box: expected 0 to 30 crops"),
        (["--model=resnet10t"], "--model is for annotating on the spot; leave it out, or --labels"),
    ],
)
def test_what_cannot_be_shown_gets_a_message(
    relabel_here: Relabel, undisturbed: Path, image_folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = relabel_here("show", image_folder / KEY, "--labels", undisturbed, *options, "--output", tmp_path / "a.png")
    assert done.returncode == 1 and said in done.stderr and not (tmp_path / "a.png").exists()


def test_images_that_cannot_be_shown_get_a_message(
    relabel_here: Relabel, undisturbed: Path, image_folder: Path, tmp_path: Path
) -> None:
    def said(image: Path, *options: object) -> str:
        return relabel_here("show", image, "--output", tmp_path / "a.png", *options).stderr

    Image.new("RGB", (5, 5)).save(image_folder / "dog/new.JPEG")
    assert "none of its 9 keys is dog/new.JPEG (the first is cat/cat_0.JPEG)" in said(
        image_folder / "dog/new.JPEG", "--labels", undisturbed
    )
    (image_folder / KEY).write_text("no image")
    assert "cannot identify image file" in said(image_folder / KEY, "--labels", undisturbed)
    assert "nothing to show: give --labels, or a classifier with --model or --checkpoint" in said(image_folder / KEY)
    options = [*model_options(THIN_MODEL), "--model=resnet10t", "--checkpoint", tmp_path / "absent.pth"]
    assert "absent.pth" in said(image_folder / "cat/cat_0.JPEG", *options)
    jpeg = ["--labels", undisturbed, "--output", tmp_path / "a.jpg"]
    assert "expected a name that ends in .png" in said(image_folder / "cat/cat_0.JPEG", *jpeg)
