"""The same images in a folder, a list, tars and a data set give the same keys, classes and pixels; and invalid sources."""

import hashlib
import io
import multiprocessing
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relabel.images.decoding import UnavailableImage, UnreadableImage
from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.names import sort_classes
from relabel.images.sources import find_images
from relabel.runtime.errors import InputError
from tests.conftest import CLASS_SIZES, Relabel, write_images
from tests.web_datasets import imagenet_sample, write_shards


def put(root: Path, *keys: str) -> Path:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(root / key, "JPEG")
    return root


# --- a folder -----------------------------------------------------------------------------------------------------------


def test_keys_are_posix_paths_sorted_as_text_whatever_order_the_disk_lists_them_in(tmp_path: Path) -> None:
    folder = find_images(put(tmp_path, "b/2.JPEG", "b/10.JPEG", "a/z.png", "ab/x.jpg"))
    assert folder.keys == ("a/z.png", "ab/x.jpg", "b/10.JPEG", "b/2.JPEG")
    assert folder.classes == ("a", "ab", "b")
    assert folder.targets.tolist() == [0, 1, 2, 2]
    assert folder.name(2) == str(tmp_path / "b" / "10.JPEG")


def test_numeric_class_folders_sort_as_numbers_and_targets_stay_with_their_keys(tmp_path: Path) -> None:
    folder = find_images(put(tmp_path, "10/x.JPEG", "2/x.JPEG", "0/x.JPEG", "10/y.JPEG"))
    assert folder.classes == ("0", "2", "10")
    assert dict(zip(folder.keys, folder.targets.tolist(), strict=True)) == {
        "0/x.JPEG": 0,
        "2/x.JPEG": 1,
        "10/x.JPEG": 2,
        "10/y.JPEG": 2,
    }


def test_other_files_and_hidden_files_are_not_listed_as_images(tmp_path: Path) -> None:
    put(tmp_path, "a/x.JPEG", "a/.hidden.JPEG")
    for name in ("notes.txt", "x.JPEG.part", "JPEG"):
        (tmp_path / "a" / name).write_text("not an image")
    (tmp_path / "list.JPEG").write_text("beside the class folders")
    assert find_images(tmp_path).keys == ("a/x.JPEG",)


def test_names_with_digits_that_are_no_decimal_numbers_sort_as_text(tmp_path: Path) -> None:
    names = ("①", "②", "5²", "10", "2", "x" + "9" * 200)
    assert set(find_images(put(tmp_path, *(f"{name}/x.JPEG" for name in names))).classes) == set(names)
    assert sort_classes(["b10", "B9", "b2x", "a", "10", "9", "b2", "Zebra"]) == (
        "9",
        "10",
        "a",
        "b2",
        "b2x",
        "B9",
        "b10",
        "Zebra",
    )
    assert sort_classes(["9" * 5000, "5²", "②", "10²"]) == ("5²", "10²", "9" * 5000, "②")


def test_files_of_all_formats_are_images_and_how_many_others_are_left_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(
        tmp_path,
        "a/x.webp",
        "a/y.BMP",
        "a/z.gif",
        "b/x.tif",
        "b/y.jfif",
        "b/z.avif",
        "b/notes.svg",
        "a/1.HEIC",
        "a/2.heic",
        "a/no",
    )
    put(tmp_path, "a/.DS_Store")
    with caplog.at_level("INFO"):
        assert len(find_images(tmp_path)) == 6
    said = "4 files are left out, as their names do not end as those of images do (2 .heic, 1 no ending, 1 .svg)"
    assert caplog.messages == [f"{tmp_path}: {said}"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link"])
def test_what_is_named_like_an_image_and_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path, "a/x.JPEG") / "a" / "y.JPEG"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"{path} is named like an image, but is a {kind}.*; remove or rename it"):
        find_images(tmp_path)


def test_link_to_an_image_is_an_image(tmp_path: Path) -> None:
    put(tmp_path, "pool/x.JPEG", "train/a/x.JPEG", "train/b/x.JPEG")
    (tmp_path / "train/b/y.JPEG").symlink_to("../../pool/x.JPEG")
    assert find_images(tmp_path / "train").keys == ("a/x.JPEG", "b/x.JPEG", "b/y.JPEG")


