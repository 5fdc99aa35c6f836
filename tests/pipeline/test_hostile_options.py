"""Options of any size, empty ones, and ones that hold more than they should: the message names the option, at once."""

from pathlib import Path

import pytest

from tests.conftest import Relabel

HUGE = ["100000000000000000000", "9" * 401, "-100000000000000000000", "9" * 5000, "1e308", "nan", "-1"]
COMMANDS = {
    "--workers": ["eval", "IMAGES", "--arch=resnet10t"],
    "--boxes": ["compare", "LABELS", "LABELS"],
    "--spot-check": ["verify", "LABELS", "--images=IMAGES"],
    "--topk": ["annotate", "IMAGES", "--labels=OUT", "--model=resnet10t"],
    "--shard-size": ["import-labels", "IMAGES", "--labels=OUT"],
    "--num-classes": ["import-labels", "IMAGES", "--labels=OUT"],
    "--train-images": ["demo-data", "OUT"],
    "--seed": ["corrupt", "IMAGES", "OUT"],
    "--eval-size": ["eval", "IMAGES", "--arch=resnet10t"],
    "--input-size": ["annotate", "IMAGES", "--labels=OUT", "--model=resnet10t"],
    "--eval-crop": ["eval", "IMAGES", "--arch=resnet10t"],
    "--fgsm-epsilon": ["eval", "IMAGES", "--arch=resnet10t", "--fgsm"],
    "--min-agreement": ["verify", "LABELS", "--images=IMAGES"],
    "--threshold": ["find-noise", "LABELS", "--images=IMAGES", "--output=OUT/noise.csv"],
    "--save-every": ["train", "IMAGES", "--run-dir=OUT", "--recipe=scenes-single"],
}


def command_line(command: list[str], image_folder: Path, labels: Path, out: Path) -> list[str]:
    return [w.replace("IMAGES", str(image_folder)).replace("LABELS", str(labels)).replace("OUT", str(out)) for w in command]


@pytest.mark.parametrize("option", COMMANDS)
@pytest.mark.parametrize("value", HUGE, ids=["1e20", "401 digits", "-1e20", "5000 digits", "1e308", "nan", "-1"])
def test_number_that_no_option_takes_is_refused_by_the_option_s_name(
    option: str, value: str, image_folder: Path, undisturbed: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    if option == "--save-every" and value not in ("nan", "-1", HUGE[2]):
        pytest.skip("any positive number of minutes will do")
    command = command_line(COMMANDS[option], image_folder, undisturbed, tmp_path / "out")
    refused = relabel_here(*command, f"{option}={value}")
    assert refused.returncode in (1, 2)
    message = refused.stdout + refused.stderr
    assert option in message or option.strip("-").replace("-", "_") + " is" in message, message
    assert len(message) < 6000 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["train", "IMAGES", "--run-dir", "", "--recipe=scenes-single"], "--run-dir"),
        (["train", "IMAGES", "--run-dir=", "--recipe=scenes-single"], "--run-dir"),
        (["train", "IMAGES", "--run-dir=OUT", "--labels", ""], "--labels"),
        (["annotate", "IMAGES", "--labels="], "--labels"),
        (["annotate", "IMAGES", "--labels=OUT", "--classes", ""], "--classes"),
        (["eval", "IMAGES", "--arch=resnet10t", "--output", ""], "--output"),
        (["train", "IMAGES", "--run-dir=OUT", "--recipe=scenes-single", "--val=\n"], "--val"),
        (["verify", ""], "an argument"),
        (["verify", " "], "an argument"),
    ],
)
def test_empty_value_is_refused_and_nothing_is_written(
    command: list[str],
    named: str,
    image_folder: Path,
    tmp_path: Path,
    relabel_here: Relabel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused = relabel_here(*command_line(command, image_folder, tmp_path, tmp_path / "out"))
    assert refused.returncode == 2 and f"{named}: it is empty" in refused.stderr
    assert list((tmp_path / "here").iterdir()) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["1e-999999999", "1e999999999", "1/0", "8/", "/8", "1/1e-999999999", "a/b"])
