"""The one command for a machine with a GPU: all of it in small on a CPU, and parts that fail or run out of time."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import Kernels, what_binds
from benchmarks.on_gpu import SHARES, main, run_part
from tests.conftest import REPOSITORY, wait_until

CUDA = torch.device("cuda")


@pytest.mark.slow
def test_smoke_run_measures_every_part_and_writes_figures_and_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--smoke", "--minutes", "5", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    report = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"torch {torch.__version__}" in report and "benchmarks.on_gpu --smoke --minutes 5" in report
    assert all(line.startswith("    ") for line in report.splitlines()), "a block of text in Markdown"
    for part in SHARES:
        assert f"    {part}: done (" in report and (tmp_path / f"{part}.json").exists()
    figures = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in SHARES}
    assert figures["pooling"]["pooling"]["ms"] > 0 and figures["pooling"]["pooling"]["bytes"] > 0
    assert figures["step"].keys() == {"step", "compiled step"} and "overhead" in figures["step"]["compiled step"]
    assert figures["annotate"].keys() == {"batch sizes", "annotate", "compiled annotate"}
    assert figures["annotate"]["annotate"]["hours"] > 0
    assert figures["loop"]["loop"]["images_per_s"].keys() == {"model only", "loader only", "the loop", "timm"}
    assert figures["labels"]["labels"]["gb"] > 0
    assert report.count("limited by the CPU") == 7


def test_without_a_gpu_it_says_so_and_names_smoke(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match=r"finds no GPU.* --smoke"):  # exit code 1
        main(["--output", str(tmp_path)])


def test_part_that_fails_is_reported_with_what_it_printed_and_the_end_of_its_log(tmp_path: Path) -> None:
    script = "print('half a figure'); raise ValueError('no room')"
    done, lines = run_part("step", [sys.executable, "-c", script], 60, tmp_path, {})
    assert not done and lines[0].startswith("step: FAILED with exit code 1 (")
    assert lines[1] == "half a figure" and lines[-1].strip() == "ValueError: no room"


@pytest.mark.slow
def test_part_that_runs_out_of_time_is_killed_with_what_it_started_and_its_figures_stay(tmp_path: Path) -> None:
    script = "import os, time; print('a figure', flush=True); print(os.fork(), flush=True); time.sleep(60)"
    (tmp_path / "loop.json").write_text("of an earlier run")
    start = time.monotonic()
    done, lines = run_part("loop", [sys.executable, "-c", script], 8, tmp_path, {})
    assert time.monotonic() - start < 40
    assert not done and lines[0].startswith("loop: STOPPED at the end of its 8 s")
    assert lines[1] == "a figure"
    assert not (tmp_path / "loop.json").exists()
    started = max(int(line) for line in lines if line.isdigit())
    status = Path(f"/proc/{started}/status")

    def ended() -> bool:
        try:
            return "zombie" in status.read_text()
        except OSError:
            return True

    wait_until(ended, 30, "the killed process to end")


@pytest.mark.parametrize(
    ("wall_s", "seconds_of", "limit"),
    [
        (2.0, {"sm90_xmma_fprop": 0.5, "elementwise": 0.5}, "loader: kernels run for 50 %"),
        (1.0, {"sm90_xmma_fprop": 0.7, "elementwise": 0.25}, "compute: kernels run for 95 %"),
        (1.0, {"batch_norm": 0.6, "cutlass_gemm": 0.4}, "bandwidth: kernels run for 100 % of the time, 40 % of it in"),
        (1.0, {}, "unknown"),
    ],
)
def test_limit_follows_from_how_long_which_kernels_run(wall_s: float, seconds_of: dict[str, float], limit: str) -> None:
    assert what_binds(CUDA, wall_s, Kernels(seconds_of), "loader").startswith(limit)
