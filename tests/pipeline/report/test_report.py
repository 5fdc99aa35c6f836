"""`relabel report` as a command: what the file holds, its size, what it replaces, and what it cannot show."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree

import pytest
import torch

from pipeline.report.page import as_script
from pipeline.report.run import is_ours
from relabel.labels.maps import LabelMaps
from tests.conftest import REPOSITORY, Relabel
from tests.label_sets import write_label_set
from tests.pipeline.report.report_sets import random_maps, write_maps, write_pictures

CLASSES = ("ant", "bee", "cat")
KEYS = ["ant/0.JPEG", "ant/1.JPEG", "bee/0.JPEG", "cat/0.JPEG", "cat/1.JPEG"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_maps(tmp_path, KEYS, random_maps(5, 3, 2, (2, 3)), CLASSES)
    return tmp_path


def data_of(page: Path) -> dict[str, object]:
    """The data for the scripts."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


def said(relabel_here: Relabel, folder: Path, *options: object, images: str = "images", labels: str = "labels") -> str:
    """The message of a command that fails and writes nothing."""
    page = folder / "page.html"
    done = relabel_here("report", folder / labels, "--images", folder / images, "--output", page, *options)
    assert done.returncode == 1 and not page.exists()
    return done.stderr


def test_report_is_one_file_that_names_every_image(folder: Path, relabel_here: Relabel) -> None:
    page = folder / "page.html"
    for _ in range(2):  # it replaces its own
        done = relabel_here("report", folder / "labels", "--images", folder / "images", "--output", page)
        assert done.returncode == 0 and f"{page}: 5 of 5 images, 0.1 MB" in done.stdout, done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    assert all(key in text for key in KEYS)
    assert set(re.findall(r'(?:src|href)="([^"#]{0,5})', text)) == {"data:", ""}
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    page.write_text("<html>something else</html>")
    assert "--force" in relabel_here("report", folder / "labels", "--images", folder / "images", "--output", page).stderr
    assert not is_ours(page)


def test_folder_whose_name_is_no_text_is_shown(folder: Path, relabel_here: Relabel) -> None:
    labels = (folder / "labels").rename(folder / "odd\udcff‮<b>")
    page = folder / "page.html"
    done = relabel_here("report", labels, "--images", folder / "images", "--output", page)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "odd?‮&lt;b&gt;" in page.read_text(encoding="utf-8")


def test_data_cannot_end_its_element() -> None:
    hostile = "</script><!--\u2028\u2029"
    written = as_script({"name": hostile})
    assert "<" not in written and "\u2028" not in written and json.loads(written) == {"name": hostile}


@pytest.mark.slow
def test_report_of_twenty_thousand_classes_with_long_names_stays_below_ten_megabytes(
    tmp_path: Path, relabel_here: Relabel
) -> None:
    many = 21_000
    classes = [f"{'<é&' * 60}{number:05}" for number in range(many)]  # 245 bytes
    keys = [f"{classes[number]}/0.JPEG" for number in range(30)]
    maps = random_maps(30, many, 5, (4, 4))
    spread = torch.arange(30 * 5 * 32 * 32).view(30, 5, 32, 32) % many  # every class is stored somewhere
    wide = LabelMaps(maps.scores.repeat(1, 1, 8, 8), spread, maps.tail.repeat(1, 8, 8))
    write_label_set(tmp_path / "labels", keys, wide, many, classes=tuple(classes))
    write_pictures(tmp_path / "images", keys)
    page = tmp_path / "page.html"
    done = relabel_here("report", tmp_path / "labels", "--images", tmp_path / "images", "--output", page)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 4_000_000 < page.stat().st_size < 10_000_000


def test_labels_too_large_for_a_page_are_left_out_of_it(tmp_path: Path, relabel_here: Relabel) -> None:
    write_maps(tmp_path, KEYS[:2] + KEYS[3:4], random_maps(3, 300, 300, (20, 20)), [*CLASSES, *map(str, range(297))])
    page = tmp_path / "page.html"
    done = relabel_here("report", tmp_path / "labels", "--images", tmp_path / "images", "--output", page)
    assert done.returncode == 0, done.stdout + done.stderr
    images = data_of(page)["images"]
    assert isinstance(images, list) and [image["sets"][0]["omitted"] for image in images] == [300 * 400 * 4 + 800] * 3


def test_unreadable_image_is_named_and_the_others_are_shown(folder: Path, relabel_here: Relabel) -> None:
    (folder / "images/bee/0.JPEG").write_text("no image")
    page = folder / "page.html"
    done = relabel_here("report", folder / "labels", "--images", folder / "images", "--output", page)
    assert done.returncode == 0 and "1 of the 5 images on the page cannot be read" in done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 4 and "1 of the 5 images on the page cannot be read" in text


