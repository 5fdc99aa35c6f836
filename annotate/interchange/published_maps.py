"""The label maps that the paper's authors published: where one image's is, and what is in it.

Their form is one `.pt` file per image, CLASS/NAME.pt, in a folder or an uncompressed tar: a tensor [2, k, H, W] of scores,
then class indices. Files are read where they are, straight from the tar too, and no code in them runs.

Shapes: n maps, k classes kept per cell, H rows and W columns of the label map.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from relabel.images.image_set import ImageSet
from relabel.images.keys import is_utf8
from relabel.images.tar_members import TarMember, read_member, tar_members
from relabel.runtime.defaults import Axes
from relabel.runtime.errors import InputError, first_line

EXACT_INTEGERS = {torch.float16: 2048, torch.bfloat16: 256}  # up to which each is held exactly


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
    """Key -> stretch of the tar; nothing is unpacked."""
    places: dict[str, Place] = {}
    for member in tar_members(source):
        if member.name.endswith(".pt"):
            add_place(places, Place(source, member.name, member.offset, member.size))
    return check_not_empty(places, source)


def add_place(places: dict[str, Place], place: Place) -> None:
    path = PurePosixPath(place.member)
    if len(path.parts) < 2 or path.parts[-2] in ("..", "/"):
        raise InputError(f"{place.name} lies in no class folder; expected CLASS/NAME.pt")
    key = f"{path.parts[-2]}/{path.stem}.JPEG"
    if not is_utf8(key):
        raise InputError(f"{place.source}: the name {place.member!r} is not UTF-8; rename the file")
    if key in places:
        raise InputError(f"{place.name} and {places[key].name} are both maps of {key}; name the folder of one label set")
    places[key] = place


def check_not_empty(places: dict[str, Place], source: Path) -> dict[str, Place]:
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


def load_maps(places: list[Place], axes: Axes, num_classes: int) -> Tensor:
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
        most = EXACT_INTEGERS.get(one.dtype, num_classes)
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
