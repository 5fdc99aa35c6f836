"""Readable class names."""

from pathlib import Path

import pytest

from relabel.images.classes import ClassNames
from relabel.runtime.errors import InputError


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
