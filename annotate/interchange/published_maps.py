"""The label maps that the paper's authors published: find each image's map, and read it.

There is one `.pt` file per image, CLASS/NAME.pt, in a folder or an uncompressed tar. It holds a tensor [2, k, H, W]: scores,
then class indices. Files are read in place, also from the tar, and no code in them is run.

Shapes: n maps, k classes kept per cell, H rows and W columns of the label map.
"""

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from annotate.interchange.image_folder import stem_of
from relabel.images.image_set import ImageSet
from relabel.images.keys import is_utf8
from relabel.images.tar_members import TarMember, read_member, tar_members
from relabel.models.weights import check_pickle_size, odd_storage, torch_reason
from relabel.runtime.defaults import Axes
from relabel.runtime.errors import InputError

EXACT_INTEGERS = {torch.float16: 2048, torch.bfloat16: 256}  # each type is exact for integers up to this one


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image's map is: a file below a folder, or a range of bytes in a tar. Kept small, as there are a million."""

    source: Path  # the folder or the tar, the same object in all places
    member: str  # path in the folder or the tar
    offset: int = -1  # -1 in a folder
    size: int = -1

    @property
    def name(self) -> str:
        return f"{self.source}{'/' if self.offset < 0 else ':'}{self.member}"

    def read(self) -> bytes:
        if self.offset < 0:
            return (self.source / self.member).read_bytes()
        return read_member(TarMember(self.member, self.source, self.offset, self.size))


def index_folder(source: Path) -> dict[str, Place]:
    """Key -> place of every CLASS/NAME.pt below a folder; keys end in .JPEG."""
    if not source.is_dir():
        raise InputError(f"{source} does not exist; expected a folder or a tar of CLASS/NAME.pt files")
    places: dict[str, Place] = {}
    for folder, _, names in os.walk(source):
        for name in names:
            if name.endswith(".pt"):
                add_place(places, Place(source, Path(folder, name).relative_to(source).as_posix()))
    return check_not_empty(places, source)


def index_tar(source: Path) -> dict[str, Place]:
    """Key -> range of bytes in the tar; nothing is unpacked."""
    places: dict[str, Place] = {}
    for member in tar_members(source):
        if member.name.endswith(".pt"):
            add_place(places, Place(source, member.name, member.offset, member.size))
    return check_not_empty(places, source)


def add_place(places: dict[str, Place], place: Place) -> None:
    path = PurePosixPath(place.member)
    if len(path.parts) < 2 or path.parts[-2] in ("..", "/"):
        raise InputError(f"{place.name} is not in a class folder; expected CLASS/NAME.pt")
    key = f"{path.parts[-2]}/{path.stem}.JPEG"
    if not is_utf8(key):
        raise InputError(f"{place.source}: the name {place.member!r} is not UTF-8; rename the file")
    if key in places:
        raise InputError(f"{place.name} and {places[key].name} are both maps of {key}; pass a folder with one map per image")
    places[key] = place


def check_not_empty(places: dict[str, Place], source: Path) -> dict[str, Place]:
    if not places:
        raise InputError(f"{source} contains no .pt files; expected CLASS/NAME.pt for every image")
    return places


def with_extensions(places: dict[str, Place], image_set: ImageSet) -> dict[str, Place]:
    """The same places, with the images' own keys, which have the true extensions."""
    stems: dict[str, str] = {}
    for key in image_set.keys:
        other = stems.setdefault(key.rpartition(".")[0], key)
        if other != key:
            raise InputError(
                f"{image_set.source}: {other} and {key} differ only in their extensions, so a map could belong to either"
            )
    cut = Counter(map(stem_of, image_set.keys))  # the programs that read such maps cut a name at its first dot
    stems = {stem_of(key): key for key in image_set.keys if cut[stem_of(key)] == 1} | stems
    found = {stems.get(key.rpartition(".")[0], ""): place for key, place in places.items()}
    unmatched = [place.name for key, place in places.items() if key.rpartition(".")[0] not in stems]
    if unmatched:
        raise InputError(
            f"{len(unmatched)} maps have no image in {image_set.source} (first: {unmatched[0]}); pass the images that the"
            " maps were made from"
        )
    return found


def load_maps(places: list[Place], axes: Axes, num_classes: int) -> Tensor:
    """The (n, 2, k, H, W) float32 maps of `read_maps`.

    Raises:
        InputError: a file is invalid.
    """
    maps, errors = read_maps(places, axes, num_classes)
    if errors:
        raise InputError(errors[0])
    return maps


def read_maps(
    places: Sequence[Place], axes: Axes, num_classes: int, shape: Sequence[int] | None = None
) -> tuple[Tensor, list[str]]:
    """Read maps as (n, 2, k, H, W) float32: scores, largest first, then classes.

    Args:
        shape: the expected (2, k, H, W) of every map as stored; None for that of the first map.
    Returns:
        the maps, and a message for each invalid file. If there are messages, the maps are of no use.
    """
    read: list[tuple[Place, Tensor]] = []
    errors: list[str] = []
    for place in places:
        try:
            stored = read_tensor(place)
        except InputError as error:
            errors.append(str(error))
            continue
        largest = EXACT_INTEGERS.get(stored.dtype, num_classes)
        if num_classes - 1 > largest:
            errors.append(f"{place.name}: class indices are {stored.dtype}, which is exact only up to {largest}")
            continue
        shape = shape or stored.shape
        if tuple(stored.shape) != tuple(shape):
            errors.append(f"{place.name}: shape {list(stored.shape)}, but the first map has {list(shape)}")
        else:
            read.append((place, stored))
    if not read:
        return torch.empty(0, *(shape or (2, 0, 0, 0))), errors
    scores, classes = torch.stack([stored.float() for _, stored in read]).unbind(1)
    for invalid, problem in (
        (
            (classes < 0) | (classes >= num_classes) | (classes != classes.round()),
            f"its second half does not hold class indices below {num_classes}; check --num-classes",
        ),
        (~scores.half().isfinite(), "its scores are not finite numbers of float16, which a label set stores"),
        (stored_twice(classes), "a cell has a class twice"),
    ):
        errors += [f"{read[i][0].name}: {problem}" for i in invalid.flatten(1).any(1).nonzero().flatten().tolist()]
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = torch.stack([scores.gather(1, order), classes.gather(1, order)], dim=1)
    return ranked.transpose(3, 4) if axes == "xy" else ranked, errors


def stored_twice(classes: Tensor) -> Tensor:
    """(n, k, H, W) classes -> (n, k - 1, H, W) whether two neighbours among a cell's sorted classes are the same."""
    ordered = classes.sort(dim=1).values
    return ordered[:, 1:] == ordered[:, :-1]


def read_tensor(place: Place) -> Tensor:
    """Read one file's map, (2, k, H, W), as stored.

    Raises:
        InputError: the file is missing, or does not hold such a tensor.
    """
    try:
        content = place.read()
        check_pickle_size(io.BytesIO(content))
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{place.name}: {error.strerror}") from error
    except Exception as error:  # torch raises many types of errors for a damaged file
        raise InputError(f"{place.name}: not a tensor file ({torch_reason(error)})") from error
    if not isinstance(stored, Tensor) or stored.ndim != 4 or len(stored) != 2 or not stored.numel():
        found = list(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
        raise InputError(f"{place.name}: found {found}, expected a tensor [2, k, H, W] of scores and class indices")
    if problem := odd_storage(stored):
        raise InputError(f"{place.name}: the tensor is {problem}; expected numbers, each of which is in the file")
    return stored.detach()
