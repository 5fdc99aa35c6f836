"""Recipes: every setting of a training run, typed, checked once, and saved with the result.

A recipe is a TOML file; `inherit = "name"` takes over another one's settings. The files are in train/recipes/.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from relabel.runtime.errors import InputError

RECIPES = Path(__file__).with_name("recipes")
ABOUT = ("reproduces", "published")  # what a file says of itself: not settings, and not inherited

Target = Literal["folder", "localized-multi", "localized-single", "global-multi", "global-single", "teacher"]


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. A default is what ImageNet training uses; train/recipes/*.toml says the rest."""

    target: Target  # folder: the class folder's name. teacher: what a classifier says of each crop, on the fly. The others
    # read label maps, pooled over the crop (localized) or over the whole image (global), as probabilities (multi) or as the
    # largest class alone (single)
    temperature: float = 1.0  # the map's or the teacher's logits are divided by it: above 1 a small student is told more of
    # the classes that come second (Hinton et al. 2015)
    folder_share: float = 0.0  # of the target; the map or the teacher has the rest. For annotators that are often wrong
    label_smoothing: float = 0.0  # of the target, spread evenly over all classes
    confirmed_only: bool = False  # leave out images whose folder's class is not the label set's whole-image top-1
    token_weight: float = 0.0  # of the mean loss of a ViT's patch tokens, each towards the map pooled over its own patch
    # (TokenLabeling, Jiang et al. 2021): one target in every place is more than one in every crop
    loss: Literal["ce", "bce"] = "ce"  # softmax cross-entropy, or a sigmoid per class
    epochs: int = 300  # passes over the training images
    batch_size: int = 1024  # images per step, all processes together
    optimizer: str = "sgd"  # timm's name; timm's sgd has Nesterov momentum
    lr: float = 0.1  # peak, at this batch size
    momentum: float = 0.9  # where the optimiser has one
    weight_decay: float = 1e-4
    decay_all: bool = False  # norms and biases too, as in the reference's training; they are better left as they are
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    decay_epochs: int = 30  # schedule "step": lr falls to a tenth after every so many epochs
    warmup_epochs: int = 5  # linear, from a hundredth of lr
    image_size: int = 224  # a training crop's pixels, square
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop takes
    crop_ratio: tuple[float, float] = (0.75, 1.3333)  # width / height of a crop
    crops_per_image: int = 1  # crops from one decoded image, all in one batch; an epoch has as many crops as ever
    reduced_decode: bool = True  # decode a JPEG at 1/2, 1/4 or 1/8 where the crops still have image_size pixels. They differ
    # from fully decoded ones about as much as bilinear resizing does from bicubic (benchmarks/crops.py)
    hflip: float = 0.5  # probability of mirroring a crop
    colour_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)  # brightness, contrast, saturation: 1 - x ... 1 + x times
    lighting: float = 0.0  # standard deviation of AlexNet's PCA lighting noise
    cutmix: float = 0.0  # probability that a step pastes another crop's rectangle into each crop (Yun et al. 2019)
    cutmix_beta: float = 1.0  # the share that is not pasted over is drawn from Beta(x, x)
    cutmix_off_epochs: int = 0  # no CutMix in the last so many epochs
    cutmix_target: Literal["area", "regions"] = "area"  # area: the two crops' targets, weighted by what is seen of each.
    # regions: each map is pooled over what is seen of it, so that an object under the paste is not asked for
    ema: float = 0.0  # decay of the weights' moving average, which is then what is evaluated and kept: it is steadier than
    # the last step's weights; 0: none
    start: Literal["any", "pretrained"] = "any"  # pretrained: refuse to start from random weights
    eval_size: int = 224  # an evaluation image's pixels, square; resized bilinearly, as crops are
    eval_crop: float = 0.875  # share of the shorter side that the centre crop keeps; 1 is the whole of a square image
    eval_epochs: int = 1  # evaluate every so many epochs, and after the last
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise InputError(f"recipe: {name} = {value}; expected finite numbers")
        for name in ("epochs", "batch_size", "image_size", "crops_per_image", "eval_size", "eval_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe: {name} = {getattr(self, name)}; expected at least 1")
        if self.batch_size % self.crops_per_image:
            raise InputError(
                f"recipe: batch_size = {self.batch_size} is no multiple of crops_per_image = {self.crops_per_image}"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"recipe: crop_scale = {list(self.crop_scale)}; expected 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise InputError(f"recipe: crop_ratio = {list(self.crop_ratio)}; expected 0 < smallest <= largest")
        if not 0 < self.eval_crop <= 1:
            raise InputError(f"recipe: eval_crop = {self.eval_crop}; expected a share within (0, 1]")
        for name in ("hflip", "cutmix", "folder_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"recipe: {name} = {getattr(self, name)}; expected a share within [0, 1]")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"recipe: {name} = {getattr(self, name)}; expected 0 or more, and less than 1")
        for name in ("lr", "temperature", "cutmix_beta", "decay_epochs"):
            if getattr(self, name) <= 0:
                raise InputError(f"recipe: {name} = {getattr(self, name)}; expected a positive number")
        for name in ("momentum", "weight_decay", "warmup_epochs", "seed", "lighting", "cutmix_off_epochs", "token_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"recipe: {name} = {getattr(self, name)}; expected 0 or more")
        if min(self.colour_jitter) < 0:
            raise InputError(f"recipe: colour_jitter = {list(self.colour_jitter)}; expected 0 or more")
        localized, multi = self.target.startswith("localized"), self.target.endswith("multi") or self.target == "teacher"
        for name, reads, targets in (
            ("temperature", multi, "several classes"),
            ("folder_share", self.target != "folder", "label maps or a teacher"),
            ("token_weight", localized, "places of a label map"),
            ("cutmix_target", localized, "places of a label map"),
        ):
            if not reads and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise InputError(
                    f"recipe: {name} = {getattr(self, name)!r} is for targets of {targets}, which target = {self.target!r}"
                    " is not; set another target, or leave it out"
                )
        if not self.cutmix:
            for name in ("cutmix_beta", "cutmix_off_epochs", "cutmix_target"):
                default = type(self).__dataclass_fields__[name].default
                if getattr(self, name) != default:
                    raise InputError(
                        f"recipe: {name} = {getattr(self, name)!r} is for CutMix, which cutmix = 0 leaves out; set {name} ="
                        f" {default!r} too, or a cutmix above 0"
                    )
        if self.cutmix and self.cutmix_off_epochs >= self.epochs:
            raise InputError(
                f"recipe: cutmix_off_epochs = {self.cutmix_off_epochs} leaves CutMix none of {self.epochs} epochs; set both"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise InputError(f"recipe: warmup_epochs = {self.warmup_epochs} leaves none of {self.epochs} epochs; set both")

    @property
    def reads_maps(self) -> bool:
        """Whether the target is read from label maps."""
        return self.target not in ("folder", "teacher")

    @property
    def needs_labels(self) -> bool:
        """Whether a label set is needed: to read targets from, or to choose the images by."""
        return self.reads_maps or self.confirmed_only


@dataclass(frozen=True)
class About:
    """What a recipe file says of itself, beside its settings.

    Attributes:
        reproduces: what the run is, in a line.
        published: ImageNet top-1 in percent by timm's name of the student; Yun et al. 2021.
    """

    reproduces: str
    published: dict[str, float]


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def about_recipe(name: str) -> About:
    """What a recipe of ours reproduces."""
    own = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    return About(own["reproduces"], own.get("published", {}))


def load_recipe(recipe: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe by name or by the path of a .toml file, with KEY=VALUE overrides.

    Raises:
        InputError: no such recipe, no TOML, or a setting that is unknown or of another type.
    """
    path = Path(recipe) if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"
    settings = read_settings(path)
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"--set {override!r}: expected KEY=VALUE, such as lr=0.2")
        settings[key.strip()] = (toml_value(value), "--set")
    return build_recipe(settings)


def read_settings(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, tuple[Any, str]]:
    """A file's settings over those that it inherits, each with the place it came from; `heirs` inherit from it."""
    if path in heirs:
        raise InputError(f"{path} inherits from itself, through {', '.join(heir.name for heir in heirs)}")
    if not path.is_file():
        raise InputError(f"no recipe {path.stem!r}; there are {', '.join(recipe_names())}, or give the path of a .toml file")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    parent = own.pop("inherit", None)
    for key in ABOUT:
        own.pop(key, None)
    inherited: dict[str, tuple[Any, str]] = {}
    if parent is not None:
        if not isinstance(parent, str) or Path(parent).name != parent:
            raise InputError(f"{path}: inherit = {parent!r}; expected the name of a recipe, or of a .toml file beside it")
        beside = path.with_name(f"{parent}.toml")
        inherited = read_settings(
            beside if beside.is_file() and beside != path else RECIPES / f"{parent}.toml", (*heirs, path)
        )
    return inherited | {key: (value, str(path)) for key, value in own.items()}


def build_recipe(settings: dict[str, tuple[Any, str]]) -> Recipe:
    hints = typing.get_type_hints(Recipe)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(Recipe)}
    values = {}
    for key, (value, place) in settings.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(fields)}"
            raise InputError(f"{place}: unknown setting {key!r}{hint}")
        values[key] = coerce(value, fields[key], f"{place}: {key} = {value!r}")
    if "target" not in values:
        raise InputError(f"recipe without a target; expected one of {', '.join(get_args(Target))}")
    return Recipe(**values)


def coerce(value: Any, kind: Any, place: str) -> Any:
    """The value as a field's type; whole numbers pass for fractions, and lists for tuples."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(f"{place}; expected one of {', '.join(map(str, get_args(kind)))}")
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if isinstance(value, (list, tuple)) and len(value) == len(parts):
            return tuple(coerce(v, part, place) for v, part in zip(value, parts, strict=True))
        raise InputError(f"{place}; expected a list of {len(parts)} numbers")
    assert isinstance(kind, type) and not isinstance(kind, types.UnionType)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise InputError(f"{place}; expected {kind.__name__}, not {type(value).__name__}")


def toml_value(text: str) -> Any:
    """A value typed on the command line: TOML if it is TOML, else a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
