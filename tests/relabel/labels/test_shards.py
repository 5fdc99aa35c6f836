"""Shards on disk and the store that reads them: maps read back as written, and damage is reported by file name."""

import contextlib
import dataclasses
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from relabel.labels.manifest import Manifest
from relabel.labels.maps import MAPS, LabelMaps
from relabel.labels.shard_lines import SHARD_LINES, append_shard_line, read_shard_lines
from relabel.labels.shards import MappedShard, shard_name, write_shard
from relabel.labels.store import LabelStore
from relabel.labels.stored import class_dtype
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from tests.conftest import refusal
from tests.label_sets import manifest_of, write_label_set

KEYS = ["cat/1.JPEG", "cat/a longer name.JPEG", "dog/grün.JPEG", "eel/1.JPEG", "eel/10.JPEG"]


def random_maps(count: int, num_classes: int, k: int = 2, grid: tuple[int, int] = (3, 5), seed: int = 0) -> LabelMaps:
    logits = torch.randn(count, num_classes, *grid, generator=torch.Generator().manual_seed(seed))
    scores, classes = logits.topk(k, dim=1)
    return LabelMaps(scores, classes, logits.mean(1))


@pytest.fixture
def label_set(tmp_path: Path) -> Path:
    """Five images in shards of two, two and one."""
    write_label_set(tmp_path / "set", KEYS, random_maps(5, 7), 7, shard_size=2)
    return tmp_path / "set"


def assert_same(mine: LabelMaps, theirs: LabelMaps) -> None:
    assert torch.equal(mine.scores.float(), theirs.scores.half().float())
    assert torch.equal(mine.classes.long(), theirs.classes.long())
    assert torch.equal(mine.tail.float(), theirs.tail.half().float())


# --- writing and reading back -------------------------------------------------------------------------------------------


def test_stored_maps_read_back_up_to_float16_rounding(label_set: Path) -> None:
    store = LabelStore.open(label_set)
    assert store.keys == KEYS and len(store) == 5
    assert_same(store.gather(store.rows(KEYS)), random_maps(5, 7))


def test_rows_are_in_the_order_of_the_requested_keys(label_set: Path) -> None:
    store = LabelStore.open(label_set)
    assert store.rows([KEYS[4], KEYS[0], KEYS[2]]).tolist() == [4, 0, 2]


def test_missing_key_is_named_in_the_error(label_set: Path) -> None:
    with pytest.raises(KeyError, match=r"dog/nowhere\.JPEG"):
        LabelStore.open(label_set).rows([KEYS[0], "dog/nowhere.JPEG", "another"])


def test_keys_are_found_in_a_set_that_is_not_sorted(tmp_path: Path) -> None:
    mixed = [KEYS[i] for i in (3, 0, 4, 2, 1)]
    write_label_set(tmp_path / "set", mixed, random_maps(5, 7), 7, shard_size=2)
    store = LabelStore.open(tmp_path / "set")
    assert store.keys == mixed and store.rows(KEYS).tolist() == [1, 4, 3, 0, 2]
    strangers = ["", "cat", "cat/1.JPE", "cat/1.JPEG0", "dog/grun.JPEG", "eel/10.JPEG, and longer than any", "zebra"]
    assert store.find([*strangers, KEYS[0]]).tolist() == [-1] * len(strangers) + [1]
    assert store.rows([]).tolist() == []


@pytest.mark.parametrize("num_classes", [7, 70_000])  # uint16, uint32
def test_gather_returns_the_same_maps_and_types_from_files_and_from_memory(tmp_path: Path, num_classes: int) -> None:
    write_label_set(tmp_path / "set", KEYS, random_maps(5, 7), num_classes, shard_size=2)
    rows = torch.tensor([4, 0, 3, 3, 1, 2, 4])
    expected = LabelMaps(*(t[rows] for t in vars(random_maps(5, 7)).values()))
    stores = [LabelStore.open(tmp_path / "set") for _ in range(3)]
    stores[1].to("cpu", resident=True)
    stores[2].to("cpu", resident=True).to("cpu")
    assert [store.resident for store in stores] == [False, True, False]
    for store in stores:
        maps = store.gather(rows)
        assert_same(maps, expected)
        assert maps.classes.dtype == {7: torch.uint16, 70_000: torch.int32}[num_classes]
        assert store.nbytes == 5 * 3 * 5 * (2 * (2 + {7: 2, 70_000: 4}[num_classes]) + 2)


