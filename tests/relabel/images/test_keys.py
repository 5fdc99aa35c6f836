"""Keys are found by their bytes, and else by their letters."""

import numpy as np

from relabel.images.keys import KeyIndex, Keys, encode_keys

ONE, TWO = "caf\u00e9/x.JPEG", "cafe\u0301/x.JPEG"  # é of one character and of two


def test_key_is_found_in_another_spelling_of_its_accents_but_its_own_comes_first() -> None:
    assert KeyIndex(encode_keys(["ant/x.JPEG", TWO, "zoo"])).find(encode_keys([ONE, "zoo", "the"])).tolist() == [1, 2, -1]
    assert KeyIndex(encode_keys(["ant/x.JPEG", ONE])).find(encode_keys([TWO])).tolist() == [1]
    both = KeyIndex(encode_keys([ONE, TWO]))
    assert both.find(encode_keys([TWO, ONE])).tolist() == [1, 0]


def test_keys_that_are_not_utf8_are_not_found() -> None:
    assert KeyIndex(encode_keys([ONE])).find(np.array([b"caf\xe9/x.JPEG"])).tolist() == [-1]
    assert KeyIndex(encode_keys([])).find(encode_keys([ONE])).tolist() == [-1]


def test_keys_are_a_sequence_of_strings_equal_to_any_other_of_the_same_strings() -> None:
    strings = ["ant/1.JPEG", "ant/10.JPEG", ONE]
    keys = Keys(encode_keys(strings))
    assert list(keys) == [keys[0], keys[1], keys[-1]] == strings
    assert keys == strings and keys == tuple(strings) and keys == Keys(encode_keys([*strings, "a" * 99])[:3])
    assert keys != strings[:2] and keys != [*strings[:2], TWO] and keys != "ant"
    assert keys[1:] == strings[1:] and TWO not in keys and keys.index(ONE) == 2
