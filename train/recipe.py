"""Recipes: every setting of a training run, typed, explained, checked once, and saved with the result.

A recipe is a TOML file; `inherit = "name"` takes over another one's settings. The files are in train/recipes/.
"""

import dataclasses
import difflib
import json
import math
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from relabel.runtime.defaults import MAX_PIXELS, Loss
from relabel.runtime.errors import InputError
from relabel.runtime.typed import hints_of, shown, typed

RECIPES = Path(__file__).with_name("recipes")
MAX_ANCESTORS = 20  # of a recipe
MAX_BYTES = 100_000  # of a recipe file; all settings, explained, are 7,000
MAX_DOTS = 200  # in a line of it
ABOUT = ("reproduces", "published")  # keys of a recipe file that are not settings, and not inherited

Target = Literal["folder", "localized-multi", "localized-single", "global-multi", "global-single", "regions", "teacher"]


@dataclass(frozen=True)
class Check:
    """Which values a setting may have, as a test and in words."""

    allows: Callable[[Any], bool]
    expected: str


ANY = Check(lambda value: True, "")
POSITIVE = Check(lambda x: x > 0, "a positive number")
NOT_NEGATIVE = Check(lambda x: x >= 0, "0 or more")
SIDE = Check(lambda x: 1 <= x <= MAX_PIXELS, f"1 to {MAX_PIXELS}")
AT_LEAST_1 = Check(lambda x: x >= 1, "at least 1")
SHARE = Check(lambda x: 0 <= x <= 1, "a share within [0, 1]")
POSITIVE_SHARE = Check(lambda x: 0 < x <= 1, "a share within (0, 1]")
BELOW_1 = Check(lambda x: 0 <= x < 1, "0 or more, and less than 1")
ALL_NOT_NEGATIVE = Check(lambda values: min(values) >= 0, "0 or more")
RISING = Check(lambda pair: 0 < pair[0] <= pair[1], "0 < smallest <= largest")
RISING_TO_1 = Check(lambda pair: 0 < pair[0] <= pair[1] <= 1, "0 < smallest <= largest <= 1")