def test_one_class_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_images(put(tmp_path, "a/x.JPEG", "a/y.JPEG"))
    assert caplog.messages == [
        f"{tmp_path}: all 2 images are of one class, a. The class of an image is the folder that it is in (CLASS/NAME)"
    ]


LAYOUTS = [
    (("cat/images/1.JPEG", "dog/images/2.JPEG"), "in folders named images, such as .*cat/images; expected CLASS/NAME"),
    (("cat/images/1.JPEG", "dog/2.JPEG"), "images lie in .*cat/images, and in dog beside .*cat; expected CLASS/NAME"),
    (
        ("cat/1.JPEG", "cat/images/2.JPEG", "dog/3.JPEG"),
        "cat/images contains images, but lies inside the folder of class cat",
    ),
]


@pytest.mark.parametrize(("keys", "message"), LAYOUTS, ids=["all", "some", "both"])
def test_images_in_a_folder_of_their_class_are_refused_with_the_layout_that_is_expected(
    tmp_path: Path, keys: tuple[str, ...], message: str
) -> None:
    root = put(tmp_path / "train", *keys)
    (tmp_path / "list.txt").write_text("\n".join(f"train/{key}" for key in keys))
    for source in (as_tar(root, tmp_path), str(tmp_path / "list.txt")):
        with pytest.raises(InputError, match=message):
            find_images(source)
    with pytest.raises(
        InputError, match=r"cat contains no images .*, but its folder images does; expected CLASS|lies inside"
    ):
        find_images(root)


def test_list_may_name_images_of_the_same_classes_in_several_folders(tmp_path: Path) -> None:
    keys = ("cat/1.JPEG", "dog/2.JPEG", "more/cat/3.JPEG", "more/dog/4.JPEG", "train/a/cat/5.JPEG")
    put(tmp_path, *keys)
    (tmp_path / "list.txt").write_text("\n".join(keys))
    assert find_images(tmp_path / "list.txt").keys == ("cat/1.JPEG", "cat/3.JPEG", "cat/5.JPEG", "dog/2.JPEG", "dog/4.JPEG")


def test_images_beside_the_class_folders_of_a_tar_are_no_class_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "d", "cat/1.JPEG", "dog/2.JPEG", "preview.JPEG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "d", ".")
    with pytest.raises(InputError, match=r"x\.tar:cat contains images, but lies inside the folder of class x; "):
        find_images(tmp_path / "x.tar")


def test_missing_folder_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere does not exist; expected a folder"):
        find_images(tmp_path / "nowhere")


def test_file_instead_of_a_folder_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "train.zip").write_bytes(b"zip")
    with pytest.raises(InputError, match=r"train\.zip is not a folder, \.tar or \.txt list; expected a folder"):
        find_images(tmp_path / "train.zip")


def test_error_for_a_folder_without_class_folders_describes_the_layout(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "x.JPEG")
    with pytest.raises(InputError, match=r"has no sub-folders; expected .*ROOT/CLASS/\*\.JPEG"):
        find_images(tmp_path)


def test_class_folder_without_images_is_named_in_the_error(tmp_path: Path) -> None:
    put(tmp_path, "a/x.JPEG", "c/x.JPEG")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("soon")
    with pytest.raises(InputError, match=rf"{tmp_path}/b contains no images \(.*\.jpeg.*\); fill it or remove it"):
        find_images(tmp_path)


def test_error_for_the_folder_above_the_split_suggests_the_split(tmp_path: Path) -> None:
    put(tmp_path, "train/a/x.JPEG", "train/b/x.JPEG")
    with pytest.raises(InputError, match=f"it contains 2 folders: did you mean {tmp_path}/train?"):
        find_images(tmp_path)