@pytest.mark.parametrize(("classes", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_class_dtype_can_represent_the_largest_class(classes: int, dtype: type) -> None:
    chosen = class_dtype(classes)
    assert chosen == dtype
    assert np.array(classes - 1).astype(chosen) == classes - 1


@pytest.mark.parametrize(("num_classes", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_largest_class_is_stored_in_the_smallest_type_that_can_represent_it(
    tmp_path: Path, num_classes: int, dtype: type
) -> None:
    classes = torch.tensor([num_classes - 1, 0, 3, 40_000]).view(2, 2, 1, 1)
    write_label_set(
        tmp_path / "set", KEYS[:2], LabelMaps(torch.zeros(2, 2, 1, 1), classes, torch.zeros(2, 1, 1)), num_classes
    )
    with h5py.File(tmp_path / "set" / shard_name(0)) as file:
        assert file["classes"].dtype == dtype
    for store in (LabelStore.open(tmp_path / "set"), LabelStore.open(tmp_path / "set").to("cpu")):
        assert torch.equal(store.gather(torch.tensor([0, 1])).classes.long(), classes)


def test_dense_map_has_each_score_at_its_class_and_the_tail_everywhere_else() -> None:
    maps = random_maps(2, 6, k=3, grid=(2, 5))
    expected = np.empty((2, 6, 2, 5), dtype=np.float32)
    for image, c, row, column in np.ndindex(expected.shape):
        value = maps.tail[image, row, column]
        for i in range(3):
            if maps.classes[image, i, row, column] == c:
                value = maps.scores[image, i, row, column]
        expected[image, c, row, column] = value
    assert np.array_equal(maps.dense(6).numpy(), expected)


def test_dense_map_of_stored_types_is_float32(label_set: Path) -> None:
    for store in (LabelStore.open(label_set), LabelStore.open(label_set).to("cpu")):
        maps = store.gather(store.rows(KEYS[2:4]))
        dense = maps.dense(7)
        assert dense.dtype == torch.float32 and dense.shape == (2, 7, 3, 5)
        assert torch.equal(dense.amax(1), maps.scores[:, 0].float())


def test_same_maps_give_the_same_bytes(tmp_path: Path) -> None:
    for where in ("one", "two"):
        write_label_set(tmp_path / where, KEYS, random_maps(5, 7), 7, shard_size=2)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_shard_line_contains_the_sha256_of_the_shard_file(label_set: Path) -> None:
    for line in read_shard_lines(label_set).values():
        assert line.sha256 == sha256_of(label_set / line.file)


def test_shard_is_self_describing_hdf5(label_set: Path) -> None:
    with h5py.File(label_set / shard_name(0)) as file:
        assert dict(file.attrs) == {"format": 1, "num_classes": 7}
        assert [key.decode() for key in file["keys"]] == KEYS[:2]
        assert {name: (d.shape, d.dtype.str, d.chunks) for name, d in file.items() if name != "keys"} == {
            "scores": ((2, 2, 3, 5), "<f2", None),
            "classes": ((2, 2, 3, 5), "<u2", None),
            "tail": ((2, 3, 5), "<f2", None),
        }


# --- shards without images ----------------------------------------------------------------------------------------------


def write_with_unreadable(labels: Path, readable: list[list[int]]) -> None:
    """The five images in shards of two; each shard's line lists its unreadable images."""
    maps = random_maps(5, 7)
    manifest = manifest_of(KEYS, maps, 7, shard_size=2)
    labels.mkdir()
    manifest.save(labels)
    for shard, rows in enumerate(readable):
        part = LabelMaps(maps.scores[rows], maps.classes[rows], maps.tail[rows])
        unreadable = [KEYS[i] for i in range(shard * 2, min(shard * 2 + 2, 5)) if i not in rows]
        append_shard_line(labels, write_shard(labels, shard, [KEYS[i] for i in rows], part, manifest, unreadable))


def test_shard_with_only_unreadable_images_is_empty_and_the_others_are_read(tmp_path: Path) -> None:
    write_with_unreadable(tmp_path / "set", [[1], [], [4]])
    mapped, resident = LabelStore.open(tmp_path / "set"), LabelStore.open(tmp_path / "set").to("cpu", resident=True)
    assert mapped.keys == [KEYS[1], KEYS[4]]
    assert mapped.unreadable == (KEYS[0], KEYS[2], KEYS[3])
    whole = random_maps(5, 7)
    for store in (mapped, resident):
        maps = store.gather(store.rows([KEYS[4], KEYS[1]]))
        assert_same(maps, LabelMaps(whole.scores[[4, 1]], whole.classes[[4, 1]], whole.tail[[4, 1]]))


def test_set_with_only_unreadable_images_opens_with_no_rows(tmp_path: Path) -> None:
    write_with_unreadable(tmp_path / "set", [[], [], []])
    store = LabelStore.open(tmp_path / "set").to("cpu")
    assert len(store) == 0 and list(store.unreadable) == KEYS


# --- damage -------------------------------------------------------------------------------------------------------------


def test_error_for_an_incomplete_set_names_the_first_missing_shard(label_set: Path) -> None:
    lines = (label_set / SHARD_LINES).read_text().splitlines(keepends=True)
    (label_set / SHARD_LINES).write_text(lines[0])
    with pytest.raises(InputError, match=r"incomplete: 2 of 3 shards are missing \(first: shard-00001\.h5\); run the"):
        LabelStore.open(label_set)


def test_missing_shard_file_is_named_in_the_error(label_set: Path) -> None:
    (label_set / shard_name(1)).unlink()
    with pytest.raises(InputError, match=rf"{label_set}/shard-00001\.h5 is missing.*run the command that made"):
        LabelStore.open(label_set)


def test_shard_truncated_anywhere_is_named_in_the_error(label_set: Path) -> None:
    path = label_set / shard_name(1)
    whole = path.read_bytes()
    for length in [0, 1, 7, *range(8, len(whole), 97), len(whole) - 1]:
        path.unlink()  # not rewritten in place: an earlier map of the file may still be alive
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"shard-00001\.h5 is truncated or not an HDF5 file .*delete it and run"):
            LabelStore.open(label_set)


@pytest.mark.slow
def test_flipped_byte_in_a_shard_is_an_input_error_or_leaves_its_structure_valid(label_set: Path) -> None:
    path, line, manifest = label_set / shard_name(0), read_shard_lines(label_set)[0], LabelStore.open(label_set).manifest
    whole = path.read_bytes()
    other_errors = {}
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.unlink()
        path.write_bytes(damaged)
        try:
            MappedShard.open(label_set, line, manifest)
        except InputError as error:
            assert "shard-00000.h5" in str(error)
        except Exception as error:
            other_errors[place] = repr(error)
    assert other_errors == {}


def test_error_for_a_shard_of_another_shape_names_both_shapes(label_set: Path) -> None:
    manifest = LabelStore.open(label_set).manifest
    dataclasses.replace(manifest, grid=(5, 3)).save(label_set)
    with pytest.raises(
        InputError, match=r"shard-00000\.h5: scores is float16\[2, 2, 3, 5\], the manifest says .*\[2, 2, 5, 3\]"
    ):
        LabelStore.open(label_set)


def rewrite(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def test_error_for_a_shard_of_another_class_count_names_both_counts(label_set: Path) -> None:
    manifest = LabelStore.open(label_set).manifest
    dataclasses.replace(manifest, num_classes=8).save(label_set)
    with pytest.raises(InputError, match=r"shard-00000\.h5: format and num_classes are 1 and 7, the manifest says 1 and 8;"):
        LabelStore.open(label_set)


def test_error_for_a_shard_of_another_class_dtype_names_both_dtypes(label_set: Path) -> None:
    def widen(file: h5py.File) -> None:
        classes = file["classes"][()]
        del file["classes"]
        file["classes"] = classes.astype(np.int64)

    rewrite(label_set / shard_name(0), widen)
    with pytest.raises(
        InputError, match=r"classes is int64\[2, 2, 3, 5\], the manifest says uint16\[2, 2, 3, 5\]; delete it"
    ):
        LabelStore.open(label_set)


def test_error_for_a_shard_without_a_dataset_names_the_dataset(label_set: Path) -> None:
    rewrite(label_set / shard_name(2), lambda file: file.pop("tail"))
    with pytest.raises(InputError, match=r"shard-00002\.h5 has no dataset 'tail'; delete it and run"):
        LabelStore.open(label_set)


def test_compressed_shard_is_rejected_because_it_cannot_be_mapped(label_set: Path) -> None:
    def compress(file: h5py.File) -> None:
        tail = file["tail"][()]
        del file["tail"]
        file.create_dataset("tail", data=tail, compression="gzip")

    rewrite(label_set / shard_name(0), compress)
    with pytest.raises(InputError, match=r"shard-00000\.h5: tail is chunked"):
        LabelStore.open(label_set)


def test_failed_shard_write_leaves_no_file(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    maps = random_maps(5, 7)
    with file_size_limit(2000), pytest.raises(OSError, match="File too large"):
        write_shard(tmp_path, 0, KEYS, maps, manifest_of(KEYS, maps, 7))
    assert list(tmp_path.iterdir()) == []


def test_pickled_store_is_small_and_opens_the_files_again(undisturbed: Path) -> None:
    store = LabelStore.open(undisturbed).to("cpu", resident=True)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    rows = torch.tensor([8, 0, 3])
    for name in MAPS:
        assert torch.equal(getattr(pickle.loads(pickled).read(rows), name), getattr(store.gather(rows), name))


def test_more_shards_are_open_at_once_than_a_process_may_open_files(tmp_path: Path) -> None:
    keys = [f"cat/{i:03d}.JPEG" for i in range(150)]
    labels = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))  # a name that is not UTF-8
    write_label_set(labels, keys, random_maps(150, 7), 7, shard_size=1)
    line = read_shard_lines(labels)[0]
    opened = max(int(name) for name in os.listdir("/proc/self/fd")) + 1  # noqa: PTH208
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, before[1]))
    try:
        store = LabelStore.open(labels)
        assert_same(store.gather(torch.arange(150)), random_maps(150, 7))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        said = refusal(lambda: MappedShard.open(labels, line, store.manifest))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert f"cannot open {labels / shard_name(0)}: Too many open files" in said and "ulimit -n" in said


def test_mapped_arrays_cannot_be_written(label_set: Path) -> None:
    shard = MappedShard.open(label_set, read_shard_lines(label_set)[0], Manifest.load(label_set))
    for array in (shard.content, shard.keys, *shard.arrays.values()):
        assert not array.flags.writeable


def test_targets_are_the_numbers_of_the_classes_that_the_keys_name(tmp_path: Path) -> None:
    classes = ("eel", "dog", "ant", "cat", "bee", "fly", "gnu")  # in no order, and some without images
    write_label_set(tmp_path / "set", KEYS, random_maps(5, 7), 7, shard_size=2, classes=classes)
    store = LabelStore.open(tmp_path / "set")
    assert store.targets.dtype == torch.int64
    assert [classes[i] for i in store.targets] == [key.split("/")[0] for key in store.keys]
    write_label_set(tmp_path / "other", KEYS, random_maps(5, 7), 7, classes=("owl", *classes[1:]))
    assert "1 classes of the keys are not among its classes (first: eel)" in refusal(
        lambda: LabelStore.open(tmp_path / "other").targets
    )
    write_label_set(tmp_path / "unnamed", KEYS, random_maps(5, 7), 7)
    said = refusal(lambda: LabelStore.open(tmp_path / "unnamed").targets)
    assert f"{tmp_path / 'unnamed' / 'manifest.json'} names no classes" in said