def setting(default: Any, check: Check, text: str) -> Any:
    """A field of Recipe: its default (MISSING if it has none), the values it may have, and what it does."""
    return dataclasses.field(default=default, metadata={"check": check, "text": text})


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. The defaults are those of ImageNet training; train/recipes/*.toml set the rest."""

    target: Target = setting(
        MISSING,
        ANY,
        "folder: the ground-truth label. teacher: a classifier's prediction for each crop, made during training. regions:"
        " crops that the label set stores, with the answers to them. The others read label maps, pooled over the crop"
        " (localized) or over the whole image (global), as probabilities (multi) or as the class with the largest logit"
        " (single).",
    )
    temperature: float = setting(
        1.0,
        POSITIVE,
        "Divides the label map's or the teacher's logits. Above 1, targets give more weight to the less likely classes"
        " (Hinton et al. 2015).",
    )
    folder_share: float = setting(
        0.0,
        SHARE,
        "Weight of the ground-truth label in the target; the map or the teacher has the rest. For annotators that are often"
        " wrong.",
    )
    region_share: float = setting(
        0.5,
        POSITIVE_SHARE,
        "For target regions with label maps beside them: share of the crops that are stored regions. The others are random"
        " crops, as are all crops of images without regions; their label maps are pooled.",
    )
    label_smoothing: float = setting(0.0, BELOW_1, "Share of the target that is spread evenly over all classes.")
    confirmed_only: bool = setting(
        False, ANY, "Leave out images whose ground-truth label is not the top-1 class of their label map."
    )
    token_weight: float = setting(
        0.0,
        NOT_NEGATIVE,
        "Weight of the mean loss over a ViT's patch tokens, each with the map pooled over its own patch as target"
        " (TokenLabeling, Jiang et al. 2021).",
    )
    loss: Loss = setting("ce", ANY, "ce: softmax cross-entropy. bce: a sigmoid per class.")
    epochs: int = setting(300, AT_LEAST_1, "Passes over the training images.")
    batch_size: int = setting(1024, AT_LEAST_1, "Crops per step, over all processes.")
    optimizer: str = setting("sgd", ANY, "A timm optimizer; timm's sgd uses Nesterov momentum.")
    lr: float = setting(0.1, POSITIVE, "Peak learning rate, at this batch size.")
    momentum: float = setting(0.9, NOT_NEGATIVE, "For optimizers that have one.")
    weight_decay: float = setting(1e-4, NOT_NEGATIVE, "Weight decay.")
    decay_all: bool = setting(
        False, ANY, "Decay norms and biases too, as the reference does. Training is usually better without."
    )
    schedule: Literal["cosine", "linear", "step", "constant"] = setting(
        "cosine", ANY, "Learning rate schedule after warm-up."
    )
    decay_epochs: int = setting(30, POSITIVE, "For schedule step: lr falls to a tenth every this many epochs.")
    warmup_epochs: int = setting(5, NOT_NEGATIVE, "Linear warm-up from a hundredth of lr.")
    image_size: int = setting(224, SIDE, "Pixels of a training crop, square.")
    crop_scale: tuple[float, float] = setting((0.08, 1.0), RISING_TO_1, "Range of a crop's share of the image's area.")
    crop_ratio: tuple[float, float] = setting((0.75, 1.3333), RISING, "Range of a crop's width / height.")
    crops_per_image: int = setting(
        1,
        AT_LEAST_1,
        "Crops from one decoded image, all in one batch. The number of crops in an epoch stays the same.",
    )
    reduced_decode: bool = setting(
        True,
        ANY,
        "Decode a JPEG at 1/2, 1/4 or 1/8 where crops still have image_size pixels. They begin and end at whole pixels of"
        " the reduced image, and differ from fully decoded ones about as much as bilinear resizing differs from bicubic"
        " (benchmarks/crops.py). Not where crops are stored regions.",
    )
    hflip: float = setting(0.5, SHARE, "Probability of mirroring a crop.")
    colour_jitter: tuple[float, float, float] = setting(
        (0.0, 0.0, 0.0), ALL_NOT_NEGATIVE, "Brightness, contrast, saturation: each is scaled by 1 - x to 1 + x."
    )
    lighting: float = setting(0.0, NOT_NEGATIVE, "Standard deviation of AlexNet's PCA lighting noise.")
    cutmix: float = setting(0.0, SHARE, "Probability that a step applies CutMix (Yun et al. 2019).")
    cutmix_beta: float = setting(1.0, POSITIVE, "The share of the crop that is kept is drawn from Beta(x, x).")
    cutmix_off_epochs: int = setting(0, NOT_NEGATIVE, "No CutMix in this many epochs at the end.")
    cutmix_target: Literal["area", "regions"] = setting(
        "area",
        ANY,
        "area: the two crops' targets, weighted by their visible areas. regions: each map is pooled over the part of its"
        " crop that is visible, so that an object hidden by the paste is not in the target.",
    )
    ema: float = setting(
        0.0, BELOW_1, "Decay of a moving average of the weights, which is then evaluated and saved instead; 0 for none."
    )
    start: Literal["any", "pretrained"] = setting("any", ANY, "pretrained: refuse to start from random weights.")
    eval_size: int = setting(224, SIDE, "Pixels of an evaluation image, square; resized bilinearly, as crops are.")
    eval_crop: float = setting(
        0.875, POSITIVE_SHARE, "Share of the shorter side that the centre crop keeps; 1 is all of a square image."
    )
    eval_epochs: int = setting(1, AT_LEAST_1, "Evaluate every this many epochs, and after the last one.")
    seed: int = setting(0, NOT_NEGATIVE, "Seed of everything random; runs with the same seed see the same crops.")

    def __post_init__(self) -> None:
        """Checks every setting by itself, then those that depend on one another."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise InputError(f"recipe: {field.name} = {value}; expected finite numbers")
            if not field.metadata["check"].allows(value):
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(f"recipe: {field.name} = {shown}; expected {field.metadata['check'].expected}")
        if self.batch_size % self.crops_per_image:
            raise InputError(
                f"recipe: batch_size = {self.batch_size} is not a multiple of crops_per_image = {self.crops_per_image}"
            )
        localized = self.target.startswith("localized")
        multi = self.target.endswith("multi") or self.target in ("teacher", "regions")
        self._check_unused("temperature", multi, f"targets with several classes; target = {self.target!r} has one")
        self._check_unused("folder_share", self.target != "folder", "targets from label maps or a teacher, and for regions")
        self._check_unused("region_share", self.reads_regions, f"target = 'regions', not {self.target!r}")
        for name in ("token_weight", "cutmix_target"):
            self._check_unused(name, localized, f"localized targets; target = {self.target!r} is not one")
        for name in ("cutmix_beta", "cutmix_off_epochs", "cutmix_target"):
            self._check_unused(name, self.cutmix > 0, "CutMix, which cutmix = 0 turns off")
        if self.cutmix and self.cutmix_off_epochs >= self.epochs:
            raise InputError(
                f"recipe: cutmix_off_epochs = {self.cutmix_off_epochs} must be less than epochs = {self.epochs}; set both"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise InputError(
                f"recipe: warmup_epochs = {self.warmup_epochs} must be less than epochs = {self.epochs}; set both"
            )

    def _check_unused(self, name: str, used: bool, only_for: str) -> None:
        """Raises InputError where a setting that nothing would read differs from its default."""
        default = type(self).__dataclass_fields__[name].default
        if not used and getattr(self, name) != default:
            raise InputError(
                f"recipe: {name} = {getattr(self, name)!r} is only for {only_for}. Set {name} = {default!r}, or change the"
                " other setting"
            )

    @property
    def reads_regions(self) -> bool:
        """Whether crops and targets are read from stored regions."""
        return self.target == "regions"

    @property
    def reads_labels(self) -> bool:
        """Whether the target is read from a label set."""
        return self.target not in ("folder", "teacher")

    @property
    def needs_labels(self) -> bool:
        """Whether a label set is needed: to read targets from, or to choose the images by."""
        return self.reads_labels or self.confirmed_only


def as_toml(recipe: Recipe) -> str:
    """Every setting with its explanation and the values it may have, as a recipe file that can be edited."""
    hints = hints_of(Recipe)
    lines = []
    for field in dataclasses.fields(recipe):
        expected = field.metadata["check"].expected
        if get_origin(hints[field.name]) is Literal:
            expected = f"one of {', '.join(get_args(hints[field.name]))}"
        note = field.metadata["text"] + (f" ({expected})" if expected else "")
        lines += textwrap.wrap(note, 100, initial_indent="# ", subsequent_indent="# ")
        lines += [f"{field.name} = {json.dumps(getattr(recipe, field.name))}", ""]
    return "\n".join(lines[:-1])


@dataclass(frozen=True)
class About:
    """What a recipe file states besides its settings.

    Attributes:
        reproduces: what the run is, in one line.
        published: ImageNet top-1 in percent by timm's name of the student; Yun et al. 2021.
    """

    reproduces: str
    published: dict[str, float]


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def about_recipe(name: str) -> About:
    """What a built-in recipe reproduces."""
    own = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    return About(own["reproduces"], own.get("published", {}))


def load_recipe(recipe: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe by name or by the path of a .toml file, with KEY=VALUE overrides.

    Raises:
        InputError: no such recipe, not TOML, or a setting that is unknown, of another type, or out of range.
    """
    path = Path(recipe) if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"
    settings = read_settings(path)
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"--set {shown(override)}: expected KEY=VALUE, such as lr=0.2")
        settings[key.strip()] = (toml_value(value), "--set")
    return build_recipe(settings)


def read_settings(path: Path) -> dict[str, tuple[Any, str]]:
    """A file's settings on top of those it inherits, each with the file it came from."""
    settings: dict[str, tuple[Any, str]] = {}
    children: list[Path] = []
    while True:
        if path in children:
            raise InputError(f"{path} inherits from itself, through {', '.join(child.name for child in children)}")
        if len(children) > MAX_ANCESTORS:
            raise InputError(f"{children[0]} inherits through more than {MAX_ANCESTORS} files; write its settings into it")
        own = read_toml(path)
        parent = own.pop("inherit", None)
        for key in ABOUT:
            own.pop(key, None)
        settings = {key: (value, str(path)) for key, value in own.items()} | settings
        if parent is None:
            return settings
        if not isinstance(parent, str) or Path(parent).name != parent:
            raise InputError(
                f"{path}: inherit = {shown(parent)}; expected the name of a recipe, or of a .toml file beside it"
            )
        children.append(path)
        beside = path.with_name(f"{parent}.toml")
        path = beside if beside.is_file() and beside != path else RECIPES / f"{parent}.toml"


def read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"no recipe {path.stem!r}; expected one of {', '.join(recipe_names())}, or the path of a .toml file"
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES} bytes, so it is not a recipe")
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))  # utf-8-sig: Windows writes a byte order mark
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """tomllib.loads, with a ValueError for whatever is not TOML, or nested more deeply than tomllib can read."""
    if (
        dots := max((line.count(".") for line in text.splitlines()), default=0)
    ) > MAX_DOTS:  # tomllib takes 10 GB for a key with 200,000
        raise ValueError(f"a line has {dots} dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists or tables are nested too deeply") from None


def build_recipe(settings: dict[str, tuple[Any, str]]) -> Recipe:
    fields = hints_of(Recipe)
    values = {}
    for key, (value, place) in settings.items():
        if key not in fields:
            near = difflib.get_close_matches(key[:100], fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(fields)}"
            raise InputError(f"{place}: unknown setting {shown(key)}{hint}")
        try:
            values[key] = typed(value, fields[key])
        except ValueError as error:
            raise InputError(f"{place}: {key} = {shown(value)}; {error}") from error
    if "target" not in values:
        raise InputError(f"the recipe sets no target; expected one of {', '.join(get_args(Target))}")
    return Recipe(**values)


def toml_value(text: str) -> Any:
    """A value typed on the command line: TOML if it is TOML and one value, else a string."""
    try:
        parsed = parse_toml(f"value = {text}")
    except ValueError:
        return text.strip()
    return parsed["value"] if parsed.keys() == {"value"} else text