def test_images_deeper_than_their_class_folder_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "a/x.JPEG", "a/more/y.JPEG", "b/x.JPEG", "b/.thumbnails/x.JPEG")
    with pytest.raises(
        InputError, match=rf"{tmp_path}/a/more contains images, but lies inside the folder of class a; .* move the images up"
    ):
        find_images(tmp_path)
    (tmp_path / "a" / "more" / "y.JPEG").unlink()
    assert find_images(tmp_path).keys == ("a/x.JPEG", "b/x.JPEG")


def test_file_name_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    put(tmp_path, "a/x.JPEG")
    (tmp_path / "a" / "x.JPEG").rename(tmp_path / "a" / b"caf\xe9.JPEG".decode(errors="surrogateescape"))
    with pytest.raises(InputError, match="UTF-8"):
        keys_digest(find_images(tmp_path).keys)


def test_without_removes_images_and_keeps_classes(tmp_path: Path) -> None:
    rest = find_images(put(tmp_path, "a/x.JPEG", "b/x.JPEG", "b/y.JPEG")).without({"a/x.JPEG", "b/x.JPEG"})
    assert rest.keys == ("b/y.JPEG",)
    assert (rest.targets.tolist(), rest.classes) == ([1], ("a", "b"))


def test_digest_depends_on_the_keys_and_their_order_but_not_on_the_folder(tmp_path: Path) -> None:
    here, there = (find_images(put(tmp_path / where, "a/x.JPEG", "b/x.JPEG")) for where in ("here", "there"))
    assert keys_digest(here.keys) == keys_digest(there.keys)
    assert keys_digest(["a", "b"]) != keys_digest(["b", "a"])
    assert keys_digest(["a", "bc"]) != keys_digest(["ab", "c"])


# --- the same images in other sources -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "train")


def as_tar(root: Path, out: Path) -> str:
    with tarfile.open(out / "train.tar", "w") as tar:
        tar.add(root, "train")
    return str(out / "train.tar")


def as_tar_of_tars(root: Path, out: Path) -> str:
    """As ImageNet's training images are published: no folders, and one tar per class inside the tar."""
    with tarfile.open(out / "train.tar", "w") as tar:
        for folder in root.iterdir():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_tar:
                for image in folder.iterdir():
                    class_tar.add(image, image.name)
            header = tarfile.TarInfo(f"{folder.name}.tar")
            header.size = inner.tell()
            inner.seek(0)
            tar.addfile(header, inner)
    return str(out / "train.tar")


def as_folder_of_tars(root: Path, out: Path) -> str:
    for folder in root.iterdir():
        with tarfile.open(out / f"{folder.name}.tar", "w") as tar:
            for image in folder.iterdir():
                tar.add(image, image.name)
    return str(out)


def as_list(root: Path, out: Path) -> str:
    lines = [str(p.relative_to(root.parent)) for p in root.glob("*/*")]
    (root.parent / "list.txt").write_text("\n".join(["# a comment", "", *lines]) + "\n")
    return str(root.parent / "list.txt")


def as_data_set(root: Path, out: Path) -> str:
    """Parquet with the images' bytes and file names, as the hub stores image data sets."""
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), split="train", cache_dir=str(out / "cache"))
    loaded.cast_column("image", datasets.Image(decode=False)).map(
        lambda row: {"image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": Path(row["image"]["path"]).name}}
    ).to_parquet(str(out / "parquet" / "train-00000-of-00001.parquet"))
    return f"hfds/{out / 'parquet'}"


def hash_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def as_web_dataset(root: Path, out: Path) -> str:
    """In the form of timm's ImageNet: shuffled, without folders, and the extension is that of the field."""
    images = sorted(root.glob("*/*"), key=lambda path: hash_of(path.name))
    write_shards(out, [imagenet_sample(path, sorted(CLASS_SIZES).index(path.parent.name)) for path in images])
    return f"wds/{out}"


Source = Callable[[Path, Path], str]
SOURCES = [as_tar, as_tar_of_tars, as_folder_of_tars, as_list, as_data_set, as_web_dataset]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.__name__)
def elsewhere(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageSet]:
    out = tmp_path_factory.mktemp(request.param.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(out / "cache"))
        yield find_images(request.param(root, out))