def test_images_without_labels_are_counted(folder: Path, relabel_here: Relabel) -> None:
    write_pictures(folder / "images", ["cat/new.JPEG"])
    page = folder / "page.html"
    done = relabel_here("report", folder / "labels", "--images", folder / "images", "--output", page)
    assert "has no labels of 1 of the 6 images (first: cat/new.JPEG)" in done.stdout + done.stderr
    assert "has no labels of 1 of the 6 images" in page.read_text(encoding="utf-8")


def test_two_sets_are_sorted_by_how_much_they_differ(folder: Path, relabel_here: Relabel) -> None:
    maps = random_maps(5, 3, 2, (2, 3))
    maps.classes[3] = (maps.classes[3] + 1) % 3  # only this image's labels differ
    write_label_set(folder / "other", KEYS[1:], maps.part(slice(1, None)), 3, classes=CLASSES)
    page = folder / "page.html"
    arguments = ["report", folder / "labels", "--images", folder / "images", "--and", folder / "other", "--output", page]
    assert relabel_here(*arguments).returncode == 0
    data = data_of(page)
    images, lists = data["images"], data["lists"]
    assert isinstance(images, list) and isinstance(lists, dict)
    differences = {image["key"]: image["numbers"]["difference"] for image in images}
    assert differences.pop("ant/0.JPEG") is None and differences.pop("cat/0.JPEG") > 0.01
    assert list(differences.values()) == [0, 0, 0]
    assert images[lists["different"][0]]["key"] == "cat/0.JPEG" and len(lists["different"]) == 4


def test_changed_image_is_named(undisturbed: Path, image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    with (image_folder / "dog/dog_3.JPEG").open("ab") as file:
        file.write(b"more")
    arguments = ["report", undisturbed, "--images", image_folder, "--output", tmp_path / "page.html"]
    done = relabel_here(*arguments)
    changed = "1 of the 9 images on the page have changed since they were annotated (first: dog/dog_3.JPEG)"
    assert changed in done.stdout + done.stderr and changed in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_classes_are_called_by_the_names_of_the_file(folder: Path, relabel_here: Relabel) -> None:
    names, page = folder / "names.txt", folder / "page.html"
    names.write_text("ant Formica\n")
    assert "2 of 3 classes have no name (first: bee)" in said(relabel_here, folder, "--class-names", names)
    names.write_text("ant Formica\nbee Apis\ncat Felis\n")
    arguments = ["report", folder / "labels", "--images", folder / "images", "--output", page]
    assert relabel_here(*arguments, "--class-names", names).returncode == 0
    assert "Formica (ant)" in page.read_text(encoding="utf-8")


def test_what_cannot_be_reported_gets_a_message(folder: Path, relabel_here: Relabel) -> None:
    assert "is not a label set" in said(relabel_here, folder, labels="images")
    write_pictures(folder / "others", ["ant/x.JPEG", "bee/y.JPEG", "cat/z.JPEG"])
    other_images = said(relabel_here, folder, images="others")
    assert "5 of its 5 keys are not in" in other_images and "(first: ant/0.JPEG, found: ant/x.JPEG)" in other_images
    write_pictures(folder / "classes", [*KEYS, "dog/0.JPEG"])
    assert "1 of 4 class folders are not classes of" in said(relabel_here, folder, images="classes")
    write_label_set(folder / "unnamed", KEYS, random_maps(5, 4, 2, (2, 3)), 4)
    assert "names no classes, so they are those of the folders" in said(relabel_here, folder, labels="unnamed")
    assert "is not a run directory: missing run.json" in said(relabel_here, folder, "--run", folder)
    write_label_set(folder / "four", KEYS, random_maps(5, 4, 2, (2, 3)), 4, classes=(*CLASSES, "dog"))
    assert "cannot stand side by side: expected 3 classes, found 4" in said(relabel_here, folder, "--and", folder / "four")
    write_label_set(folder / "apart", KEYS[:1], random_maps(1, 3, 2, (2, 3)), 3, classes=CLASSES, window=0.5)
    assert "do not cover the same part of each image" in said(relabel_here, folder, "--and", folder / "apart")
    assert "cannot read class names" in said(relabel_here, folder, "--class-names", folder / "absent.txt")
    arguments = ["report", folder / "labels", "--images", folder / "images", "--output"]
    assert "expected a name that ends in .html" in relabel_here(*arguments, folder / "page.pdf").stderr
    assert (
        "is not a folder that can be written to" in relabel_here(*arguments, folder / "images/ant/0.JPEG/page.html").stderr
    )


@pytest.mark.slow
def test_wheel_holds_the_page_and_its_scripts(tmp_path: Path) -> None:
    for name in ("relabel", "annotate", "train", "pipeline"):
        copytree(REPOSITORY / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]).namelist())
    sources = {f"pipeline/report/{path.name}" for path in (REPOSITORY / "pipeline/report").iterdir() if path.is_file()}
    assert sources <= names and "pipeline/report/page.html" in sources