def test_step_of_the_attack_that_is_no_share_is_refused_at_once(
    value: str, image_folder: Path, relabel_here: Relabel
) -> None:
    refused = relabel_here("eval", image_folder, "--arch=resnet10t", "--fgsm", f"--fgsm-epsilon={value}")
    assert refused.returncode == 1 and "--fgsm-epsilon" in refused.stderr


@pytest.mark.parametrize(
    "setting",
    [
        "lr=1\nepochs=7",
        "epochs=1\n[x]\na=1",
        "epochs=100000000000000000000",
        "lr=" + "9" * 401,
        "lr=" + "9" * 5000,
        "image_size=100000",
        "eval_size=0",
        "crop_scale=" + "[" * 5000 + "]" * 5000,
        "lr={a" + ".a" * 200_000 + "=1}",
        "target=[]",
        "optimizer=1979-05-27",
        "a" * 100_000 + "=1",
    ],
    ids=lambda setting: setting[:12].replace("\n", " "),
)
def test_setting_that_is_no_single_value_of_its_type_is_refused_by_its_name(
    setting: str, image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    arguments = ["--run-dir", str(tmp_path / "run"), "--recipe=scenes-single", "--set", setting]
    refused = relabel_here("train", image_folder, *arguments)
    assert refused.returncode == 1 and setting.partition("=")[0][:20] in refused.stderr
    assert len(refused.stderr) < 2000 and not (tmp_path / "run").exists()


def test_deeply_nested_model_argument_is_refused(image_folder: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    for value in ("[" * 100_000 + "]" * 100_000, "{[]: 1}", "-" * 100_000 + "1"):
        refused = relabel_here("annotate", image_folder, "--labels", tmp_path / "out", f"--model-kwargs=depth={value}")
        assert refused.returncode == 1 and "--model-kwargs" in refused.stderr and len(refused.stderr) < 2000


def recipe_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_recipes_that_inherit_from_one_another_for_ever_or_too_long_are_refused(
    tmp_path: Path, relabel_here: Relabel
) -> None:
    for number in range(1500):
        recipe_file(tmp_path / f"r{number}.toml", f'inherit = "r{number + 1}"\n')
    refused = relabel_here("recipes", tmp_path / "r0.toml")
    assert refused.returncode == 1 and "r0.toml inherits through more than 20 files" in refused.stderr
    recipe_file(tmp_path / "a.toml", 'inherit = "b"\n')
    recipe_file(tmp_path / "b.toml", 'inherit = "a"\n')
    refused = relabel_here("recipes", tmp_path / "a.toml")
    assert refused.returncode == 1 and "a.toml inherits from itself, through a.toml, b.toml" in refused.stderr


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 200_000 + " = 1\n",
        "[a" + ".a" * 30_000 + "]\n",
        "epochs = " + "[" * 20_000 + "]" * 20_000,
        "epochs = " + "9" * 5000,
        "lr = 0.1\n" * 2,
        "x" * 200_000,
        "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
    ],
    ids=["dots", "table", "brackets", "digits", "twice", "long", "no text"],
)
def test_recipe_file_that_is_no_recipe_is_named_at_once(tmp_path: Path, text: str, relabel_here: Relabel) -> None:
    refused = relabel_here("recipes", recipe_file(tmp_path / "mine.toml", text))
    assert refused.returncode == 1 and f"{tmp_path}/mine.toml" in refused.stderr and len(refused.stderr) < 2000


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "", "-1", "0", "1.5", "9" * 30])
def test_variable_of_torchrun_that_is_no_number_is_named(
    variable: str, value: str, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, relabel_here: Relabel,
    monkeypatch: pytest.MonkeyPatch, tiny_options: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    refused = relabel_here("annotate", image_folder, "--labels", tmp_path / "out", *tiny_options[:-2], "--device=cpu")
    assert refused.returncode == 1 and f"variable {variable} is {value!r}" in refused.stderr


def test_world_size_without_torchrun_is_explained(
    image_folder: Path, tmp_path: Path, relabel_here: Relabel, monkeypatch: pytest.MonkeyPatch, tiny_options: list[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = relabel_here("annotate", image_folder, "--labels", tmp_path / "out", *tiny_options)
    assert refused.returncode == 1 and "cannot join the 2 processes of this run" in refused.stderr
