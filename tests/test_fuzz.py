"""Every command on files and options that a seeded generator has spoilt.

Whatever they are: no traceback, no hang, a message that names the file or the option, little memory, and nothing written
outside the folder that the command was told to write to. FUZZ_CASES=5000 FUZZ_SEED=7 tries more, or others; a case that
fails is run again by its number: pytest tests/test_fuzz.py -k case-123.
"""

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from relabel.labels.manifest import MANIFEST, fields_digest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import SHARD_LINES
from relabel.labels.shards import shard_name
from relabel.labels.store import LabelStore
from relabel.runtime.files import sha256_of
from tests.conftest import SHARD_SIZE, THIN, Relabel, model_options, write_images

CASES = int(os.environ.get("FUZZ_CASES", "150"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SECONDS = 30
BYTES = 3e9  # of memory that a case may add

MODEL = ["--arch=resnet10t", *model_options(THIN)]
HERE = ["--workers=0", "--device=cpu"]
TINY = ["--recipe=scenes-relabel", *(f"--set={s}" for s in ("image_size=16", "eval_size=16", "batch_size=8", "epochs=1"))]
TINY += ["--set=warmup_epochs=0", *MODEL, *HERE]
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    10**20,
    10**400,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    0.5,
    True,
]
VALUES = [
    *NUMBERS,
    None,
    "",
    "x",
    "\ud800",
    "../../x",
    "\0",
    "1" * 5000,
    [],
    {},
    [[]],
    ["x"],
    [1, 2],
    {"x": 1},
    [None],
    "12",
]
TEXTS = ["", "x", "1e-999999999", "9" * 401, "9" * 6000, "-1", "nan", "inf", "1e308", "0", "[" * 9000, "a=b", "{" * 500]
TEXTS += [
    "1" * 20,
    "../x",
    "\udcff",
    "a" * 300,
    "/",
    ".",
    "8/0",
    "0x10",
    "1_0",
    "٣",
    "²",
    "'",
    '"""',
    "\n",
    "a\nb=1",
    "=",
    "--",
]


@dataclass
class Case:
    """A command line, and what a message about it may name."""

    command: list[str]
    names: list[str]


@dataclass
class World:
    """Sound files, in a folder of its own for every case."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    def __getattr__(self, name: str) -> Path:
        return self.root / name


def spoilt_json(rng: random.Random, value: Any) -> Any:
    """A copy with one part, at any depth, replaced, removed or added."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, copy = rng.choice(list(keys)), (dict(value) if isinstance(value, dict) else list(value))
        action = rng.random()
        if action < 0.1:
            del copy[key]
        elif action < 0.2 and isinstance(copy, dict):
            copy[rng.choice(["x", "", "sha256", "\ud800"])] = rng.choice(VALUES)
        else:
            copy[key] = spoilt_json(rng, value[key])
        return copy
    return rng.choice(VALUES)


def spoilt_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flipped, cut, repeated, emptied or replaced."""
    action = rng.random()
    if action < 0.6 and content:
        copy = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 20])):
            copy[rng.randrange(len(copy))] = rng.choice([0, 255, rng.randrange(256)])
        return bytes(copy)
    if action < 0.8:
        return content[: rng.randrange(len(content) + 1)]
    return rng.choice([b"", b"\0" * 1000, content + content, b"[" * 100_000, b"\xff\xfe", rng.randbytes(2000)])


def spoil_json_file(rng: random.Random, path: Path, resign: bool = False) -> None:
    if rng.random() < 0.2:
        path.write_bytes(spoilt_bytes(rng, path.read_bytes()))
        return
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    at = rng.randrange(len(lines))
    fields = spoilt_json(rng, json.loads(lines[at]))
    if resign and isinstance(fields, dict):
        fields.pop("sha256", None)
        fields["sha256"] = fields_digest(fields)
    lines[at] = json.dumps(fields)
    path.write_text("\n".join(lines) + "\n")


def label_set(rng: random.Random, world: World) -> Case:
    """A label set with one spoilt file, read by every command that reads label sets."""
    file = rng.choice([MANIFEST, MANIFEST, SHARD_LINES, SHARD_LINES, shard_name(1), "h5"])
    if file == "h5":
        spoil_hdf5(rng, world.labels)
    elif file.endswith(".h5"):
        (world.labels / file).write_bytes(spoilt_bytes(rng, (world.labels / file).read_bytes()))
    else:
        spoil_json_file(rng, world.labels / file, resign=file == MANIFEST and rng.random() < 0.7)
    command = rng.choice(
        [
            ["verify", str(world.labels)],
            ["verify", str(world.labels), f"--images={world.images}"],
            ["compare", str(world.labels), str(world.other)],
            ["compare", str(world.other), str(world.labels)],
            ["report", str(world.labels), f"--images={world.images}", f"--output={world.out / 'page.html'}"],
            ["export-labels", str(world.labels), str(world.out), "--format=relabel"],
            ["train", str(world.images), f"--run-dir={world.out}", f"--labels={world.labels}", *TINY],
        ]
    )
    return Case(command, [str(world.labels)])


def spoil_hdf5(rng: random.Random, labels: Path) -> None:
    """A shard that another program might have written, with the right sha256."""
    path, name = labels / shard_name(1), rng.choice(["keys", "scores", "classes", "tail"])
    with h5py.File(path, "r+") as file:
        shape, action = file[name].shape, rng.randrange(9)
        if action == 0:
            file["classes"][0, 0, 0, 0] = 65_535
        elif action == 1:
            file.attrs[rng.choice(["format", "num_classes"])] = rng.choice([np.arange(3), "1", h5py.Empty("f4"), 1.5, -1])
        elif action == 2:
            file["keys"][0] = rng.choice([b"../x", b"\xff", b"", b"/", b"cat/cat_0.JPEG"])
        elif action == 3:
            file["scores"][0] = rng.choice([np.nan, np.inf])
        else:
            del file[name]
            made: list[Callable[[], object]] = [
                lambda: file.create_group(name),
                lambda: file.create_dataset(name, data=h5py.Empty("f2")),
                lambda: file.create_dataset(name, shape, "f2", chunks=True),
                lambda: file.__setitem__(name, h5py.ExternalLink(rng.choice(["x", "/dev/zero"]), name)),
                lambda: file.__setitem__(name, h5py.SoftLink(rng.choice([f"/{name}", "/tail"]))),
                lambda: file.create_dataset(name, data=["x"] * shape[0]),
                lambda: file.create_dataset(name, shape, np.float64),
            ]
            rng.choice(made)()
    lines = (labels / SHARD_LINES).read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"sha256": sha256_of(path)})
    (labels / SHARD_LINES).write_text("\n".join(lines) + "\n")


def run_directory(rng: random.Random, world: World) -> Case:
    """A run with a spoilt file, continued, or shown in a report."""
    file = world.run / rng.choice(["run.json", "metrics.jsonl", "last.pt", "last.pt"])
    if file.suffix != ".pt":
        spoil_json_file(rng, file)
    elif rng.random() < 0.3:
        file.write_bytes(spoilt_bytes(rng, file.read_bytes()))
    else:
        torch.save(spoilt_content(rng, torch.load(file, weights_only=True)), file)
    if file.suffix != ".pt" and rng.random() < 0.3:
        page = ["report", str(world.labels), f"--images={world.images}", f"--output={world.out / 'page.html'}"]
        return Case([*page, f"--run={world.run}"], [str(world.run)])
    command = ["train", str(world.images), f"--run-dir={world.run}", f"--labels={world.labels}", "--resume", *TINY]
    return Case(command, [str(world.run)])


def spoilt_content(rng: random.Random, content: Any) -> Any:
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(list(content))
        return {**content, key: spoilt_content(rng, content[key])}
    odd = [torch.zeros(3), torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta"), torch.tensor(float("nan"))]
    values = [value for value in VALUES if not isinstance(value, int) or abs(value) < 2**63]
    return rng.choice([*odd, *values, torch.zeros(1).expand(10**9)])


def checkpoint(rng: random.Random, world: World) -> Case:
    """Spoilt weights, evaluated and exported."""
    file = world.run / rng.choice(["weights.pth", "weights.safetensors"])
    if file.suffix == ".pth" and rng.random() < 0.5:
        torch.save(spoilt_content(rng, dict(torch.load(file, weights_only=True))), file)
    elif rng.random() < 0.5 and file.suffix == ".safetensors":
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        part = rng.choice(["card", "header"])
        if part == "card":
            header["__metadata__"]["card"] = json.dumps(spoilt_json(rng, json.loads(header["__metadata__"]["card"])))
        else:
            header = spoilt_json(rng, header)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    else:
        file.write_bytes(spoilt_bytes(rng, file.read_bytes()))
    arch = rng.choice([[], MODEL])
    command = rng.choice(
        [
            ["eval", str(world.images), f"--checkpoint={file}", *arch, *HERE],
            ["export", str(file), str(world.out / "x.pth"), "--to=torchvision-detection", *arch[:1]],
            [
                "train",
                str(world.images),
                f"--run-dir={world.out}",
                f"--labels={world.labels}",
                f"--initial-weights={file}",
                *TINY,
            ],
        ]
    )
    return Case(command, [str(file)])


def recipe(rng: random.Random, world: World) -> Case:
    file = world.root / "mine.toml"
    lines = ['inherit = "relabel"', "lr = 0.1", 'target = "folder"', "crop_scale = [0.1, 1.0]", "epochs = 3", "hflip = 0.5"]
    value = rng.choice(
        [json.dumps(rng.choice(NUMBERS)), *TEXTS, "[" * 5000, "a.b.c = 1", "1979-05-27", "[1, [2]]", "{a = 1}"]
    )
    at = rng.randrange(len(lines))
    lines[at] = rng.choice([lines[at].partition("=")[0] + "= " + value, value, lines[at] + value])
    content = "\n".join(lines).encode(errors="surrogateescape")
    file.write_bytes(spoilt_bytes(rng, content) if rng.random() < 0.3 else content)
    return Case(["recipes", str(file)], [str(file), "recipe: ", "the recipe", "no recipe"])


def multilabels(rng: random.Random, world: World) -> Case:
    file = world.root / "shown.json"
    keys = [p.relative_to(world.images).as_posix() for p in sorted(world.images.glob("*/*"))]
    layouts = [
        {"images": {key: {"classes": [key.split("/")[0]]} for key in keys}},
        {"initial_annots": {key.split("/")[1]: {"correct": ["dog"]} for key in keys}, "problematic_images": {}},
    ]
    file.write_text(json.dumps(rng.choice(layouts)))
    spoil_json_file(rng, file)
    weights = f"--checkpoint={world.run / 'weights.pth'}"
    return Case(["eval", str(world.images), weights, f"--multilabels={file}", *HERE], [str(file)])


def published_maps(rng: random.Random, world: World) -> Case:
    stored = torch.stack([torch.randn(2, 3, 4), torch.arange(2).view(2, 1, 1).expand(2, 3, 4).float()])
    (world.root / "maps" / "cat").mkdir(parents=True)
    file = world.root / "maps" / "cat" / "a.pt"
    odd = [
        stored.to_sparse(),
        stored.to("meta"),
        stored.int(),
        stored * 1e30,
        stored[:1],
        stored[:, :0],
        stored.bool(),
        stored - 1,
    ]
    torch.save(rng.choice([stored, [stored], {"a": stored}, stored.requires_grad_(), *odd]), file)
    if rng.random() < 0.4:
        file.write_bytes(spoilt_bytes(rng, file.read_bytes()))
    source = world.root / "maps"
    if rng.random() < 0.3:
        shutil.make_archive(str(source), "tar", source)
        source = source.with_suffix(".tar")
        source.write_bytes(spoilt_bytes(rng, source.read_bytes()))
    return Case(["import-labels", str(source), f"--labels={world.out}", "--num-classes=3", "--workers=0"], [str(source)])


OPTIONS: dict[str, list[str]] = {
    "annotate": [
        "model",
        "model-kwargs",
        "checkpoint",
        "num-classes",
        "classes",
        "topk",
        "tail",
        "input-size",
        "batch-size",
    ],
    "train": ["labels", "arch", "recipe", "set", "val", "multilabels", "teacher", "teacher-kwargs", "teacher-input-size"],
    "eval": ["checkpoint", "compare", "suite", "multilabels", "class-names", "eval-size", "eval-crop", "batch-size"],
    "verify": ["images", "min-agreement", "spot-check", "class-names"],
    "compare": ["boxes", "class-names"],
    "find-noise": ["images", "output", "drop", "move", "threshold", "class-names"],
    "import-labels": ["num-classes", "axes", "images", "shard-size", "model", "input-size", "format", "target", "crop-pct"],
}
OPTIONS["annotate"] += ["workers", "device", "shard-size", "amp-dtype"]
OPTIONS["train"] += ["model-kwargs", "initial-weights", "workers", "device", "amp-dtype", "save-every"]
OPTIONS["eval"] += ["workers", "device", "fgsm-epsilon", "amp-dtype", "model-kwargs"]
SETTINGS = [
    "lr",
    "epochs",
    "batch_size",
    "image_size",
    "crop_scale",
    "target",
    "seed",
    "schedule",
    "temperature",
    "momentum",
]
SETTINGS += [
    "weight_decay",
    "optimizer",
    "warmup_epochs",
    "colour_jitter",
    "crops_per_image",
    "ema",
    "hflip",
    "eval_size",
    "x",
]


def option(rng: random.Random, world: World) -> Case:
    """Sound files, and one option with an odd value."""
    name = rng.choice(list(OPTIONS))
    tiny = ["--model=resnet10t", *model_options(THIN), f"--checkpoint={world.checkpoint}", "--num-classes=3"]
    sound: dict[str, list[str]] = {
        "annotate": [str(world.images), f"--labels={world.out}", *tiny, "--input-size=32x56", "--topk=2", *HERE],
        "train": [str(world.images), f"--run-dir={world.out}", f"--labels={world.labels}", *TINY],
        "eval": [str(world.images), f"--checkpoint={world.run / 'weights.pth'}", *HERE],
        "verify": [str(world.labels), f"--images={world.images}"],
        "compare": [str(world.labels), str(world.other)],
        "find-noise": [str(world.labels), f"--images={world.images}", f"--output={world.out}.csv"],
        "import-labels": [str(world.exported), f"--labels={world.out}", "--workers=0"],
    }
    odd = rng.choice(OPTIONS[name])
    value = rng.choice(TEXTS)
    names = [
        f"--{odd}",
        odd.replace("-", "_"),
        odd.replace("-", " "),
        odd.partition("-")[0],
        "checkpoint",
        *([value[:20].encode(errors="backslashreplace").decode()] if value.strip() else []),
        "--model",
        "timm",
    ]
    if odd == "set":
        setting = rng.choice(SETTINGS)
        value, names = f"{setting}={value}", [*names, setting]
    elif odd.endswith("kwargs"):
        argument = rng.choice(["num_classes", "depth", "img_size", "drop_rate", "features_only", "in_chans"])
        value, names = f"{argument}={value}", [*names, argument]
    if odd == "spot-check":
        sound["verify"].append(f"--checkpoint={world.checkpoint}")
    flags = ["--fgsm"] if odd == "fgsm-epsilon" else ["--amp"] if odd == "amp-dtype" else []
    return Case([name, *sound[name], *flags, f"--{odd}={value}"], names)


KINDS = [label_set, label_set, run_directory, checkpoint, recipe, multilabels, published_maps, option, option]


@pytest.fixture(scope="module")
def sound(
    tmp_path_factory: pytest.TempPathFactory, relabel_here: Relabel, tiny_options: list[str], tiny_checkpoint: Path
) -> Path:
    """Images, two label sets, their maps as published, a checkpoint and a finished run."""
    root = tmp_path_factory.mktemp("sound")
    write_images(root / "images")
    shutil.copy(tiny_checkpoint, root / "checkpoint")
    for name in ("labels", "other"):
        assert relabel_here("annotate", root / "images", "--labels", root / name, *tiny_options).returncode == 0
    store = LabelStore.open(root / "labels", LabelMaps)
    for row, key in enumerate(store.keys):
        maps = store.read(torch.tensor([row]))
        path = (root / "exported" / key).with_suffix(".pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.stack([maps.scores[0].float(), maps.classes[0].float()]), path)
    run = ["train", root / "images", f"--run-dir={root / 'run'}", f"--labels={root / 'labels'}", *TINY]
    trained = relabel_here(*run)
    assert trained.returncode == 0, trained.stderr
    assert SHARD_SIZE == 3
    return root


@pytest.fixture
def world(sound: Path, tmp_path: Path) -> World:
    root = tmp_path / "w"
    shutil.copytree(sound, root)
    run = (root / "run" / "run.json").read_text()
    (root / "run" / "run.json").write_text(run.replace(str(sound), str(root)))
    return World(root)


@pytest.fixture
def alarm() -> Iterator[None]:
    """What takes longer hangs."""

    def hangs(signum: int, frame: object) -> None:
        raise AssertionError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def files(root: Path) -> dict[str, int]:
    """Every file and folder with the time it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(CASES), ids=lambda number: f"case-{number}")
def test_whatever_the_file_or_option_the_answer_is_a_message(
    number: int, world: World, relabel_here: Relabel, alarm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"{SEED} {number}")
    case = rng.choice(KINDS)(rng, world)
    (world.root / "here").mkdir()
    monkeypatch.chdir(world.root / "here")
    before, memory = files(world.root), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    finished = relabel_here(*case.command)
    described = f"{case.command} answered after {time.monotonic() - started:.1f} s:\n{finished.stdout}{finished.stderr}"
    assert finished.returncode in (0, 1, 2), described
    message = finished.stdout + finished.stderr
    if finished.returncode:
        assert any(name in message for name in case.names), described
        assert len(message) < 20_000, described
    allowed = [str(world.out), str(world.run)] if "--resume" in case.command else [str(world.out)]
    changed = {path for path, when in files(world.root).items() if before.get(path) != when}
    assert not [path for path in changed if not path.startswith(tuple(allowed)) and path != str(world.root)], described
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < BYTES, described
