"""The fast way to decode ordinary JPEGs, against Pillow: the same pixels and errors, or the file is left to Pillow."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relabel.images import jpeg
from relabel.images.decoding import UnreadableImage, open_image
from relabel.images.jpeg import decode_ordinary, ordinary_size

COLUMNS, ROWS = 61, 45


def encoded(mode: str = "RGB", size: tuple[int, int] = (COLUMNS, ROWS), **options: Any) -> bytes:
    """A JPEG of smooth colours with some grain."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = (np.asarray(smooth) + rng.normal(0, 9, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(content: bytes, reduction: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True, "quality": 30}, {"restart_marker_blocks": 2}]
)
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_pixels_of_ordinary_jpegs_are_pillows(subsampling: str, options: dict[str, Any], reduction: int) -> None:
    content = encoded(subsampling=subsampling, **{"quality": 88} | options)
    assert ordinary_size(content) == (COLUMNS, ROWS)
    pixels = decode_ordinary(content, COLUMNS, ROWS, reduction)
    assert pixels is not None and np.array_equal(pixels, by_pillow(content, reduction))


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (40, 2), (8, 8), (17, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_of_tiny_and_grey_jpegs_are_pillows(size: tuple[int, int], mode: str) -> None:
    content = encoded(mode, size)
    assert ordinary_size(content) == size
    for reduction in (r for r in (1, 2, 4, 8) if r <= min(size)):
        with open_image(io.BytesIO(content), "x.JPEG") as image:
            pixels, applied = image.pixels(reduction)
        assert applied == reduction and np.array_equal(pixels, by_pillow(content, reduction))


def test_left_to_pillow_are_four_channels_odd_subsampling_and_what_is_no_jpeg() -> None:
    png = io.BytesIO()
    Image.new("RGB", (3, 2)).save(png, "PNG")
    odd = bytearray(encoded(subsampling="4:2:0"))
    start_of_frame = odd.index(b"\xff\xc0")
    odd[start_of_frame + 11] = 0x12  # of the first component: halved in height only
    for content in (encoded("CMYK"), bytes(odd), png.getvalue(), b"", b"\xff\xd8\xff"):
        assert ordinary_size(content) is None


def test_left_to_pillow_are_images_that_it_warns_of_or_refuses() -> None:
    content = bytearray(encoded())
    start_of_frame = content.index(b"\xff\xc0")
    content[start_of_frame + 5 : start_of_frame + 9] = (60_000).to_bytes(2, "big") * 2
    assert ordinary_size(bytes(content)) is None
    with (
        pytest.raises(UnreadableImage, match=r"x.JPEG.*decompression bomb"),
        open_image(io.BytesIO(bytes(content)), "x.JPEG"),
    ):
        pass


@pytest.mark.parametrize("reduction", [1, 2])
def test_a_damaged_jpeg_gives_the_same_pixels_or_the_same_error_as_by_pillow(
    monkeypatch: pytest.MonkeyPatch, reduction: int
) -> None:
    draw = random.Random(reduction)
    whole = encoded(quality=90, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    damaged = [whole[: draw.randrange(2, len(whole))] for _ in range(40)] + [whole + b"\0" * 9, whole[:-2], whole + whole]
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(content) if draw.random() < 0.5 else 640)  # half of them in the header
            content[at] = draw.randrange(256)
        damaged.append(bytes(content))
    with monkeypatch.context() as without:
        without.setattr(jpeg, "simplejpeg", None)
        expected = [outcome(content, reduction) for content in damaged]
    assert len({kind for kind, _ in expected}) == 2, "both outcomes must be among them"
    fast = sum(ordinary_size(content) is not None for content in damaged)
    assert fast > 100, "few of these files were tried by simplejpeg"
    assert [outcome(content, reduction) for content in damaged] == expected


def outcome(content: bytes, reduction: int) -> tuple[str, object]:
    try:
        with open_image(io.BytesIO(content), "x.JPEG") as image:
            pixels, applied = image.pixels(reduction)
    except UnreadableImage as error:
        return "error", str(error)
    return "pixels", (applied, pixels.shape, pixels.tobytes())


def test_without_simplejpeg_nothing_is_different_but_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.JPEG"
    path.write_bytes(encoded())
    with open_image(path) as image:
        fast, known = image.pixels()[0], image.fingerprint()
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    with open_image(path) as image:
        assert (image.width, image.height) == (COLUMNS, ROWS) and image.fingerprint() == known
        assert np.array_equal(image.pixels()[0], fast) and np.array_equal(np.asarray(image.decode()[0]), fast)