def test_keys_classes_targets_and_pixels_equal_those_of_the_folder(elsewhere: ImageSet, root: Path) -> None:
    folder = find_images(root)
    assert len(folder) == sum(CLASS_SIZES.values())
    assert (elsewhere.keys, elsewhere.classes) == (folder.keys, folder.classes)
    assert elsewhere.targets.tolist() == folder.targets.tolist()
    for i in range(len(folder)):
        np.testing.assert_array_equal(np.asarray(elsewhere.read(i)), np.asarray(folder.read(i)))


def test_label_set_has_the_same_bytes_as_that_of_the_folder(
    relabel_here: Relabel,
    elsewhere: ImageSet,
    tmp_path: Path,
    tiny_options: list[str],
    undisturbed: Path,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    finished = relabel_here("annotate", elsewhere.source, "--labels", tmp_path / "labels", *tiny_options, "--workers=2")
    assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path / "labels") == contents(undisturbed)


def pixels_of(images: ImageSet, index: int) -> bytes:
    pixels: bytes = images.read(index).tobytes()
    return pixels


def test_processes_forked_after_a_read_all_read_the_right_pixels(elsewhere: ImageSet) -> None:
    expected = [pixels_of(elsewhere, i) for i in range(len(elsewhere))]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for _ in range(5):
            jobs = [(elsewhere, i) for i in range(len(elsewhere))]
            assert pool.starmap(pixels_of, jobs, chunksize=1) == expected


def test_remaining_images_keep_their_pixels_when_others_are_removed(elsewhere: ImageSet) -> None:
    rest = elsewhere.without({elsewhere.keys[0], elsewhere.keys[4]})
    assert [pixels_of(rest, i) for i in range(len(rest))] == [
        pixels_of(elsewhere, i) for i in range(len(elsewhere)) if i not in (0, 4)
    ]


def test_index_finds_every_key_and_no_other(elsewhere: ImageSet) -> None:
    assert [elsewhere.index(key) for key in elsewhere.keys] == list(range(len(elsewhere)))
    for stranger in ("a", "cat/", "zebra/z.JPEG"):
        with pytest.raises(KeyError, match=stranger):
            elsewhere.index(stranger)


