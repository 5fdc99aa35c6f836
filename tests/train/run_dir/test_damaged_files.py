"""run.json, metrics.jsonl and last.pt with contents that no run writes: the message names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import refusal
from tests.train.runs import recipe, run_training
from train.run_dir.checkpoint import LAST, read_last
from train.run_dir.metrics import METRICS, read_metrics
from train.run_dir.provenance import RUN_FILE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished run of one epoch."""
    run = tmp_path_factory.mktemp("started") / "run"
    run_training(data, run, recipe(epochs=2))
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


@pytest.fixture
def run(started: dict[str, bytes], tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for name, content in started.items():
        (tmp_path / "run" / name).write_bytes(content)
    return tmp_path / "run"


@pytest.mark.parametrize("content", ["", "[]", "null", "7", '"text"', '{"starts": 3}', '{"starts": [1]}', "[" * 100_000])
def test_damaged_run_json_is_named(data: Path, run: Path, content: str) -> None:
    (run / RUN_FILE).write_text(content)
    assert f"{run / RUN_FILE} is damaged" in refusal(lambda: run_training(data, run, recipe(epochs=2), resume=True))


@pytest.mark.parametrize("start", [{}, {"processes": "two"}, {"precision": None}])
def test_start_of_a_run_with_other_fields_does_not_hinder_it(data: Path, run: Path, start: dict[str, Any]) -> None:
    fields = json.loads((run / RUN_FILE).read_text())
    (run / RUN_FILE).write_text(json.dumps(fields | {"starts": [start]}))
    run_training(data, run, recipe(epochs=2), resume=True)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        "{}",
        '{"epoch": "1", "loss": 1, "top1": 1, "lr": 1}',
        '{"epoch": 1, "loss": null, "top1": 1, "lr": 1}',
        '{"epoch": 1, "loss": 1, "top1": 1, "lr": 1, "val": []}',
        '{"epoch": 1, "loss": 1, "top1": 1, "lr": 1, "val": {"top1": "high"}}',
        "\xff",
    ],
)
def test_damaged_line_of_metrics_is_named_by_number(data: Path, run: Path, line: str) -> None:
    whole = (run / METRICS).read_bytes()
    (run / METRICS).write_bytes(whole + line.encode("latin-1") + b"\n")
    assert f"{run / METRICS} line 3 is damaged" in refusal(lambda: read_metrics(run))
    assert f"{run / METRICS} line 3 is damaged" in refusal(lambda: run_training(data, run, recipe(epochs=2), resume=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("optimizer"),
        lambda saved: saved.update(step="4"),
        lambda saved: saved.update(step=-1),
        lambda saved: saved.update(seen=torch.zeros(2)),
        lambda saved: saved.update(seen=[0, 0, 0]),
        lambda saved: saved.update(seen=torch.zeros(3, device="meta")),
        lambda saved: saved.update(metrics=None),
        lambda saved: saved.update(metrics="{"),
        lambda saved: saved.update(metrics='{"epoch": 1}'),
        lambda saved: saved.update(state_dict=[]),
        lambda saved: saved.update(scaler=7),
    ],
)
def test_state_of_a_run_with_wrong_types_is_named(data: Path, run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    saved = read_last(run / LAST)
    change(saved)
    torch.save(saved, run / LAST)
    message = refusal(lambda: run_training(data, run, recipe(epochs=2), resume=True))
    assert f"{run / LAST} is not the checkpoint of a relabel run (" in message and "delete it to start" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["state_dict"].pop("fc.weight"),
        lambda saved: saved["state_dict"].update({"fc.weight": torch.zeros(7, 16)}),
        lambda saved: saved["state_dict"].update({"fc.weight": 3}),
        lambda saved: saved.update(optimizer={}),
        lambda saved: saved.update(step=10**9),
        lambda saved: saved["optimizer"].update(param_groups=[]),
        lambda saved: saved["optimizer"].update(param_groups=[1, 2]),
        lambda saved: saved["optimizer"].update(state=[]),
    ],
)
def test_state_of_another_model_or_optimizer_is_named(
    data: Path, run: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    saved = read_last(run / LAST)
    change(saved)
    torch.save(saved, run / LAST)
    message = refusal(lambda: run_training(data, run, recipe(epochs=2), resume=True))
    assert message.startswith(f"{run / LAST} is ") and "not the state of this run" in message
