"""What a report holds of each image that it shows: a thumbnail, its labels as they are stored, and numbers.

Shapes: k classes stored per cell or region, H rows and W columns of a label map, N regions of an image.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.report.measures import shares
from relabel.images.image_set import ImageSet
from relabel.labels.boxes import covered
from relabel.labels.evidence import evidence
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import MIRRORED, LabelRegions
from relabel.labels.store import LabelStore

THUMBNAIL = 192  # pixels of the longer side
QUALITY = 75  # of the JPEG
MAX_LABEL_BYTES = 400_000  # of an image's labels; with more, too few images would fit
COLOURED = 7  # classes that have a colour in an image


@dataclass(frozen=True)
class Picture:
    """A thumbnail of what an image's labels cover.

    Attributes:
        jpeg: base64; empty if the image cannot be read.
        width, height: of the thumbnail.
        full: width and height in pixels of the file's part that it shows.
    """

    jpeg: str
    width: int
    height: int
    full: tuple[int, int]


def thumbnail(images: ImageSet, index: int, window: float | None) -> Picture:
    """Decode an image at reduced scale and cut out what its labels cover.

    Raises:
        UnreadableImage: the file is not an image, truncated, or damaged.
        UnavailableImage: the file is missing, or the system cannot read it.
    """
    with images.open_image(index) as encoded:
        width, height = encoded.width, encoded.height
        reduction = 1
        while reduction < 8 and max(width, height) >= 4 * reduction * THUMBNAIL:
            reduction *= 2
        picture, reduction = encoded.decode(reduction)
    x0, y0, x1, y1 = covered(width, height, window)
    full = max(1, round(x1 - x0)), max(1, round(y1 - y0))
    scale = min(1.0, THUMBNAIL / max(full))
    small_width, small_height = (max(1, round(side * scale)) for side in full)
    part = tuple(edge / reduction for edge in (x0, y0, x1, y1))
    cut = picture.resize((small_width, small_height), Image.Resampling.BICUBIC, box=part)
    jpeg = io.BytesIO()
    cut.save(jpeg, "JPEG", quality=QUALITY)
    return Picture(in_base64(jpeg.getvalue()), small_width, small_height, full)


def no_picture() -> Picture:
    """Stands for an image that cannot be read."""
    return Picture("", THUMBNAIL, THUMBNAIL, (THUMBNAIL, THUMBNAIL))


def labels_of(store: LabelStore[Any], row: int, given: int) -> tuple[dict[str, Any], set[int]]:
    """The labels of a row for the page, and the classes that are named in them.

    Stored values are in base64, little-endian. Labels that would take too much room are left out; "omitted" then has their
    size in bytes.
    """
    num_classes = store.manifest.num_classes
    labels: LabelMaps | LabelRegions = store.read(torch.tensor([row]))
    share = shares(labels, num_classes)[0]
    strongest = share.topk(min(COLOURED, num_classes))
    found = evidence(labels, torch.tensor([given]), num_classes)
    said: dict[str, Any] = {
        "shares": [[c, round(s, 4)] for s, c in zip(*(t.tolist() for t in strongest), strict=True) if s > 0],
        "others": int((share > 0).sum()) - int((strongest.values > 0).sum()),
        "labelBox": rounded(found.label_box[0]),
        "suggestionBox": rounded(found.suggestion_box[0]),
    }
    stored = labels.as_stored(num_classes)
    size = sum(t.nbytes for t in (stored.scores, stored.classes, stored.tail))
    if size > MAX_LABEL_BYTES:
        return said | {"omitted": size}, {c for c, _ in said["shares"]}
    said |= {name: in_base64(little_endian(getattr(stored, name))) for name in ("scores", "classes", "tail")}
    if isinstance(labels, LabelMaps):
        said |= {"grid": list(labels.scores.shape[2:]), "k": labels.scores.shape[1]}
    else:
        count = int(labels.count)
        boxes, flags = labels.boxes[0, :count], labels.flags[0, :count].tolist()
        mirrored = [bool(flag & MIRRORED) for flag in flags]
        said |= {"boxes": [rounded(box) for box in boxes], "mirrored": mirrored, "k": labels.scores.shape[2]}
    return said, set(labels.classes.flatten().tolist())


def rounded(box: Tensor) -> list[float]:
    return [round(edge, 5) for edge in box.tolist()]


def little_endian(values: Tensor) -> bytes:
    array = values.numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
