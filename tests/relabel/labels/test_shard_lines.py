"""shards.jsonl: lines are read back, and damaged ones are reported by number."""

import json
from pathlib import Path

import pytest

from relabel.labels.shard_lines import SHARD_LINES, ShardLine, append_shard_line, read_shard_lines, write_shard_lines
from relabel.runtime.errors import InputError

LINES = {
    0: ShardLine(0, "shard-00000.h5", 3, "aa"),
    1: ShardLine(1, "shard-00001.h5", 1, "bb", ("b/ü.JPEG", "b/2.JPEG")),
    2: ShardLine(2, "shard-00002.h5", 0, "cc"),
}


def test_appended_lines_read_back(tmp_path: Path) -> None:
    assert read_shard_lines(tmp_path) == {}
    for number in (2, 0, 1):
        append_shard_line(tmp_path, LINES[number])
    assert read_shard_lines(tmp_path) == LINES


def test_incomplete_last_line_is_dropped_wherever_it_ends(tmp_path: Path) -> None:
    write_shard_lines(tmp_path, LINES)
    complete = (tmp_path / SHARD_LINES).read_bytes()
    last = len(LINES[2].to_json())
    for lost in range(1, last + 1):
        (tmp_path / SHARD_LINES).write_bytes(complete[:-lost])
        assert read_shard_lines(tmp_path) == {0: LINES[0], 1: LINES[1]}


@pytest.mark.parametrize(
    "damage",
    [
        "not json",
        "[1, 2]",
        '{"shard": 1}',
        '{"shard": 1, "unreadable": [], "rows": 1, "x": 2}',
        '{"shard": 1, "file": "shard-00001.h5", "rows": 1, "sha256": 7, "unreadable": []}',
        '{"shard": 1, "file": "shard-00001.h5", "rows": 1, "sha256": "bb", "unreadable": [7]}',
    ],
)
def test_damaged_middle_line_is_named_by_number(tmp_path: Path, damage: str) -> None:
    write_shard_lines(tmp_path, LINES)
    lines = (tmp_path / SHARD_LINES).read_text().splitlines(keepends=True)
    (tmp_path / SHARD_LINES).write_text(lines[0] + damage + "\n" + lines[2])
    with pytest.raises(
        InputError, match=rf"{tmp_path}/shards\.jsonl line 2 is damaged .*run the command that made the label set again"
    ):
        read_shard_lines(tmp_path)


def test_rewritten_lines_do_not_depend_on_the_order_in_which_shards_finished(tmp_path: Path) -> None:
    write_shard_lines(tmp_path, {n: LINES[n] for n in (2, 0, 1)})
    first = (tmp_path / SHARD_LINES).read_bytes()
    write_shard_lines(tmp_path, LINES)
    assert (tmp_path / SHARD_LINES).read_bytes() == first
    assert [json.loads(line)["shard"] for line in first.splitlines()] == [0, 1, 2]
