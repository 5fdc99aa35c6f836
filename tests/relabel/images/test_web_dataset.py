"""WebDataset shards: which are taken, keys and classes of their samples, timm's reader as the judge; and invalid ones."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_wds import ReaderWds

from relabel.images.class_lists import mapped_classes
from relabel.images.classes import imagenet_classes
from relabel.images.decoding import UnavailableImage
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.runtime.errors import InputError
from tests.conftest import refusal, write_images
from tests.web_datasets import imagenet_sample, write_shards


def jpeg(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def grey_by_key(images: ImageSet) -> dict[str, int]:
    return {key: images.read(i).getpixel((0, 0))[0] for i, key in enumerate(images.keys)}


def sample(key: str, grey: int = 0, **fields: Any) -> dict[str, Any]:
    return {"__key__": key, "jpg": jpeg(grey), **fields}


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


# --- keys and classes -----------------------------------------------------------------------------------------------------


def test_imagenet_in_timms_form_has_the_keys_and_classes_of_its_folders_in_both_splits(tmp_path: Path) -> None:
    keys = {"train": ["n01440764/n01440764_10026.JPEG", "n01443537/n01443537_2.JPEG"], "val": []}
    keys["val"] = ["n01440764/ILSVRC2012_val_00000293.JPEG", "n01443537/ILSVRC2012_val_00000236.JPEG"]
    for split, of_split in keys.items():
        for key in of_split:
            (tmp_path / split / key).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2)).save(tmp_path / split / key, "JPEG")
        paths = [tmp_path / split / key for key in reversed(of_split)]
        write_shards(tmp_path, [imagenet_sample(path, int("1443537" in str(path))) for path in paths], split, per_shard=1)
    for source, split in ((f"wds/{tmp_path}", "train"), (f"wds/{tmp_path}:val", "val")):
        images, folder = find_images(source), find_images(tmp_path / split)
        assert images.keys == folder.keys and images.classes == folder.classes == ("n01440764", "n01443537")
        assert images.targets.tolist() == folder.targets.tolist() == [0, 1]
        assert [images.file_size(i) for i in range(2)] == [folder.file_size(i) for i in range(2)]


def test_timms_reader_gives_the_same_pixels_the_same_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path / "train")
    order = ["eel", "cat", "dog"]  # the numbers of a data set need not follow the names
    write_shards(tmp_path, [imagenet_sample(path, order.index(path.parent.name)) for path in sorted(root.glob("*/*"))])
    timms = {np.asarray(image).tobytes(): target for image, target in ReaderWds(str(tmp_path))}
    images = find_images(f"wds/{tmp_path}")
    assert images.classes == tuple(order)
    assert timms == {images.read(i).tobytes(): int(images.targets[i]) for i in range(len(images))}
    assert len(timms) == 9


def test_class_is_in_the_json_in_a_folder_or_in_the_name_where_there_is_no_number(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample("a", 10, json={"label": "dog"}), sample("b", 50, json={"label": "cat"})], "label")
    write_shards(tmp_path, [sample("x/dog/a", 10), sample("x/cat/b.v2", 50)], "folder")
    write_shards(tmp_path, [sample("n02_a", 10), sample("n01443537_7", 50)], "name")
    assert grey_by_key(find_images(f"wds/{tmp_path}:label")) == {"dog/a.jpg": 10, "cat/b.jpg": 50}
    assert "sample n02_a has no class; expected its number in .cls" in refusal(lambda: find_images(f"wds/{tmp_path}:name"))
    write_shards(tmp_path, [sample("n01440764_1", 10), sample("n01443537_7", 50)], "name")
    assert grey_by_key(find_images(f"wds/{tmp_path}:name")) == {
        "n01440764/n01440764_1.jpg": 10,
        "n01443537/n01443537_7.jpg": 50,
    }


def test_named_field_of_the_json_is_the_class_and_negative_numbers_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = ((0, "3", "cat/1.png"), (1, "-1", "dog/2.png"), (2, 7, "eel/3.png"))
    write_shards(tmp_path, [sample(f"s{a}", 10 * a, cls=a, json={"fine": b, "filename": c}) for a, b, c in fields])
    assert find_images(f"wds/{tmp_path}").classes == ("cat", "dog", "eel")
    with caplog.at_level("INFO"):
        images = find_images(f"wds/{tmp_path}:train?label=fine")
    assert images.classes == ("cat", "eel") and images.keys == ("cat/1.png", "eel/3.png")
    assert "1 of 3 samples have a negative fine and are left out" in caplog.text
    info = json.loads((tmp_path / "_info.json").read_text())
    info["splits"]["train"]["alt_label"] = "fine"  # as timm records it
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert find_images(f"wds/{tmp_path}").keys == images.keys
    message = refusal(lambda: find_images(f"wds/{tmp_path}?label=coarse"))
    assert "sample s0: its .json has only filename, fine and no coarse; expected a class number or name" in message


# --- class maps -----------------------------------------------------------------------------------------------------------

NUMBERED = [sample("b", 10, cls=2), sample("a", 50, cls=0), sample("c", 90, cls=2)]


def test_class_map_names_the_numbers_as_timm_reads_it_and_a_class_may_have_no_images(tmp_path: Path) -> None:
    write_shards(tmp_path, NUMBERED)
    names = tmp_path / "my+names.txt"
    names.write_text("zebra\nant hill\nbee 7\n")
    images = find_images(f"wds/{tmp_path}?class_map={names}")
    assert {name: i for i, name in enumerate(images.classes)} == load_class_map(str(names))
    assert grey_by_key(images) == {"bee 7/b.jpg": 10, "zebra/a.jpg": 50, "bee 7/c.jpg": 90}
    assert images.targets.tolist() == [2, 2, 0]
    names.write_text("bee 2\nzebra 0\nant hill 1\n")
    assert find_images(f"wds/{tmp_path}?class_map={names}").classes == ("zebra", "ant hill", "bee")


def test_class_map_timm_is_imagenets_wordnet_ids(tmp_path: Path) -> None:
    assert mapped_classes("timm", 999, "class_map") == imagenet_classes()
    write_shards(tmp_path, [sample("ILSVRC2012_val_1", cls=999), sample("ILSVRC2012_val_2", cls=1)])
    images = find_images(f"wds/{tmp_path}?class_map=timm")
    assert images.keys == ("n01443537/ILSVRC2012_val_2.jpg", "n15075141/ILSVRC2012_val_1.jpg")
    assert images.classes == imagenet_classes()


def test_numbers_without_names_ask_for_a_class_map_and_none_is_assumed(tmp_path: Path) -> None:
    write_shards(tmp_path, NUMBERED)
    assert refusal(lambda: find_images(f"wds/{tmp_path}")).endswith(
        f"tiny-train-0000.tar, sample b has class number 2 and no name; name the classes 0 to 2:"
        f" wds/{tmp_path}?class_map=FILE, with one name per line"
    )
    write_shards(tmp_path, [sample("a", cls=999)])
    assert "(?class_map=timm for ImageNet's WordNet ids)" in refusal(lambda: find_images(f"wds/{tmp_path}"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat\ndog\n", "has 2 names, for class numbers up to 1, but an image has class number 2"),
        ("cat\ndog\ncat\n", "cat is listed twice"),
        ("cat\n\neel\n", "line 2 is empty"),
        (None, "No such file"),
    ],
)
def test_class_map_of_another_data_set_is_refused(tmp_path: Path, names: str | None, message: str) -> None:
    write_shards(tmp_path, NUMBERED)
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
    assert message in refusal(lambda: find_images(f"wds/{tmp_path}?class_map={tmp_path}/names.txt"))


def test_class_map_that_contradicts_the_names_of_the_samples_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample("n01440764_1", cls=0), sample("n01443537_1", cls=1)])
    (tmp_path / "names.txt").write_text("n01443537\nn01440764\n")
    message = refusal(lambda: find_images(f"wds/{tmp_path}?class_map={tmp_path}/names.txt"))
    assert "sample n01440764_1: class number 0 is n01443537 in class_map=" in message


def test_class_map_names_the_classes_of_a_hugging_face_data_set_too(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": jpeg(g), "path": f"{g}.jpg"} for g in (10, 50)], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    assert "label has no class names; give them, one per line: ?class_map=FILE" in refusal(
        lambda: find_images(f"hfds/{tmp_path}/rows")
    )
    images = find_images(f"hfds/{tmp_path}/rows?class_map={tmp_path}/names.txt")
    assert (images.classes, grey_by_key(images)) == (("dog", "cat"), {"cat/10.jpg": 10, "dog/50.jpg": 50})


# --- which shards ---------------------------------------------------------------------------------------------------------


def test_shards_are_those_of_a_split_a_pattern_or_a_path(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shards(tmp_path, [sample(f"cat/{split}{i}") for i in range(5)], split, per_shard=2)

    def names(address: str) -> list[str]:
        return [key.removeprefix("cat/").removesuffix(".jpg") for key in find_images(f"wds/{tmp_path}{address}").keys]

    assert names("") == names(":train") == names("/tiny-train-{0000..0002}.tar") == [f"train{i}" for i in range(5)]
    assert names("/tiny-val-*.tar") == names(":val") == names("/tiny-val-000?.tar") == [f"val{i}" for i in range(5)]
    assert names("/tiny-{train-0001,val-0002}.tar") == ["train2", "train3", "val4"]
    assert names("/tiny-train-0002.tar") == ["train4"]
    assert "has no split 'test', but train, val" in refusal(lambda: names(":test"))
    (tmp_path / "_info.json").unlink()
    assert names(":val") == [f"val{i}" for i in range(5)]
    message = refusal(lambda: names(""))
    assert "contains 2 sets of shards (tiny-train, tiny-val) and no _info.json that tells their splits; name one" in message
    assert "no file matches" in refusal(lambda: names("/tiny-tset-*.tar"))
    assert "1 of 4 shards do not exist (first:" in refusal(lambda: names("/tiny-train-{0000..0003}.tar"))
    assert "contains no .tar of split 'x'" in refusal(lambda: names(":x"))
    assert "Unbalanced braces" in refusal(lambda: names("/tiny-{train.tar"))


@pytest.mark.parametrize("info", ["{", "[]", '{"splits": {"train": {}}}', '{"splits": {"train": {"filenames": [3]}}}'])
def test_info_of_another_form_is_an_input_error(tmp_path: Path, info: str) -> None:
    (tmp_path / "_info.json").write_text(info)
    assert "cannot read the shards of split 'train' from" in refusal(lambda: find_images(f"wds/{tmp_path}"))


def test_shards_are_never_taken_for_class_tars_in_silence(tmp_path: Path) -> None:
    write_shards(tmp_path, [imagenet_sample(path, 0) for path in write_images(tmp_path / "x").glob("cat/*")])
    for source in (tmp_path / "tiny-train-0000.tar", Path(tmp_path / "shards")):
        if not source.exists():
            source.mkdir()
            (tmp_path / "tiny-train-0000.tar").rename(source / "tiny-train-0000.tar")
        message = refusal(lambda source=source: find_images(source))  # type: ignore[misc]
        assert f"so it is a shard of a WebDataset: pass wds/{source}" in message


def test_more_shards_than_files_may_be_open_are_read_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relabel.images.web_dataset.cores", lambda: 2)
    resource = pytest.importorskip("resource")
    write_shards(tmp_path, [sample(f"cat/{i:03d}", i) for i in range(120)], per_shard=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 60, hard))
    try:
        greys = grey_by_key(find_images(f"wds/{tmp_path}"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert greys == {f"cat/{i:03d}.jpg": i for i in range(120)}


# --- invalid shards -------------------------------------------------------------------------------------------------------

WHOLE = {"a.jpg": jpeg(1), "a.cls": b"0", "a.json": b'{"filename": "cat/a.jpg"}'}
INVALID: list[tuple[str, dict[str, bytes], str]] = [
    ("empty", {}, "x.tar contains no samples (KEY.jpg and KEY.cls)"),
    ("no image", {**WHOLE, "b.cls": b"0"}, "x.tar, sample b: no image among cls; expected one ("),
    ("files apart", {"b.cls": b"0", **WHOLE, "b.jpg": jpeg(2)}, "the files of a sample must be neighbours in the tar"),
    ("two images", {**WHOLE, "a.png": jpeg(2)}, "x.tar, sample a: 2 images (jpg, png); expected one"),
    ("no class", {**WHOLE, "b.jpg": jpeg(2)}, "x.tar, sample b has no class number, but "),
    ("no classes", {"b.jpg": jpeg(2)}, "x.tar, sample b has no class; expected its number in .cls"),
    ("text", {**WHOLE, "b.jpg": jpeg(2), "b.cls": b"cat"}, "x.tar, sample b: its .cls is 'cat'; expected the number"),
    ("negative", {**WHOLE, "b.jpg": jpeg(2), "b.cls": b"-1"}, "x.tar, sample b: class number -1; expected 0 or more"),
    ("json", {"a.jpg": jpeg(1), "a.json": b"{"}, "x.tar, sample a: a.json is not JSON"),
    ("twice", {**WHOLE, "b/a.jpg": jpeg(2), "b/a.cls": b"0", "b/a.json": WHOLE["a.json"]}, "have the same key cat/a.jpg"),
    (
        "number",
        {**WHOLE, "dog/b.jpg": jpeg(2), "dog/b.cls": b"0"},
        "sample dog/b has class number 0 and is named as dog, but",
    ),
    ("name", {**WHOLE, "cat/b.jpg": jpeg(2), "cat/b.cls": b"3"}, "sample cat/b has class number 3 and is named as cat, but"),
    ("outside", {"a.jpg": jpeg(1), "a.json": b'{"filename": "../a.jpg"}'}, "leads outside its class folder"),
]


@pytest.mark.parametrize(("files", "message"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID])
def test_invalid_sample_is_named_with_its_shard(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    tar_of(tmp_path / "x.tar", files)
    assert message in refusal(lambda: find_images(f"wds/{tmp_path}/x.tar"))


def test_truncated_or_damaged_shard_never_gives_fewer_samples(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(f"cat/{i}", cls=0) for i in range(3)])
    shard = tmp_path / "tiny-train-0000.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar]
    (tmp_path / "_info.json").unlink()  # else the number of samples would tell, too
    for place in headers[1:]:
        for content in (
            whole[:place],
            whole[: place + 100],
            whole[: place - 520],
            whole[:place] + b"\xff" * 8 + whole[place + 8 :],
        ):
            shard.write_bytes(content)
            with pytest.raises(InputError, match=r"tiny-train-0000\.tar"):
                find_images(f"wds/{tmp_path}")


def test_shard_with_another_number_of_samples_than_recorded_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(f"cat/{i}", cls=0) for i in range(3)])
    tar_of(tmp_path / "tiny-train-0000.tar", WHOLE)
    message = refusal(lambda: find_images(f"wds/{tmp_path}"))
    assert "tiny-train-0000.tar has 1 samples, but" in message and "_info.json says 3; get the shard again" in message


def test_image_of_a_shard_that_has_become_shorter_names_the_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(f"cat/{i}") for i in range(3)])
    images = find_images(f"wds/{tmp_path}")
    os.truncate(tmp_path / "tiny-train-0000.tar", 1500)
    with pytest.raises(UnavailableImage, match=r"cat/2\.jpg: the tar has become shorter: 0 of .*/tiny-train-0000\.tar"):
        images.read(2)
