"""Read the label maps that the paper's authors published, and make a label set of them.

Their form is one `.pt` file per image, CLASS/NAME.pt, in a folder or an uncompressed tar: a tensor [2, k, H, W] of scores,
then class indices. They have no tail: a class that is not stored counts as 0, their authors' own arithmetic.

Files are read in the order of their keys, a few hundred at a time, from the folder or straight from the tar, by several
processes, and no code in them runs. A rerun keeps finished shards.

Shapes: n maps, k classes kept per cell, H rows and W columns of the label map.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from annotate.axes import SAMPLE, decide_axes
from annotate.convert import REFUSED
from annotate.label_folder import finish, only_run_on, prepare
from annotate.run import AnnotateConfig, load_annotator
from pipeline.classifier import choose_device
from pipeline.distributed import Processes, deaths_told
from pipeline.errors import InputError, first_line
from pipeline.image_sources import find_images
from pipeline.images import ImageSet, digest_of, leave_signals_to_the_main_process
from pipeline.keys import encodable
from pipeline.manifest import Manifest, append_shard_line
from pipeline.shards import LabelMaps, write_shard
from pipeline.tar_members import TarMember, read_member, tar_members

Axes = Literal["yx", "xy", "auto"]
ALONE = Processes(0, 1, torch.device("cpu"))
WHOLE_NUMBERS = {torch.float16: 2048, torch.bfloat16: 256}  # up to which each is held exactly
TOGETHER = 256  # maps that are read at a time: 5 MB of 15x15x5


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image's map lies: a file below a folder, or a stretch of a tar. There are a million, so it holds little."""

    source: Path  # the folder or the tar, shared by all
    member: str  # path below or within it
    offset: int = -1  # -1 in a folder
    size: int = -1

    @property
    def name(self) -> str:
        return f"{self.source}{'/' if self.offset < 0 else ':'}{self.member}"

    def read(self) -> bytes:
        if self.offset < 0:
            return (self.source / self.member).read_bytes()
        return read_member(TarMember(self.member, self.source, self.offset, self.size))


