"""`relabel annotate` from end to end: what it writes, what a rerun does, and how it reports bad input."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.shard_lines import SHARD_LINES, read_shard_lines
from relabel.labels.shards import shard_name
from relabel.labels.store import LabelStore
from relabel.runtime.files import sha256_of
from tests.conftest import THIN, Contents, Relabel

KEYS = ["cat/cat_0.JPEG", *(f"dog/dog_{i}.JPEG" for i in range(5)), *(f"eel/eel_{i}.JPEG" for i in range(3))]  # sorted


@pytest.fixture
def annotate(relabel_here: Relabel, image_folder: Path, tmp_path: Path, tiny_options: list[str]) -> Relabel:
    """Annotate the image folder into tmp_path/"labels"; the given options override the usual ones."""

    def run(*more: object, images: Path = image_folder, labels: str = "labels") -> "CompletedProcess[str]":
        return relabel_here("annotate", images, "--labels", tmp_path / labels, *tiny_options, *more)

    return run


def truncate(image: Path) -> None:
    content = image.read_bytes()
    image.write_bytes(content[:-60])  # cuts into the pixels; the header takes 600 bytes


# --- what is written ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_every_cell_stores_the_classifiers_two_largest_logits_at_that_location(
    undisturbed: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN).eval()
    classifier.load_state_dict(torch.load(tiny_checkpoint, weights_only=True))
    settings = classifier.pretrained_cfg
    preprocess = transforms.Compose(
        [
            transforms.Resize((32, 56), InterpolationMode(settings["interpolation"])),
            transforms.ToTensor(),
            transforms.Normalize(settings["mean"], settings["std"]),
        ]
    )
    store = LabelStore.open(undisturbed)
    assert store.keys == KEYS
    for key in KEYS:
        features = classifier.forward_features(preprocess(Image.open(image_folder / key).convert("RGB"))[None])
        maps = store.gather(store.rows([key]))
        for row in range(4):
            for column in range(7):
                logits = classifier.fc(features[0, :, row, column])
                best, second, last = logits.argsort(descending=True).tolist()
                assert maps.classes[0, :, row, column].tolist() == [best, second]
                stored = [*maps.scores[0, :, row, column].tolist(), maps.tail[0, row, column].item()]
                assert stored == pytest.approx(logits[[best, second, last]].tolist(), rel=2e-3, abs=2e-3)


def test_manifest_records_how_the_labels_were_made(undisturbed: Path, tiny_checkpoint: Path) -> None:
    manifest = Manifest.load(undisturbed)
    assert manifest.model == "resnet10t" and manifest.model_kwargs == {**THIN, "channels": [8, 8, 8, 16]}
    assert (manifest.weights, manifest.weights_sha256) == (tiny_checkpoint.name, sha256_of(tiny_checkpoint))
    assert (manifest.kind, manifest.precision, manifest.tail) == ("exact", "float32", "mean")
    assert (manifest.num_classes, manifest.topk, manifest.grid, manifest.input_size) == (3, 2, (4, 7), (32, 56))
    assert (manifest.image_count, manifest.shard_size, manifest.shard_count) == (9, 3, 3)
    assert (manifest.timm_version, manifest.torch_version) == (timm.__version__, torch.__version__)


def test_label_set_passes_verify(relabel_here: Relabel, undisturbed: Path, image_folder: Path) -> None:
    finished = relabel_here("verify", undisturbed, "--images", image_folder, "--min-agreement", 0)
    assert finished.returncode == 0, finished.stdout
    assert "9 label maps of 4x7 cells, top 2 of 3 classes by resnet10t (exact)" in finished.stdout
    assert finished.stdout.splitlines()[-1] == "OK"


def test_decoding_in_workers_or_in_the_main_process_gives_the_same_bytes(
    annotate: Relabel, undisturbed: Path, tmp_path: Path, contents: Contents
) -> None:
    finished = annotate("--workers", 0)
    assert finished.returncode == 0
    assert f"{tmp_path}/labels: 9 label maps of 4x7 cells, top 2 of 3 classes" in finished.stdout
    assert contents(tmp_path / "labels") == contents(undisturbed)


def test_last_shard_holds_the_rest_and_shard_size_changes_no_label(
    annotate: Relabel, undisturbed: Path, tmp_path: Path
) -> None:
    assert annotate("--shard-size", 4).returncode == 0
    assert [line.rows for line in read_shard_lines(tmp_path / "labels").values()] == [4, 4, 1]
    store, reference = LabelStore.open(tmp_path / "labels"), LabelStore.open(undisturbed)
    assert store.keys == KEYS
    expected = reference.gather(reference.rows(KEYS)).dense(3)
    assert torch.allclose(store.gather(store.rows(KEYS)).dense(3), expected, rtol=2e-3, atol=2e-3)


def test_bfloat16_is_recorded_and_close_to_float32(annotate: Relabel, undisturbed: Path, tmp_path: Path) -> None:
    assert annotate("--amp").returncode == 0
    assert Manifest.load(tmp_path / "labels").precision == "bfloat16"
    coarse, fine = (LabelStore.open(labels).to("cpu") for labels in (tmp_path / "labels", undisturbed))
    gap = (coarse.gather(coarse.rows(KEYS)).dense(3) - fine.gather(fine.rows(KEYS)).dense(3)).abs()
    assert 0 < float(gap.mean()) < 0.05 * float(fine.gather(fine.rows(KEYS)).scores.float().std())


@pytest.mark.parametrize("tail", ["mean", "logmeanexp", "zero"])
def test_chosen_tail_is_stored(annotate: Relabel, tmp_path: Path, tail: str) -> None:
    assert annotate("--tail", tail, "--topk", 1).returncode == 0
    assert annotate("--topk", 3, labels="whole").returncode == 0
    store, whole = LabelStore.open(tmp_path / "labels"), LabelStore.open(tmp_path / "whole")
    left_out = whole.gather(whole.rows(KEYS)).scores[:, 1:].float()
    expected = {
        "mean": left_out.mean(1),
        "logmeanexp": left_out.exp().mean(1).log(),
        "zero": torch.zeros(9, 4, 7),
    }[tail]
    assert store.manifest.tail == tail
    assert torch.allclose(store.gather(store.rows(KEYS)).tail.float(), expected, rtol=2e-3, atol=2e-3)


def test_label_sets_of_two_annotators_can_be_stored_side_by_side(
    annotate: Relabel,
    relabel_here: Relabel,
    make_checkpoint: Callable[[int], Path],
    undisturbed: Path,
    image_folder: Path,
    tmp_path: Path,
    contents: Contents,
) -> None:
    assert annotate(labels="sets/first").returncode == 0
    assert annotate("--checkpoint", make_checkpoint(1), labels="sets/second").returncode == 0
    assert contents(tmp_path / "sets/first") == contents(undisturbed)
    first, second = (LabelStore.open(tmp_path / "sets" / name) for name in ("first", "second"))
    assert first.keys == second.keys
    assert not torch.equal(first.gather(first.rows(KEYS)).scores, second.gather(second.rows(KEYS)).scores)
    for name in ("first", "second"):
        verified = relabel_here("verify", tmp_path / "sets" / name, "--images", image_folder, "--min-agreement", 0)
        assert verified.returncode == 0


# --- reruns ---------------------------------------------------------------------------------------------------------------


def test_rerun_of_a_finished_label_set_touches_no_shard(annotate: Relabel, labels: Path, contents: Contents) -> None:
    before = contents(labels)
    times = {p.name: p.stat().st_mtime_ns for p in labels.glob("*.h5")}
    finished = annotate()
    assert finished.returncode == 0
    assert "all 3 shards are finished and intact; nothing to do" in finished.stdout
    assert contents(labels) == before
    assert {p.name: p.stat().st_mtime_ns for p in labels.glob("*.h5")} == times


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--topk=1"], "topk: 2, not 1 as in this run"),
        (["--amp"], "precision: 'float32', not 'bfloat16' as in this run"),
        (["--shard-size=4"], "shard_size: 3, not 4 as in this run"),
        (["--input-size=32x64"], "input_size: [32, 56], not [32, 64]; grid: [4, 7], not [4, 8] as in this run"),
    ],
)
def test_different_options_for_the_same_folder_are_rejected_with_the_difference(
    annotate: Relabel, labels: Path, contents: Contents, options: list[str], difference: str
) -> None:
    before = contents(labels)
    finished = annotate(*options)
    assert finished.returncode == 1
    assert f"{labels} holds a label set with different settings ({difference}); use a different --labels" in finished.stderr
    assert contents(labels) == before


def test_different_weights_for_the_same_folder_are_rejected(
    annotate: Relabel, labels: Path, make_checkpoint: Callable[[int], Path], tmp_path: Path
) -> None:
    same_name = shutil.copy(make_checkpoint(1), tmp_path / "tiny-0.pth")
    finished = annotate("--checkpoint", same_name)
    assert finished.returncode == 1 and "weights_sha256: " in finished.stderr


def test_same_weights_under_a_different_name_make_the_same_label_set(
    annotate: Relabel, labels: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert annotate("--checkpoint", shutil.copy(tiny_checkpoint, tmp_path / "renamed.pth")).returncode == 0


def test_different_images_for_the_same_folder_are_rejected(annotate: Relabel, labels: Path, image_folder: Path) -> None:
    (image_folder / "dog/dog_0.JPEG").rename(image_folder / "dog/dog_00.JPEG")
    finished = annotate()
    assert finished.returncode == 1 and "image_digest: " in finished.stderr and "image_count" not in finished.stderr


def test_image_folder_may_be_moved(annotate: Relabel, labels: Path, image_folder: Path, tmp_path: Path) -> None:
    finished = annotate(images=image_folder.rename(tmp_path / "elsewhere"))
    assert finished.returncode == 0 and "nothing to do" in finished.stdout


def test_damaged_and_missing_shards_are_made_again(
    annotate: Relabel, labels: Path, undisturbed: Path, contents: Contents
) -> None:
    flipped = bytearray((labels / shard_name(0)).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (labels / shard_name(0)).write_bytes(flipped)
    (labels / shard_name(2)).unlink()
    finished = annotate()
    assert finished.returncode == 0
    for shard in (0, 2):
        assert f"{labels}/{shard_name(shard)} is missing or damaged; making it again" in finished.stdout
    assert "1 of 3 shards are finished and intact; making the rest" in finished.stdout
    assert contents(labels) == contents(undisturbed)


def test_unfinished_files_of_a_killed_run_are_removed(
    annotate: Relabel, labels: Path, undisturbed: Path, contents: Contents
) -> None:
    lines = (labels / SHARD_LINES).read_bytes().splitlines(keepends=True)
    (labels / SHARD_LINES).write_bytes(lines[0] + lines[1][:-20])  # torn while appending
    (labels / f".{shard_name(2)}.4711.tmp").write_bytes(b"half a shard")
    (labels / shard_name(2)).unlink()
    assert annotate().returncode == 0
    assert contents(labels) == contents(undisturbed)


def test_label_set_of_a_different_format_version_is_rejected_and_kept(
    annotate: Relabel, labels: Path, contents: Contents
) -> None:
    fields = json.loads((labels / MANIFEST).read_text())
    (labels / MANIFEST).write_text(json.dumps(fields | {"format": 0}))
    before = contents(labels)
    finished = annotate()
    assert finished.returncode == 1
    assert f"relabel: {labels}/manifest.json: label format 0, this relabel reads 1" in finished.stderr
    assert contents(labels) == before


def test_folder_with_other_files_is_not_written_to(annotate: Relabel, tmp_path: Path, contents: Contents) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "thesis.tex").write_text("years of work")
    finished = annotate()
    assert finished.returncode == 1
    assert "is not empty and is not a label set (it contains thesis.tex); use an empty folder" in finished.stderr
    assert contents(tmp_path / "labels") == {"thesis.tex": b"years of work"}


def test_full_disk_gives_one_message_and_loses_no_shard_and_a_rerun_finishes(
    annotate: Relabel,
    labels: Path,
    undisturbed: Path,
    contents: Contents,
    file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]],
) -> None:
    (labels / shard_name(1)).unlink()
    with file_size_limit(2000):  # manifest and shards.jsonl still fit
        finished = annotate()
    assert finished.returncode == 1
    assert f"annotating into {labels} stopped: [Errno 27] File too large. Finished shards are kept; rerun" in finished.stderr
    assert sorted(contents(labels)) == [MANIFEST, shard_name(0), shard_name(2), SHARD_LINES]
    assert sorted(read_shard_lines(labels)) == [0, 2]
    assert annotate().returncode == 0
    assert contents(labels) == contents(undisturbed)


# --- unreadable images ----------------------------------------------------------------------------------------------------


def test_unreadable_images_of_a_shard_are_all_listed(
    annotate: Relabel, image_folder: Path, undisturbed: Path, tmp_path: Path, contents: Contents
) -> None:
    originals = {key: (image_folder / key).read_bytes() for key in KEYS}
    truncate(image_folder / KEYS[3])
    (image_folder / KEYS[5]).write_text("no image")
    truncate(image_folder / KEYS[8])
    finished = annotate()
    assert finished.returncode == 1
    assert "2 unreadable images in shard 1 of 3:" in finished.stderr
    assert f"  {image_folder / KEYS[3]}: image file is truncated" in finished.stderr
    assert f"  {image_folder / KEYS[5]}: cannot identify image file" in finished.stderr
    assert KEYS[4] not in finished.stderr
    assert "--skip-unreadable" in finished.stderr
    kept = contents(tmp_path / "labels")
    assert sorted(kept) == [MANIFEST, shard_name(0), SHARD_LINES]
    assert kept[shard_name(0)] == contents(undisturbed)[shard_name(0)]
    for key in KEYS:
        (image_folder / key).write_bytes(originals[key])
    assert annotate().returncode == 0
    assert contents(tmp_path / "labels") == contents(undisturbed)


def test_skipped_unreadable_images_are_recorded_and_verify_reports_so_many_of_them(
    annotate: Relabel, relabel_here: Relabel, image_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    bad = [KEYS[3], KEYS[5], KEYS[6], KEYS[7], KEYS[8]]  # some of shard 1, all of shard 2
    for key in bad:
        truncate(image_folder / key)
    assert annotate().returncode == 1
    finished = annotate("--skip-unreadable")
    assert finished.returncode == 0
    assert "4 label maps of 4x7 cells, top 2 of 3 classes, 5 unreadable images left out" in finished.stdout
    labels = tmp_path / "labels"
    store, whole = LabelStore.open(labels), LabelStore.open(undisturbed)
    readable = [key for key in KEYS if key not in bad]
    assert store.keys == readable and list(store.unreadable) == bad
    maps, expected = store.gather(store.rows(readable)), whole.gather(whole.rows(readable))
    assert torch.allclose(maps.scores.float(), expected.scores.float(), rtol=2e-3, atol=2e-3)
    verified = relabel_here("verify", labels, "--images", image_folder, "--min-agreement", 0)
    assert verified.returncode == 1
    assert "5 unreadable images left out" in verified.stdout and "1 error\n" in verified.stdout
    assert (
        f"ERROR {labels}: 5 of 9 images were unreadable and are left out (first: {bad[0]}), expected at most 20%. If they"
        f" can be read now, delete {shard_name(1)}, {shard_name(2)} and run" in verified.stdout
    )
    assert annotate().returncode == 1  # they are still unreadable


def test_label_set_with_one_skipped_image_passes_verify(
    annotate: Relabel, relabel_here: Relabel, image_folder: Path, tmp_path: Path
) -> None:
    truncate(image_folder / KEYS[3])
    assert annotate("--skip-unreadable").returncode == 0
    verified = relabel_here("verify", tmp_path / "labels", "--images", image_folder, "--min-agreement", 0)
    assert verified.returncode == 0, verified.stdout
    assert "1 unreadable images left out" in verified.stdout


def test_label_set_and_run_inside_the_image_folder_are_refused(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(image_folder)
    monkeypatch.chdir(image_folder)
    for inside in (
        image_folder / "labels",
        tmp_path / "link" / "cat" / "labels",
        "labels",
        tmp_path / "new" / ".." / "images",
    ):
        finished = relabel_here("annotate", image_folder, "--labels", inside, *tiny_options)
        assert finished.returncode == 1
        assert f"--labels {inside} lies in the image folder {image_folder}, where it would count as" in finished.stderr
    (tmp_path / "val").mkdir()
    for images, val in ((image_folder, tmp_path / "val"), (tmp_path / "val", image_folder)):
        finished = relabel_here("train", images, "--run-dir", image_folder / "run", "--recipe", "single", "--val", val)
        assert finished.returncode == 1
        assert f"--run-dir {image_folder}/run lies in the image folder {image_folder}, where" in finished.stderr
    assert sorted(p.name for p in image_folder.iterdir()) == ["cat", "dog", "eel"]


def test_default_topk_keeps_all_of_few_classes_and_a_different_number_of_image_classes_gives_a_warning(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path
) -> None:
    shutil.rmtree(image_folder / "eel")
    options = [option for option in tiny_options if not option.startswith("--topk")]
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *options)
    assert finished.returncode == 0, finished.stderr
    assert LabelStore.open(tmp_path / "labels").manifest.topk == 3
    assert f"warning: resnet10t has 3 classes, but {image_folder} has 2; train accepts these maps" in finished.stdout


# --- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topk=4"], "--topk 4: resnet10t gives only 3 classes; use at most 3"),
        (["--topk=0"], "topk is 0; expected at least 1"),
        (["--batch-size=0"], "batch_size is 0; expected at least 1"),
        (["--shard-size=-1"], "shard_size is -1; expected at least 1"),
        (["--input-size=32by56"], "--input-size '32by56': expected pixels, as N or ROWSxCOLUMNS"),
        (["--input-size=0"], "--input-size '0': expected pixels, as N or ROWSxCOLUMNS"),
        (["--num-classes=7"], "pass --num-classes 3"),
        (["--num-classes=-1"], "--num-classes"),
        (["--workers=-1"], "--workers -1: expected at least 0"),
        (["--model=resnet1Ot"], "no model named 'resnet1Ot'"),
        (["--model-kwargs=output_stride"], "--model-kwargs 'output_stride': expected KEY=VALUE"),
        (["--device=abacus"], "--device abacus is not available"),
    ],
)
def test_invalid_option_gets_a_one_line_message(annotate: Relabel, tmp_path: Path, options: list[str], message: str) -> None:
    finished = annotate(*options)
    assert finished.returncode == 1
    assert finished.stderr.startswith("relabel: ") and message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not list(tmp_path.glob("labels/*.h5"))


@pytest.mark.parametrize(
    ("option", "choices"), [("--tail=median", ["mean", "logmeanexp", "zero"]), ("--amp-dtype=int8", ["bfloat16", "float16"])]
)
def test_unknown_choice_is_a_usage_error_that_names_the_choices(
    annotate: Relabel, tmp_path: Path, option: str, choices: list[str]
) -> None:
    finished = annotate("--amp", option)
    assert finished.returncode == 2
    assert all(f"'{choice}'" in finished.stderr for choice in [option.split("=")[1], *choices])
    assert option.split("=")[0] in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "labels").exists()


def test_class_folder_without_images_but_with_other_files_stops_the_run_before_anything_is_written(
    annotate: Relabel, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "fox").mkdir()
    (image_folder / "fox" / "notes.txt").write_text("soon")
    finished = annotate()
    assert finished.returncode == 1 and f"{image_folder}/fox contains no images" in finished.stderr
    assert not (tmp_path / "labels").exists()


def test_empty_class_folder_is_a_class(annotate: Relabel, image_folder: Path, tmp_path: Path) -> None:
    """As in a part of ImageNet with all its folders."""
    shutil.rmtree(image_folder / "dog")
    (image_folder / "dog").mkdir()
    (image_folder / "lost+found").mkdir()
    finished = annotate()
    assert finished.returncode == 0, finished.stderr
    assert "1 of 3 class folders" in finished.stdout and "are empty (such as dog)" in finished.stdout
    manifest = Manifest.load(tmp_path / "labels")
    assert (manifest.classes, manifest.image_count) == (("cat", "dog", "eel"), 4)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_message_for_a_missing_image_folder_gives_its_path(annotate: Relabel, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    finished = annotate(images=tmp_path / name)
    assert finished.returncode == 1 and finished.stderr.startswith(f"relabel: {tmp_path / name} ")


def test_message_for_a_file_in_place_of_the_label_folder_gives_its_path(annotate: Relabel, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a file")
    finished = annotate()
    assert finished.returncode == 1 and f"{tmp_path}/labels" in finished.stderr
    assert (tmp_path / "labels").read_text() == "a file"


def test_logits_too_large_for_float16_are_rejected_and_not_stored_as_infinity(
    annotate: Relabel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    weights = torch.load(tiny_checkpoint, weights_only=True)
    weights["fc.weight"] *= 1e6
    torch.save(weights, tmp_path / "loud.pth")
    finished = annotate("--checkpoint", tmp_path / "loud.pth")
    assert finished.returncode == 1
    assert "logits that are not finite, or too large for float16 (65504), in shard 0" in finished.stderr
    assert not list((tmp_path / "labels").glob("*.h5"))
