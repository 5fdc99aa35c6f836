"""Decoding of every kind of image file, including damaged ones."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.images.decoding import UnreadableImage, read_rgb

RGB = np.array([[[250, 10, 20], [30, 240, 50], [60, 70, 230]], [[0, 0, 0], [255, 255, 255], [1, 2, 3]]], dtype=np.uint8)


def decoded(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_image_has_the_same_values_in_all_three_channels(tmp_path: Path) -> None:
    grey = np.array([[0, 7, 255], [128, 64, 1]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert (decoded(tmp_path / "x.png") == grey[:, :, None]).all()


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80\xff"])
def test_palette_image_has_the_colours_of_its_palette(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 2, 0]], dtype=np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 150, 0, 9, 8, 7])
    image.save(tmp_path / "x.png", **({} if transparency is None else {"transparency": transparency}))
    red, green, dark = [200, 0, 0], [0, 150, 0], [9, 8, 7]
    assert decoded(tmp_path / "x.png").tolist() == [[red, green, dark], [dark, dark, red]]


def test_rgba_image_keeps_its_colours_whatever_its_transparency(tmp_path: Path) -> None:
    alpha = np.array([[0, 128, 255], [255, 0, 1]], dtype=np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "x.png")
    assert (decoded(tmp_path / "x.png") == RGB).all()


def test_cmyk_jpeg_has_the_colours_of_its_inks(tmp_path: Path) -> None:
    inks = np.zeros((16, 32, 4), dtype=np.uint8)
    inks[:, :16] = (0, 255, 255, 0)  # magenta and yellow: red
    inks[:, 16:] = (255, 0, 255, 0)  # cyan and yellow: green
    Image.fromarray(inks, "CMYK").save(tmp_path / "x.JPEG", quality=95)
    red, green = decoded(tmp_path / "x.JPEG")[8, [4, 28]].astype(int)
    assert red[0] > 240 and red[1:].max() < 15
    assert green[1] > 240 and max(green[0], green[2]) < 15


@pytest.mark.parametrize(("form", "order"), [("PNG", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, form: str, order: str) -> None:
    deep = np.array([[0, 255, 256, 511], [32768, 40000, 65279, 65535]], dtype=order)
    Image.fromarray(deep).save(tmp_path / "x.JPEG", form)
    expected = [[v // 256 for v in row] for row in deep.tolist()]
    assert decoded(tmp_path / "x.JPEG").tolist() == [[[v, v, v] for v in row] for row in expected]


def test_32_bit_grey_is_read_as_16_bit_if_its_values_fit(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 511], [32768, 40000, 65279, 65535]], dtype=np.int32)
    Image.fromarray(deep).save(tmp_path / "x.JPEG", "TIFF")
    expected = [[v // 256 for v in row] for row in deep.tolist()]
    assert decoded(tmp_path / "x.JPEG").tolist() == [[[v, v, v] for v in row] for row in expected]


@pytest.mark.parametrize("values", [np.array([[0, 70_000]], dtype=np.int32), np.array([[0.0, 0.5]], dtype=np.float32)])
def test_grey_without_a_defined_white_is_unreadable(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "x.JPEG", "TIFF")
    with pytest.raises(
        UnreadableImage,
        match=r"values from 0.*mode [IF]\): it is unknown which value is white; save the image with 8 or 16 bits",
    ):
        read_rgb(tmp_path / "x.JPEG")


def test_png_named_jpeg_is_decoded_as_png(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.JPEG", "PNG")
    assert (decoded(tmp_path / "x.JPEG") == RGB).all()


def test_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "x.JPEG", exif=exif)
    assert read_rgb(tmp_path / "x.JPEG").size == (30, 20)


def truncated_jpeg() -> bytes:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(whole, "JPEG")
    return whole.getvalue()[: len(whole.getvalue()) // 2]


def png_of_400_megapixels() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(100))]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def dds_of_unknown_pixel_format() -> bytes:
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "DDS")
    damaged = bytearray(whole.getvalue())
    damaged[80:84] = bytes(4)  # no flags: neither RGB nor compressed
    return bytes(damaged)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (truncated_jpeg(), "truncated"),
        (b"<html>404 not found</html>", "cannot identify image file"),
        (b"", "cannot identify image file"),
        (png_of_400_megapixels(), "exceeds limit"),
        (dds_of_unknown_pixel_format(), "pixel format"),
    ],
    ids=["truncated", "text", "empty", "bomb", "unknown pixel format"],
)
def test_unreadable_file_is_reported_with_its_name_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.JPEG"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_rgb(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_missing_image_is_reported_with_its_name_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=rf"{tmp_path}/x\.JPEG: .*No such file or directory$"):
        read_rgb(tmp_path / "x.JPEG")


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("GIF", "P")])
def test_damaged_image_is_decoded_or_raises_unreadable_image(tmp_path: Path, form: str, mode: str) -> None:
    whole = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(whole, form)
    rng = random.Random(0)
    unreadable = 0
    for attempt in range(150):
        damaged = bytearray(whole.getvalue())
        if attempt % 3 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(attempt % 3 * 3):
            damaged[rng.randrange(min(len(damaged), 400))] = rng.randrange(256)
        (tmp_path / "x.JPEG").write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Pillow, about damage that it could work around
            try:
                assert read_rgb(tmp_path / "x.JPEG").mode == "RGB"
            except UnreadableImage:
                unreadable += 1
    assert unreadable > 20
