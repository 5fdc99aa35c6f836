"""Metrics and curves of a run on a full disk, and without matplotlib."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relabel.runtime.errors import InputError
from train.run_dir.metrics import CURVES, METRICS, append_metrics, draw_curves, read_metrics

EPOCH = {"epoch": 1, "step": 4, "loss": 1.5, "top1": 40.0, "lr": 0.1}


def test_full_disk_is_reported_when_metrics_are_appended(tmp_path: Path) -> None:
    (tmp_path / METRICS).symlink_to("/dev/full")
    message = r"cannot write .*metrics\.jsonl: No space left .*Checkpoint saved; free disk space and run again with --resume"
    with pytest.raises(InputError, match=message):
        append_metrics(tmp_path, EPOCH)


def test_curves_that_do_not_fit_on_the_disk_leave_the_earlier_ones(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    append_metrics(tmp_path, EPOCH)
    draw_curves(tmp_path)
    before = (tmp_path / CURVES).read_bytes()
    append_metrics(tmp_path, EPOCH | {"epoch": 2})
    with file_size_limit(1000), pytest.raises(InputError, match=r"cannot write .*curves\.png: File too large"):
        draw_curves(tmp_path)
    assert (tmp_path / CURVES).read_bytes() == before
    assert [m["epoch"] for m in read_metrics(tmp_path)] == [1, 2]
    draw_curves(tmp_path)
    assert (tmp_path / CURVES).read_bytes() != before


@pytest.mark.parametrize("name", [b"cost_$5_to_$9", b"$\\frac$", b"caf\xe9 \xe2\x82\xac", b"two\nlines ^_{}"])
def test_run_directory_of_any_name_gets_its_curves(tmp_path: Path, name: bytes) -> None:
    run = tmp_path / os.fsdecode(name)
    run.mkdir()
    append_metrics(run, EPOCH)
    draw_curves(run)
    assert (run / CURVES).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_training_goes_on_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    append_metrics(tmp_path, EPOCH)
    with caplog.at_level(logging.WARNING):
        draw_curves(tmp_path)
    assert "curves.png is not drawn, because matplotlib is not installed; metrics.jsonl has the numbers" in caplog.text
    assert not (tmp_path / CURVES).exists()


def test_numbers_that_no_axis_can_show_leave_the_curves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append_metrics(tmp_path, EPOCH | {"lr": 1e308})
    append_metrics(tmp_path, EPOCH | {"epoch": 2, "lr": -1e308})
    with caplog.at_level(logging.WARNING):
        draw_curves(tmp_path)
    assert f"curves.png is not drawn: {tmp_path / METRICS} has numbers that no axis can show" in caplog.text
    assert not (tmp_path / CURVES).exists()
