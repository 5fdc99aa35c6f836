"""Recipes are typed, checked, inherited, overridden and listed, and every setting is used."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import timm

from relabel.runtime.errors import InputError
from tests.conftest import REPOSITORY, Relabel
from train.recipe import Recipe, about_recipe, load_recipe, recipe_names


@pytest.mark.parametrize("prefix", ["", "scenes-"])
def test_relabel_differs_from_single_only_in_its_target(prefix: str) -> None:
    single, relabel = load_recipe(f"{prefix}single"), load_recipe(f"{prefix}relabel")
    assert single.target == "folder"
    assert relabel == dataclasses.replace(single, target="localized-multi")


def test_every_recipe_loads() -> None:
    for name in recipe_names():
        load_recipe(name)


def test_every_setting_is_read_by_the_training_code() -> None:
    read = set()
    for path in (REPOSITORY / "train").glob("*.py"):
        if path.name == "recipe.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("recipe", "self.recipe"):
                read.add(node.attr)
    assert {field.name for field in dataclasses.fields(Recipe)} - read == set()


def test_makefile_knows_which_recipes_need_no_label_set() -> None:
    line = re.search(r"^LABEL_FREE := (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    assert line is not None
    assert sorted(line[1].split()) == [name for name in recipe_names() if not load_recipe(name).needs_labels]


def test_unknown_setting_is_rejected_with_the_nearest_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('target = "folder"\nbatchsize = 32\n')
    with pytest.raises(InputError, match=r"mine\.toml: unknown setting 'batchsize'; did you mean batch_size\?"):
        load_recipe(str(recipe))
    with pytest.raises(InputError, match="--set: unknown setting 'learning_rate'; expected one of target, temperature, "):
        load_recipe("single", ["learning_rate=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=1.5", "expected int, not float"),
        ("epochs=true", "expected int, not bool"),
        ("epochs=0", "expected at least 1"),
        ("lr=fast", "expected float, not str"),
        ("lr=-1", "expected a positive number"),
        ("target=localised", "expected one of folder, localized-multi"),
        ("crop_scale=[0.5]", "expected a list of 2 numbers"),
        ("crop_scale=[0.9, 0.1]", "expected 0 < smallest <= largest <= 1"),
        ("eval_crop=1.5", "expected a share"),
        ("hflip=2", "hflip = 2.0; expected a share within [0, 1]"),
        ("cutmix=-0.5", "cutmix = -0.5; expected a share within [0, 1]"),
        ("folder_share=1.5", "folder_share = 1.5; expected a share within [0, 1]"),
        ("ema=1", "ema = 1.0; expected 0 or more, and less than 1"),
        ("label_smoothing=-1", "label_smoothing = -1.0; expected 0 or more, and less than 1"),
        ("temperature=0", "temperature = 0.0; expected a positive number"),
        ("decay_epochs=0", "decay_epochs = 0; expected a positive number"),
        ("colour_jitter=[0.4, -1, 0]", "colour_jitter = [0.4, -1.0, 0.0]; expected 0 or more"),
        ("token_weight=0.5", "token_weight = 0.5 is only for localized targets; target = 'folder' is not one"),
        ("cutmix_target=regions", "cutmix_target = 'regions' is only for localized targets"),
        (
            "cutmix_off_epochs=5",
            "cutmix_off_epochs = 5 is only for CutMix, which cutmix = 0 turns off. Set cutmix_off_epochs = 0",
        ),
        ("folder_share=0.5", "folder_share = 0.5 is only for targets from label maps or a teacher"),
        ("temperature=2", "temperature = 2.0 is only for targets with several classes; target = 'folder' has one"),
        ("epochs", "expected KEY=VALUE"),
        ("warmup_epochs=300", "warmup_epochs = 300 must be less than epochs = 300"),
    ],
)
def test_setting_of_another_type_or_range_is_rejected(override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_recipe("single", [override])


def test_overrides_get_the_type_of_the_setting() -> None:
    recipe = load_recipe("single", ["lr=1", "epochs=7", "crop_scale=[0.5, 1]", "optimizer=adamw"])
    assert (recipe.lr, recipe.epochs, recipe.crop_scale, recipe.optimizer) == (1.0, 7, (0.5, 1.0), "adamw")
    assert isinstance(recipe.lr, float)


def test_own_file_inherits_from_a_file_beside_it_and_from_a_built_in_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('inherit = "relabel"\nepochs = 9\n')
    (tmp_path / "mine.toml").write_text('inherit = "base"\nlr = 0.2\n')
    assert load_recipe(str(tmp_path / "mine.toml")) == dataclasses.replace(load_recipe("relabel"), epochs=9, lr=0.2)


def test_unknown_recipe_is_rejected_with_the_list_of_recipes() -> None:
    message = r"no recipe 'relable'; expected one of ablation-.*, relabel, .*, or the path of a \.toml file"
    with pytest.raises(InputError, match=message):
        load_recipe("relable")


def test_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("target = \n")
    with pytest.raises(InputError, match=r"broken\.toml is not TOML"):
        load_recipe(str(tmp_path / "broken.toml"))


def test_list_shows_what_each_recipe_reproduces_and_the_published_top1(relabel_here: Relabel) -> None:
    printed = relabel_here("recipes").stdout
    for name in recipe_names():
        about = about_recipe(name)
        assert f"{name}\n    {about.reproduces}\n" in printed
        assert all(f"{arch} {top1}" in printed and timm.is_model(arch) for arch, top1 in about.published.items())
    assert "resnet18 73.2, resnet50 80.2, resnet101 81.6" in printed and "batch_size" not in printed


def test_recipe_is_printed_as_toml_with_every_setting_explained(relabel_here: Relabel, tmp_path: Path) -> None:
    printed = relabel_here("recipes", "relabel-cutmix").stdout
    (tmp_path / "same.toml").write_text(printed)
    assert load_recipe(str(tmp_path / "same.toml")) == load_recipe("relabel-cutmix")
    for field in dataclasses.fields(Recipe):  # each with its explanation above it
        explanation = re.search(rf"((?:^# .*\n)+){field.name} = ", printed, re.M)
        assert explanation is not None and explanation[1].replace("\n# ", " ").startswith(f"# {field.metadata['text']}")


def test_description_of_a_recipe_is_not_a_setting_and_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('inherit = "relabel"\nreproduces = "mine"\n[published]\nresnet18 = 1.0\n')
    assert load_recipe(str(tmp_path / "mine.toml")) == load_recipe("relabel")
    assert about_recipe("relabel-cutmix").published != about_recipe("relabel").published


def test_inheriting_in_a_circle_or_from_a_path_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('inherit = "b"\n')
    (tmp_path / "b.toml").write_text('inherit = "a"\n')
    with pytest.raises(InputError, match=r"a\.toml inherits from itself, through a\.toml, b\.toml"):
        load_recipe(str(tmp_path / "a.toml"))
    for wrong in ('"../x"', "7"):
        (tmp_path / "c.toml").write_text(f"inherit = {wrong}\n")
        with pytest.raises(InputError, match=r"c\.toml: inherit = .*; expected the name of a recipe"):
            load_recipe(str(tmp_path / "c.toml"))


@pytest.mark.parametrize("setting", ["lr=nan", "weight_decay=inf", "temperature=inf", "colour_jitter=[0.4, nan, 0.4]"])
def test_setting_that_is_not_finite_is_rejected(setting: str) -> None:
    with pytest.raises(InputError, match=rf"recipe: {setting.split('=')[0]} = .*; expected finite numbers"):
        load_recipe("relabel", [setting])


def test_schedule_too_short_for_cutmix_is_rejected() -> None:
    with pytest.raises(InputError, match="cutmix_off_epochs = 5 must be less than epochs = 5; set both"):
        load_recipe("relabel-cutmix", ["epochs=5", "warmup_epochs=0"])


def test_byte_order_mark_of_a_recipe_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('inherit = "single"\r\nepochs = 7\r\n', encoding="utf-8-sig")
    assert load_recipe(str(tmp_path / "mine.toml")).epochs == 7
