"""Decoding of every kind of image file, including damaged ones."""

import contextlib
import errno
import io
import os
import random
import socket
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from relabel.images import decoding
from relabel.images.decoding import FORMATS, UnavailableImage, UnreadableImage, extensions, read_rgb
from tests.conftest import leased

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


def png_of(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(100))]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ } loop\n%%EOF\n"


def dds() -> bytes:
    whole = io.BytesIO()
    Image.fromarray(RGB).save(whole, "DDS")
    return whole.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (truncated_jpeg(), "truncated"),
        (b"<html>404 not found</html>", "cannot identify image file"),
        (b"", "cannot identify image file"),
        (png_of(20_000, 20_000), "exceeds limit"),
        (png_of(1, 89_000_000), "1 x 89000000 pixels; sides of up to 65,535 pixels can be read"),
        (postscript(), "cannot identify image file"),
        (dds(), "cannot identify image file"),
    ],
    ids=["truncated", "text", "empty", "bomb", "long bomb", "postscript", "another format"],
)
def test_unreadable_file_is_reported_with_its_name_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.JPEG"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_rgb(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_program_in_the_place_of_an_image_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho run >{tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers whether there is one
    for ending in ("jpg", "png", "eps"):
        (tmp_path / f"x.{ending}").write_bytes(postscript())
        with pytest.raises(UnreadableImage, match="cannot identify image file"):
            read_rgb(tmp_path / f"x.{ending}")
    assert not (tmp_path / "ran").exists()
    with contextlib.suppress(OSError):
        Image.open(tmp_path / "x.jpg").load()
    assert (tmp_path / "ran").exists(), "Pillow by itself runs it"


def test_missing_image_is_reported_with_its_name_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableImage, match=rf"^{tmp_path}/x\.JPEG: \[Errno 2\] No such file or directory\. Make it readable"
    ):
        read_rgb(tmp_path / "x.JPEG")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "broken link", "link to itself", "name with a zero"])
def test_what_is_no_regular_file_is_unavailable_and_never_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("x.JPEG")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "name with a zero":
        path = Path("x\0.JPEG")
    else:
        path.symlink_to({"device": "/dev/zero", "broken link": "nowhere", "link to itself": str(path)}[kind])
    with pytest.raises(UnavailableImage, match=r"^x.*\.JPEG: "):
        read_rgb(path)


def test_error_of_the_system_while_reading_is_not_taken_for_damage(tmp_path: Path) -> None:
    class FailingDisk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 1000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(min(size or 0, 1000) if size != -1 else 1000)

    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3)).astype(np.uint8)).save(jpeg, "JPEG")
    with pytest.raises(UnavailableImage, match=r"x\.JPEG: \[Errno 5\] Input/output error"):
        read_rgb(FailingDisk(jpeg.getvalue()), "x.JPEG")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_under_every_ending_of_its_names(tmp_path: Path, form: str) -> None:
    flat = Image.new("RGB", (16, 8), (250, 10, 20))
    own = [ending for ending, name in Image.registered_extensions().items() if name == form and ending in extensions()]
    assert own
    for ending in own:
        flat.save(tmp_path / f"x{ending}", form)
        assert np.abs(decoded(tmp_path / f"x{ending}")[4, 8].astype(int) - (250, 10, 20)).max() < 12


def test_endings_of_formats_that_are_not_read_are_not_those_of_images() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jfif", ".mpo"} <= extensions()
    assert extensions().isdisjoint({".eps", ".ps", ".pdf", ".wmf", ".h5", ".psd", ".svg", ""})


def test_sixteen_bit_grey_that_uses_twelve_bits_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "warned_of_darkness", [])
    for name, largest in (("black", 0), ("bright", 4096), ("dark", 4095), ("dark too", 3000)):
        Image.fromarray(np.array([[0, largest]], dtype=np.uint16)).save(tmp_path / f"{name}.png")
        read_rgb(tmp_path / f"{name}.png")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/dark.png: 16-bit greyscale with values up to 4095 of 65,535 is nearly black; if white is 4,095"
        " (12 bits), multiply the values of such images by 16 and save them again"
    ]


def test_image_under_a_lease_is_read_once_the_lease_is_given_up(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    with leased(tmp_path / "x.png") as let_go:
        released = threading.Timer(0.3, let_go)
        released.start()
        assert (decoded(tmp_path / "x.png") == RGB).all()
        released.join()


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
