"""What a report says of trainings: their results, curves, settings and versions."""

import json
from pathlib import Path

import pytest

from pipeline.report.trainings import curves, read_training, results, settings_table
from tests.conftest import Relabel, refusal
from tests.pipeline.report.report_sets import random_maps, write_maps


def write_run(run: Path, lr: float, top1: float | None) -> Path:
    run.mkdir()
    start = {"time": "2026-01-02", "versions": {"torch": "2.1"}, "git": {"commit": "abc", "dirty": True}}
    (run / "run.json").write_text(json.dumps({"arch": "resnet10t", "recipe": {"lr": lr, "epochs": 3}, "starts": [start]}))
    lines = [{"epoch": e, "loss": 4 - e, "top1": 10.0 * e, "lr": lr} for e in (1, 2, 3)]
    lines[2]["val"] = {"top1": 25.0}  # type: ignore[assignment]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if top1 is not None:
        result = {"arch": "resnet10t", "checkpoint": "w", "data": "/images/val", "images": 40, "top1": top1}
        (run / "eval.json").write_text(json.dumps(result | {"fgsm": {"epsilon": 8 / 255, "images": 40, "top1": 1.5}}))
    return run


def test_results_settings_and_curves_are_those_that_were_recorded(tmp_path: Path) -> None:
    trainings = [read_training(write_run(tmp_path / "a", 0.1, 60.0)), read_training(write_run(tmp_path / "b", 0.2, None))]
    assert results(trainings) == [
        ("val, 40 images", "top-1", [60.0, None]),
        ("val, FGSM 8/255, 40 images", "top-1", [1.5, None]),
    ]
    assert settings_table(trainings, differing=True) == [("recipe.lr", ["0.1", "0.2"])]
    assert ("recipe.epochs", ["3", "3"]) in settings_table(trainings, differing=False)
    assert trainings[0].versions["torch"] == "2.1" and trainings[0].versions["commit"] == "abc with changes"
    drawn = {curve.title: curve for curve in curves(trainings)}
    assert drawn["training loss, nats"].lines[1] == (1, [(1, 3), (2, 2), (3, 1)])
    assert drawn["validation top-1, percent"].lines == [(0, [(3, 25)]), (1, [(3, 25)])]
    assert "validation, multi-label accuracy, percent" not in drawn


def test_long_curve_keeps_its_last_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 0.1, None)
    lines = [json.dumps({"epoch": e, "loss": 1 / e, "top1": 0.0, "lr": 0.1}) for e in range(1, 1001)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    points = curves([read_training(run)])[0].lines[0][1]
    assert len(points) <= 300 and points[-1] == (1000, 0.001)


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"data": 5}', '{"data": "x", "arch": "a", "checkpoint": "c", "images": "n"}']
)
def test_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "a", 0.1, None)
    (run / "eval.json").write_text(content)
    assert f"{run}/eval.json is" in refusal(lambda: read_training(run))


def test_page_shows_the_trainings(tmp_path: Path, relabel_here: Relabel) -> None:
    labels, images = write_maps(tmp_path, ["ant/a.JPEG", "bee/b.JPEG"], random_maps(2, 2, 1, (2, 3)), ("ant", "bee"))
    runs = [f"--run={write_run(tmp_path / name, lr, 60.0 + lr)}" for name, lr in (("a", 0.1), ("b<i>", 0.2))]
    done = relabel_here("report", labels, "--images", images, *runs, "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    assert "Settings in which the runs differ (1)" in text and "b&lt;i&gt;" in text and "<i>" not in text
    assert text.count("<polyline") == 8 and "60.1" in text and "60.2" in text