def import_maps(
    source: Path,
    labels: Path,
    num_classes: int,
    axes: Axes = "yx",
    images: Path | str | None = None,
    shard_size: int = 4096,
    judge: AnnotateConfig | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> None:
    """Make a label set of published maps.

    Args:
        source: a folder or a tar of CLASS/NAME.pt files, at any depth.
        num_classes: of the annotator that made them.
        axes: "yx" if a map's first axis is the rows of the image, "xy" if it was stored transposed, "auto" to let the
            annotator `judge`, on `device`, decide on a sample of the images (annotate/axes.py).
        images: the images they were made from; gives keys their true extensions (else .JPEG), and must hold them all.
        workers: processes that read; as many as there are cores if None, and if 0 the main one reads.
    Raises:
        InputError: no maps there, a compressed tar, maps without an image, files that are no such tensors (all of a
            shard's are named), or another label set in the folder.
    """
    places = index_tar(source) if source.is_file() else index_folder(source)
    image_set = find_images(images) if images is not None else None
    if image_set is not None:
        places = with_extensions(places, image_set)
    keys = sorted(places)
    if axes == "auto":
        if image_set is None or judge is None:
            raise InputError("--axes auto needs images and an annotator to judge by: pass --images and --model")
        axes = judged_axes(places, image_set, judge, num_classes, choose_device(device))
    first = fit_maps([places[keys[0]]], axes, num_classes)
    _, _, topk, rows, columns = first.shape
    manifest = Manifest(
        model="published maps",
        model_kwargs={},
        weights=f"{source.name}, axes {axes}",
        weights_sha256=None,
        num_classes=num_classes,
        kind="imported",
        input_size=None,
        mean=None,
        std=None,
        interpolation=None,
        precision="float32",
        topk=topk,
        tail="zero",
        grid=(rows, columns),
        image_count=len(keys),
        image_digest=digest_of(keys),
        shard_size=shard_size,
        timm_version=timm.__version__,
        torch_version=torch.__version__,
    )
    try:
        labels.mkdir(parents=True, exist_ok=True)
        with deaths_told(), only_run_on(labels, ALONE):
            pending = prepare(labels, manifest, ALONE)
            files = MapFiles([places.pop(key) for key in keys], axes, manifest)
            for shard, maps in read_shards(pending, files, manifest, ALONE.decoding_workers(workers)):
                of_shard = manifest.images_of(shard)
                append_shard_line(labels, write_shard(labels, shard, keys[of_shard.start : of_shard.stop], maps, manifest))
            finish(labels, manifest)
    except OSError as error:
        raise InputError(f"cannot read {source} or write {labels}: {error}. Finished shards are safe; rerun") from error


def judged_axes(
    places: dict[str, Place], image_set: ImageSet, judge: AnnotateConfig, num_classes: int, device: torch.device
) -> Literal["yx", "xy"]:
    """Decide on a random sample of the maps, and say by what margin."""
    annotator, squash = load_annotator(judge, device)
    classes = annotator.classifier.num_classes
    if classes != num_classes:
        raise InputError(f"--axes auto: {judge.model} has {classes} classes, the maps {num_classes}; they must be the same")
    if annotator.kind == "token":
        tqdm.write(f"warning: {annotator.name}: {REFUSED['token']}; another --model would judge better")
    keys = sorted(places)
    sample = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values.tolist()
    maps = fit_maps([places[keys[i]] for i in sample], "yx", num_classes)
    verdict = decide_axes(list(maps), [image_set.index(keys[i]) for i in sample], image_set, annotator, squash)
    tqdm.write(str(verdict))
    return verdict.axes


def index_folder(source: Path) -> dict[str, Place]:
    """Key -> place of every CLASS/NAME.pt below a folder; keys end in .JPEG."""
    if not source.is_dir():
        raise InputError(f"{source} does not exist; expected a folder or a tar of CLASS/NAME.pt files")
    places: dict[str, Place] = {}
    for folder, _, names in os.walk(source):
        for name in names:
            if name.endswith(".pt"):
                add(places, Place(source, Path(folder, name).relative_to(source).as_posix()))
    return whole(places, source)


def index_tar(source: Path) -> dict[str, Place]:
    """Key -> stretch of the tar; nothing is unpacked."""
    places: dict[str, Place] = {}
    for member in tar_members(source):
        if member.name.endswith(".pt"):
            add(places, Place(source, member.name, member.offset, member.size))
    return whole(places, source)


def add(places: dict[str, Place], place: Place) -> None:
    path = PurePosixPath(place.member)
    if len(path.parts) < 2 or path.parts[-2] in ("..", "/"):
        raise InputError(f"{place.name} lies in no class folder; expected CLASS/NAME.pt")
    key = f"{path.parts[-2]}/{path.stem}.JPEG"
    if not encodable(key):
        raise InputError(f"{place.source}: the name {place.member!r} is not UTF-8; rename the file")
    if key in places:
        raise InputError(f"{place.name} and {places[key].name} are both maps of {key}; name the folder of one label set")
    places[key] = place


def whole(places: dict[str, Place], source: Path) -> dict[str, Place]:
    if not places:
        raise InputError(f"{source} holds no .pt file; expected CLASS/NAME.pt for every image")
    return places


def with_extensions(places: dict[str, Place], image_set: ImageSet) -> dict[str, Place]:
    """The same places under the images' own keys."""
    stems: dict[str, str] = {}
    for key in image_set.keys:
        other = stems.setdefault(key.rpartition(".")[0], key)
        if other != key:
            raise InputError(
                f"{image_set.source}: {other} and {key} differ in their endings alone; a map could be of either"
            )
    found = {stems.get(key.rpartition(".")[0], ""): place for key, place in places.items()}
    strange = [place.name for key, place in places.items() if key.rpartition(".")[0] not in stems]
    if strange:
        raise InputError(
            f"{len(strange)} maps have no image in {image_set.source} (first: {strange[0]}); name the images they are of"
        )
    return found


class MapFiles(Dataset[tuple[Tensor, list[str]]]):
    """`read_maps` of the files in a range of all keys' places, for processes that read."""

    def __init__(self, places: list[Place], axes: Axes, manifest: Manifest) -> None:
        self.places, self.axes, self.num_classes = places, axes, manifest.num_classes
        self.shape = (2, manifest.topk, *(manifest.grid[::-1] if axes == "xy" else manifest.grid))

    def __getitem__(self, part: range) -> tuple[Tensor, list[str]]:
        return read_maps(self.places[part.start : part.stop], self.axes, self.num_classes, self.shape)


def read_shards(pending: list[int], files: MapFiles, manifest: Manifest, workers: int) -> Iterator[tuple[int, LabelMaps]]:
    """The maps of each pending shard, in order.

    Raises:
        InputError: files of a shard are unfit; all of them are named together.
    """
    parts = {shard: parts_of(shard, manifest) for shard in pending}
    wanted = [part for of_shard in parts.values() for part in of_shard]
    done = manifest.image_count - sum(map(len, wanted))
    loader = DataLoader(
        files,
        batch_size=None,
        sampler=wanted,
        num_workers=workers if wanted else 0,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    with tqdm(total=manifest.image_count, initial=done, unit="map", desc="import", disable=None) as bar:
        read = iter(loader)
        for shard, of_shard in parts.items():
            made: list[Tensor] = []
            unfit: list[str] = []
            for part in of_shard:
                maps, messages = next(read)
                made.append(maps)
                unfit += messages
                bar.update(len(part))
            if unfit:
                listed = "\n  ".join(unfit)
                found = f"{len(unfit)} unfit maps in shard {shard} of {manifest.shard_count}"
                raise InputError(f"{found}:\n  {listed}\nMend them and rerun")
            scores, classes = torch.cat(made).unbind(1)
            yield shard, LabelMaps(scores, classes.int(), torch.zeros(len(scores), *manifest.grid))


def parts_of(shard: int, manifest: Manifest) -> list[range]:
    """The places of a shard's maps among all, in the parts that are read at a time."""
    images = manifest.images_of(shard)
    return [images[at : at + TOGETHER] for at in range(0, len(images), TOGETHER)]


def fit_maps(places: list[Place], axes: Axes, num_classes: int) -> Tensor:
    """(n, 2, k, H, W) float32 of `read_maps`.

    Raises:
        InputError: a file that is unfit.
    """
    maps, unfit = read_maps(places, axes, num_classes)
    if unfit:
        raise InputError(unfit[0])
    return maps


def read_maps(
    places: Sequence[Place], axes: Axes, num_classes: int, shape: Sequence[int] | None = None
) -> tuple[Tensor, list[str]]:
    """Maps as (n, 2, k, H, W) float32: scores, largest first, then classes; and what is wrong with the files left out.

    Args:
        shape: 2, k, H, W of every map; that of the first one if None.
    """
    read: list[tuple[Place, Tensor]] = []
    unfit: list[str] = []
    for place in places:
        try:
            one = tensor_in(place)
        except InputError as error:
            unfit.append(str(error))
            continue
        most = WHOLE_NUMBERS.get(one.dtype, num_classes)
        if num_classes - 1 > most:
            unfit.append(f"{place.name}: class indices as {one.dtype}, which holds whole numbers to {most} alone")
            continue
        shape = shape or one.shape
        if tuple(one.shape) != tuple(shape):
            unfit.append(f"{place.name}: {list(one.shape)}, the first map is {list(shape)}")
        else:
            read.append((place, one))
    if not read:
        return torch.empty(0, *(shape or (2, 0, 0, 0))), unfit
    together = torch.stack([one.float() for _, one in read])
    scores, classes = together.unbind(1)
    for wrong, what in (
        (
            (classes < 0) | (classes >= num_classes) | (classes != classes.round()),
            f"its second half is not class indices below {num_classes}; check --num-classes",
        ),
        (~scores.isfinite(), "its scores are not finite"),
    ):
        unfit += [f"{read[i][0].name}: {what}" for i in wrong.flatten(1).any(1).nonzero().flatten().tolist()]
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = torch.stack([scores.gather(1, order), classes.gather(1, order)], dim=1)
    return ranked.transpose(3, 4) if axes == "xy" else ranked, unfit


def tensor_in(place: Place) -> Tensor:
    """One file's map, (2, k, H, W), as it is stored.

    Raises:
        InputError: no such file, or no such tensor in it.
    """
    try:
        stored = torch.load(io.BytesIO(place.read()), map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{place.name}: {error.strerror}") from error
    except Exception as error:  # a damaged file comes out of torch as one of many types
        raise InputError(f"{place.name}: no tensor ({first_line(error)})") from error
    if not isinstance(stored, Tensor) or stored.ndim != 4 or len(stored) != 2:
        found = list(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
        raise InputError(f"{place.name}: {found}, expected a tensor [2, k, H, W] of scores and class indices")
    return stored
