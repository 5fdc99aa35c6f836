"""`relabel annotators`: the table of timm's classifiers as annotators, and that it agrees with a measurement."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from annotate.zoo import table as annotators
from annotate.zoo.survey import probe, probe_published, write_table
from annotate.zoo.table import PAPER, load_table, matching, surveyed_timm
from tests.conftest import REPOSITORY, Relabel

same_timm = pytest.mark.skipif(
    timm.__version__ != surveyed_timm(), reason="the table was measured with another timm version"
)


@same_timm
def test_table_lists_every_tag_that_timm_has_weights_for() -> None:
    assert [row.model for row in load_table()] == timm.list_models(pretrained=True)


@pytest.mark.slow
@same_timm
@pytest.mark.parametrize(
    "model",
    [
        "tf_efficientnet_l2.ns_jft_in1k_475",  # exact; 480 M parameters, of which the probe creates only the head's
        "convnextv2_huge.fcmae_ft_in22k_in1k_512",  # nonlinear
        "volo_d1_224.sail_in1k",  # dense
        "deit_tiny_patch16_224.fb_in1k",  # token
        "efficientvit_b0.r224_in1k",  # other
        "crossvit_tiny_240.in1k",  # no map
        "vit_small_patch14_dinov2.lvd142m",  # no classes
        "fastvit_mci0.apple_mclip",  # an embedding
        "vitamin_xlarge_336.datacomp1b_clip",  # timm would create a different model; an embedding either way
    ],
)
def test_table_agrees_with_a_measurement(model: str) -> None:
    assert probe_published([model]) == [row for row in load_table() if row.model == model]


def test_the_papers_annotators_are_marked_and_have_the_papers_grids(relabel_here: Relabel) -> None:
    lines = relabel_here("annotators").stdout.splitlines()
    marked = [line.split()[1:] for line in lines if line.startswith("* ") and "x" in line.split()[3]]
    assert {fields[0] for fields in marked} == set(PAPER)
    assert {fields[1] for fields in marked} == {"exact"}
    cells = {fields[0]: (fields[2], fields[3]) for fields in marked}
    assert cells["tf_efficientnet_l2.ns_jft_in1k_475"] == ("475x475", "15x15")
    assert cells["tf_efficientnet_b1.ns_jft_in1k"] == ("240x240", "8x8")
    assert cells["resnext101_32x32d.fb_wsl_ig1b_ft_in1k"] == ("224x224", "7x7")


@pytest.mark.parametrize(
    ("pattern", "models"),
    [
        ("test_resnet", ["test_resnet.r160_in1k"]),  # an architecture without a tag matches all its tags
        ("test_resnet.r160_in1k", ["test_resnet.r160_in1k"]),
        ("*.ns_jft_in1k_475", ["tf_efficientnet_l2.ns_jft_in1k_475"]),
    ],
)
def test_pattern_matches_with_and_without_the_tag(relabel_here: Relabel, pattern: str, models: list[str]) -> None:
    lines = relabel_here("annotators", pattern).stdout.splitlines()
    assert [line[2:].split()[0] for line in lines[1 : 1 + len(models)]] == models
    assert lines[1 + len(models)].startswith(f"{len(models)} annotator")


def test_message_for_a_pattern_that_matches_nothing_gives_it(relabel_here: Relabel) -> None:
    finished = relabel_here("annotators", "resnet5O*")
    assert finished.returncode == 1 and "a model named 'resnet5O*'" in finished.stderr


def test_models_that_cannot_annotate_are_counted_and_listed_with_reasons_on_request(relabel_here: Relabel) -> None:
    plain, whole = (relabel_here("annotators", "coat_*", *more).stdout for more in ([], ["--refused"]))
    assert "coat_lite_tiny.in1k" in plain and "coat_tiny.in1k" not in plain
    refused = sum(not row.taken for row in matching("coat_*"))
    assert f"{refused} more cannot annotate; --refused lists them" in plain
    assert whole.count("cannot annotate: its features (list) are not a single feature map") == refused
    # If no match can annotate, the reasons are listed without the option.
    assert "cannot annotate: its features are a class token" in relabel_here("annotators", "pit_ti_224").stdout


def test_probe_measures_models_that_the_table_does_not_list(relabel_here: Relabel) -> None:
    finished = relabel_here("annotators", "resnet10t", "--probe", "--model-kwargs=output_stride=8", "--input-size=64x96")
    assert finished.stdout.splitlines()[1].split() == ["resnet10t", "exact", "64x96", "8x12", "5.4M", "1000", "-"]
    # A vision transformer without published classifier weights, with the user's own head.
    assert probe("vit_small_patch14_dinov2", {"num_classes": 7, "depth": 1}, (56, 84)).grid == "4x6"


def test_probe_at_an_unsupported_size_says_so(relabel_here: Relabel) -> None:
    thin = ["--model-kwargs=num_classes=7", "--model-kwargs=depth=1", "--input-size=64x96"]
    listing = relabel_here("annotators", "deepseek_vit_412m", "--probe", *thin).stdout
    assert "cannot annotate: at 64x96 pixels: " in listing
    assert "; its native size is 546x546, and some models accept only multiples of it" in listing


def test_listing_warns_if_the_table_was_measured_with_another_timm(
    relabel_here: Relabel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotators, "TABLE", tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text(
        "# python -m annotate.zoo.survey, timm 0.9\nmodel,kind,input_size,grid,parameters,classes,refusal\n"
        "resnet18.x,exact,224x224,7x7,11689512,1000,\n"
    )
    finished = relabel_here("annotators")
    assert f"measured with timm 0.9, but {timm.__version__} is installed" in finished.stdout


def test_written_table_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [dataclasses.replace(row, refusal='commas, "quotes"') for row in load_table()[:3]]
    for module in ("annotate.zoo.table", "annotate.zoo.survey"):
        monkeypatch.setattr(f"{module}.TABLE", tmp_path / "table.csv")
    write_table(rows)
    assert load_table() == rows and surveyed_timm() == timm.__version__


def test_listing_imports_no_torch_and_exits_quietly_on_a_closed_pipe() -> None:
    script = "\n".join(
        [
            "import sys",
            "from pipeline.cli import app",
            "code = app(['annotators'], standalone_mode=False)",
            "assert 'torch' not in sys.modules",
            "sys.exit(code)",
        ]
    )
    command = f'set -o pipefail; {sys.executable} -c "{script}" | head -1'
    finished = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert finished.stdout.startswith("  model") and finished.stdout.count("\n") == 1
    assert finished.stderr == "" and finished.returncode == 141


@pytest.mark.parametrize("option", ["--input-size=64", "--model-kwargs=depth=1"])
def test_probe_options_without_probe_are_rejected(relabel_here: Relabel, option: str) -> None:
    assert "--model-kwargs and --input-size need --probe" in relabel_here("annotators", "resnet18", option).stderr