def test_links_in_a_tar_are_the_images_that_they_lead_to_and_broken_ones_are_counted(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    farm = tmp_path / "train"
    for image in root.glob("*/*"):
        (farm / image.parent.name).mkdir(parents=True, exist_ok=True)
        (farm / image.parent.name / image.name).write_bytes(image.read_bytes())
    (farm / "dog" / "hard.JPEG").hardlink_to(farm / "eel" / "eel_0.JPEG")
    (farm / "cat" / "a soft.JPEG").symlink_to("../eel/eel_1.JPEG")  # comes before what it leads to
    (farm / "cat" / "chain.JPEG").symlink_to("a soft.JPEG")
    (farm / "fox").symlink_to("cat")
    expected = find_images(farm)
    assert len(expected) == 9 + 3 + 3
    images = find_images(as_tar(farm, tmp_path))
    assert (images.keys, images.classes) == (expected.keys, expected.classes)
    assert [pixels_of(images, i) for i in range(len(images))] == [pixels_of(expected, i) for i in range(len(images))]
    assert not caplog.messages
    (farm / "cat" / "out.JPEG").symlink_to(root / "cat" / "cat_0.JPEG")
    (farm / "cat" / "loop.JPEG").symlink_to("loop.JPEG")
    assert find_images(as_tar(farm, tmp_path)).keys == expected.keys
    assert "train.tar: 4 links lead to no file in their tar and are left out (first: train/cat/" in caplog.messages[0]


def test_links_in_a_tar_inside_a_tar_are_resolved_in_it(tmp_path: Path, root: Path) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0.JPEG").write_bytes((root / "dog/dog_0.JPEG").read_bytes())
    (tmp_path / "dog" / "1.JPEG").hardlink_to(tmp_path / "dog" / "0.JPEG")
    for name in ("dog", "fox"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for image in sorted((tmp_path / "dog").iterdir()):
                tar.add(image, image.name)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "dog.tar", "dog.tar")
        tar.add(tmp_path / "fox.tar", "fox.tar")
    images = find_images(tmp_path / "all.tar")
    assert images.keys == ("dog/0.JPEG", "dog/1.JPEG", "fox/0.JPEG", "fox/1.JPEG")
    assert len({pixels_of(images, i) for i in range(4)}) == 1


@pytest.mark.parametrize("form", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.1"]])
def test_images_that_are_stored_sparsely_in_a_tar_are_read(tmp_path: Path, form: list[str]) -> None:
    put(tmp_path / "train", "a/0.bmp", "b/1.JPEG")
    Image.new("RGB", (200, 300)).save(tmp_path / "train/a/0.bmp")
    os.truncate(tmp_path / "train/a/0.bmp", 400_000)
    subprocess.run(["tar", "--sparse", *form, "-cf", tmp_path / "x.tar", "-C", tmp_path, "train"], check=True)
    assert (tmp_path / "x.tar").stat().st_size < 250_000
    images = find_images(tmp_path / "x.tar")
    assert images.keys == ("a/0.bmp", "b/1.JPEG")
    assert images.read(0).size == (200, 300) and images.read(1).size == (3, 2)


def test_byte_order_mark_of_a_list_is_no_part_of_the_first_class(tmp_path: Path) -> None:
    put(tmp_path, "cat/x.JPEG", "dog/x.JPEG")
    (tmp_path / "list.txt").write_text("cat/x.JPEG\r\ndog/x.JPEG\r\n", encoding="utf-8-sig")
    assert find_images(tmp_path / "list.txt").keys == ("cat/x.JPEG", "dog/x.JPEG")


def test_tars_beside_class_folders_are_ignored(tmp_path: Path) -> None:
    put(tmp_path, "cat/x.JPEG")
    (tmp_path / "cat.tar").write_bytes(b"what the folder was unpacked from")
    assert find_images(tmp_path).keys == ("cat/x.JPEG",)


# --- errors -------------------------------------------------------------------------------------------------------------


def test_truncated_image_in_a_tar_is_named_by_tar_and_key(tmp_path: Path, root: Path) -> None:
    whole = (root / "dog" / "dog_1.JPEG").read_bytes()
    (tmp_path / "dog_1.JPEG").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "dog_1.JPEG", "dog/dog_1.JPEG")
    with pytest.raises(UnreadableImage, match=r"x\.tar:dog/dog_1\.JPEG: Truncated File Read"):
        find_images(tmp_path / "x.tar").read(0)


def test_image_of_a_deleted_or_shortened_tar_is_unavailable_and_not_merely_unreadable(tmp_path: Path, root: Path) -> None:
    images = find_images(as_tar(root, tmp_path))
    os.truncate(tmp_path / "train.tar", 2000)
    with pytest.raises(UnavailableImage, match=r"train\.tar:eel/eel_2\.JPEG: the tar has become shorter: 0 of"):
        images.read(8)
    (tmp_path / "train.tar").unlink()
    with pytest.raises(UnavailableImage, match=r"train\.tar:cat/cat_0\.JPEG: .*No such file"):
        images.read(0)


def test_damaged_or_truncated_tar_is_an_error_and_never_lists_fewer_images(tmp_path: Path, root: Path) -> None:
    whole = Path(as_tar(root, tmp_path)).read_bytes()
    with tarfile.open(tmp_path / "train.tar") as tar:
        headers = [member.offset for member in tar][2:]
    damaged = tmp_path / "damaged.tar"
    for place in headers:
        for content in (
            whole[:place] + b"\xff" * 8 + whole[place + 8 :],  # a damaged header
            whole[: place + 100],  # truncated in a header
            whole[:place],  # between two members
            whole[: place - 700],  # in an image or a header
        ):
            damaged.write_bytes(content)
            with pytest.raises(InputError, match=r"damaged\.tar is not an uncompressed tar, or is damaged"):
                find_images(damaged)


def test_compressed_tar_is_named_in_the_error(tmp_path: Path, root: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.add(root, "train")
    with pytest.raises(InputError, match=r"x\.tar is not an uncompressed tar.*decompress it"):
        find_images(tmp_path / "x.tar")


def test_error_for_a_tar_without_images_lists_the_image_extensions(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("cat/notes.txt"))
    with pytest.raises(InputError, match=r"x\.tar contains no images \(.*\.jpeg"):
        find_images(tmp_path / "x.tar")


def test_two_images_in_a_tar_with_the_same_key_are_both_named(tmp_path: Path, root: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for split in ("train", "val"):
            tar.add(root / "cat", f"{split}/cat")
    with pytest.raises(InputError, match=r"val/cat/cat_0\.JPEG and train/cat/cat_0\.JPEG have the same key"):
        find_images(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no images; expected one path per line"),
        ("cat/x.JPEG\n\nnotes.md\n", "line 3: 'notes.md' is not the path of an image"),
        ("a/cat/x.JPEG\nb/cat/x.JPEG\n", r"line 2: .*b/cat/x\.JPEG and .*a/cat/x\.JPEG have the same key cat/x\.JPEG"),
    ],
)
def test_error_for_a_list_names_the_wrong_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=rf"list\.txt.*{message}"):
        find_images(tmp_path / "list.txt")


def test_path_with_dot_dot_gets_the_class_of_the_folder_it_leads_to(tmp_path: Path, root: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{root}/cat/../dog/dog_1.JPEG\n")
    assert find_images(tmp_path / "list.txt").keys == ("dog/dog_1.JPEG",)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root / "cat" / "cat_0.JPEG", "cat/../../x.JPEG")
    with pytest.raises(InputError, match="leads outside its class folder"):
        find_images(tmp_path / "x.tar")


def test_data_set_without_labels_is_rejected(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    jpeg = io.BytesIO()
    Image.new("RGB", (3, 2)).save(jpeg, "JPEG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": jpeg.getvalue(), "path": f"{i}.JPEG"} for i in range(3)], "label": [0, -1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data" / "test-0.parquet"))
    with pytest.raises(InputError, match="2 of its 3 images have no label"):
        find_images(f"hfds/{tmp_path / 'data'}:test")


def test_data_set_that_cannot_be_loaded_is_an_input_error(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="cannot read hfds/nowhere"):
        find_images(f"hfds/nowhere-{tmp_path.name}")


def test_imagenet_from_the_hub_has_the_same_keys_as_the_folder(tmp_path: Path) -> None:
    """On the hub, a file is n01440764_10026_n01440764.JPEG and its class a lemma; the WordNet id ends the file name."""
    datasets = pytest.importorskip("datasets")
    jpeg = io.BytesIO()
    Image.new("RGB", (3, 2)).save(jpeg, "JPEG")
    rows = {
        "image": [
            {"bytes": jpeg.getvalue(), "path": name}
            for name in ("n01443537_2_n01443537.JPEG", "n01440764_10026_n01440764.JPEG", "n01440764_1_n01440764.JPEG")
        ],
        "label": [1, 0, 0],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench, Tinca tinca", "goldfish"])}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data" / "validation-0.parquet"))
    images = find_images(f"hfds/{tmp_path / 'data'}:validation")
    assert images.classes == ("n01440764", "n01443537")
    assert images.keys == ("n01440764/n01440764_1.JPEG", "n01440764/n01440764_10026.JPEG", "n01443537/n01443537_2.JPEG")
    assert images.targets.tolist() == [0, 0, 1]


def data_set(folder: Path, names: list[str | None], image: str = "image", label: str = "label") -> Any:
    """Rows whose image i is of grey value i, alternately cat and dog."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"])})
    pngs = []
    for i in range(len(names)):
        png = io.BytesIO()
        Image.new("L", (3, 2), i).save(png, "PNG")
        pngs.append(png.getvalue())
    rows = {
        image: [{"bytes": png, "path": name} for png, name in zip(pngs, names, strict=True)],
        label: [i % 2 for i in range(len(names))],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def grey_by_key(images: ImageSet) -> dict[str, int]:
    return {key: images.read(i).getpixel((0, 0))[0] for i, key in enumerate(images.keys)}


def test_row_without_a_file_name_has_the_same_key_in_every_slice(tmp_path: Path) -> None:
    data_set(tmp_path, [None] * 10).to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    whole = grey_by_key(find_images(f"hfds/{tmp_path}/data"))
    assert whole == {f"{('cat', 'dog')[i % 2]}/{i}": i for i in range(10)}
    for split in ("train[50%:]", "train[:2]", "train[-3:]", "train[:20%]+train[70%:]"):
        part = grey_by_key(find_images(f"hfds/{tmp_path}/data:{split}"))
        assert 2 <= len(part) < 10 and part.items() <= whole.items(), split


def test_rows_of_two_splits_without_file_names_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        data_set(tmp_path, [None] * 4).to_parquet(str(tmp_path / "data" / f"{split}-0.parquet"))
    with pytest.raises(InputError, match=r"split train\+test: the images have no file names.*; name one"):
        find_images(f"hfds/{tmp_path}/data:train+test")


def test_data_set_written_by_save_to_disk_is_read_as_one_or_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = data_set(tmp_path, [f"{i}.png" for i in range(6)])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, test=rows.select([5, 0])).save_to_disk(str(tmp_path / "two"))
    whole = {f"{('cat', 'dog')[i % 2]}/{i}.png": i for i in range(6)}
    for source in ("one", "one:train", "two", "two:train", "one:train[:3]+train[3:]"):
        assert grey_by_key(find_images(f"hfds/{tmp_path}/{source}")) == whole, source
    assert grey_by_key(find_images(f"hfds/{tmp_path}/two:test")) == {"cat/0.png": 0, "dog/5.png": 5}
    with pytest.raises(
        InputError, match=r"cannot read .*two:val: Unknown split \"val\". Should be one of \['train', 'test'\]"
    ):
        find_images(f"hfds/{tmp_path}/two:val")


def test_columns_of_a_data_set_can_be_named(tmp_path: Path) -> None:
    rows = data_set(tmp_path, [f"{i}.png" for i in range(4)], "photo", "fine label")
    rows.to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    source = f"hfds/{tmp_path}/data"
    images = find_images(f"{source}:train?image=photo&label=fine label")
    assert images.keys == ("cat/0.png", "cat/2.png", "dog/1.png", "dog/3.png")
    with pytest.raises(
        InputError, match=r"has no column image or label, but photo, fine label; name the columns: hfds/.*:train\?"
    ):
        find_images(source)
    for wrong in ("?images=photo", "?photo", "?"):
        with pytest.raises(
            InputError,
            match=r"cannot read '.*'; expected hfds/NAME:SPLIT\?image=COLUMN&label=COLUMN&class_map=FILE|has no column",
        ):
            find_images(source + wrong)


def test_list_changes_labels_after_a_tab_and_keeps_keys_and_classes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "cat/x.JPEG\teel\ndog/a b.JPEG \t dog \ndog/y\tz.JPEG\n\teel/w.JPEG\tcat 2\n\tfox\n\tcat/v.JPEG\n"
    )
    images = find_images(tmp_path / "list.txt")
    assert images.keys == ("cat/v.JPEG", "cat/x.JPEG", "dog/a b.JPEG", "dog/y\tz.JPEG", "eel/w.JPEG")
    assert images.classes == ("cat", "cat 2", "dog", "eel", "fox")
    assert [images.classes[target] for target in images.targets] == ["cat", "eel", "dog", "dog", "cat 2"]
    assert images.name(1) == str(tmp_path / "cat/x.JPEG")
    (tmp_path / "list.txt").write_text("cat/x.JPEG\tdogs/eel\n")
    with pytest.raises(InputError, match=r"line 1: 'dogs/eel' is not the name of a class; expected PATH, a tab, and CLASS"):
        find_images(tmp_path / "list.txt")
