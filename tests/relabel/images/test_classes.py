"""Readable class names."""

from pathlib import Path

import pytest

from relabel.images.class_lists import output_names
from relabel.images.classes import ClassNames, check_recorded_classes, class_indices, class_mismatch
from relabel.runtime.errors import InputError
from tests.label_sets import named_images


def test_wordnet_ids_get_their_lemma_and_other_folders_keep_their_name() -> None:
    names = ClassNames()
    assert names("n01440764") == "tench (n01440764)"
    assert names("n00004475") == "organism (n00004475)", "WordNet beyond ImageNet's thousand"
    assert (names("cat"), names("7"), names("n99999999")) == ("cat", "7", "n99999999")


def test_names_from_a_file_replace_wordnets(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("n01440764 tench, Tinca tinca\n\nbig cats\tlions & others\n7  seven\n")
    names = ClassNames(file)
    assert names("n01440764") == "tench, Tinca tinca (n01440764)"
    assert names("big cats") == "lions & others (big cats)"
    assert names("7") == "seven (7)"
    assert names("n01443537") == "n01443537", "not in the file"


@pytest.mark.parametrize(
    ("content", "message"),
    [("7 seven\n8\n", "line 2 is '8'; expected FOLDER NAME"), ("7 seven\n7 siete\n", "line 2 names the folder 7 again")],
)
def test_malformed_or_repeated_lines_are_rejected(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        ClassNames(tmp_path / "names.txt")
    with pytest.raises(InputError, match="cannot read class names"):
        ClassNames(tmp_path / "none.txt")


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("7 seven\r\n8 eight\r\n", encoding="utf-8-sig")
    assert ClassNames(tmp_path / "names.txt")("7") == "seven (7)"


def test_accented_letter_of_one_character_is_the_same_as_of_two(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    images = named_images((two, "thé"), (), [])
    assert class_mismatch((one, "thé"), images.classes) is None
    assert class_mismatch((one, "eau"), images.classes) == "different class names or order: expected eau, found thé"
    assert class_indices(images, ("eau", "thé", one), "the model").tolist() == [2, 1]
    (tmp_path / "names.txt").write_text(f"{one} coffee\n", encoding="utf-8")
    assert ClassNames(tmp_path / "names.txt")(two) == f"coffee ({two})"


def test_names_of_outputs_match_recorded_classes_in_either_spelling_of_an_accented_letter(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    names = tmp_path / "names.txt"
    names.write_text(f"{two}\neau\n", encoding="utf-8-sig")
    check_recorded_classes((two, "eau"), str(names), "the model", "--classes")
    check_recorded_classes((one, "eau"), str(names), "the model", "--classes")
    names.write_text(f"{two}\n{one}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"{one} is listed twice"):
        output_names(str(names), 2)
