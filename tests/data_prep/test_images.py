"""One rule decides what an image file is worth: taken as it is, converted, or refused in one line."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import images
from mirl_study.settings import SettingsError

SIZE = (24, 18)  # width, height


def pixels(channels: int = 3) -> np.ndarray:
    shape = (SIZE[1], SIZE[0], channels) if channels > 1 else SIZE[::-1]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def rgb() -> Image.Image:
    return Image.fromarray(pixels())


def write_png(
    path: Path, values: np.ndarray, depth: int = 16, size: tuple[int, int] = SIZE, extra: bytes = b""
) -> None:
    """A PNG of any depth, which Pillow writes for grey alone."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    colour = {1: 0, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    lines = b"".join(b"\0" + line.astype(">u2" if depth == 16 else "u1").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "suffix, copied", [("png", True), ("bmp", True), ("jpg", True), ("tif", False), ("webp", False)]
)
def test_8_bit_rgb_is_taken_as_it_is(tmp_path, suffix, copied):
    path = tmp_path / f"a.{suffix}"
    rgb().save(path, lossless=True)
    with Image.open(path) as image:
        assert np.array_equal(images.read(path), np.asarray(image))
    assert images.is_plain(path) is copied


def test_a_truncated_tiff_is_one_line_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "a.tif"
    rgb().save(path, compression="tiff_lzw")
    truncate(path)
    with pytest.raises(SettingsError, match="a whole image is wanted|no image of a known kind"):
        images.read(path)
    assert not recwarn.list


def test_grey_black_and_white_and_palette_become_rgb(tmp_path):
    grey = pixels(1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).save(tmp_path / "grey.gif")
    Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    palette = rgb().quantize(16)
    palette.save(tmp_path / "palette.png")
    for name, wanted in {
        "grey.png": grey[..., None].repeat(3, 2),
        "grey.gif": grey[..., None].repeat(3, 2),
        "bits.png": 255 * (grey > 99)[..., None].repeat(3, 2),
        "palette.png": np.asarray(palette.convert("RGB")),
    }.items():
        read = images.read(tmp_path / name)
        assert read.dtype == np.uint8 and np.array_equal(read, wanted), name
        assert not images.is_plain(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_is_dropped_and_any_other_refused(tmp_path, mode):
    channels = len(mode)
    values = pixels(channels)
    values[..., -1] = 255
    path = tmp_path / "a.png"
    Image.fromarray(values, mode).save(path)
    assert np.array_equal(images.read(path), np.broadcast_to(values[..., :-1], (*SIZE[::-1], 3)))
    assert not images.is_plain(path)
    values[0, 0, -1] = 254
    Image.fromarray(values, mode).save(path)
    assert "transparent" in refusal(path)


def test_a_transparent_colour_counts_where_a_pixel_has_it(tmp_path):
    values = pixels()
    values[values == 7] = 8
    absent, present = tmp_path / "absent.png", tmp_path / "present.png"
    Image.fromarray(values).save(absent, transparency=(7, 7, 7))
    assert np.array_equal(images.read(absent), values) and not images.is_plain(absent)
    Image.fromarray(values).save(present, transparency=tuple(int(v) for v in values[0, 0]))
    assert "transparent" in refusal(present)
    rgb().quantize(4).save(tmp_path / "palette.png", transparency=0)
    assert "transparent" in refusal(tmp_path / "palette.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_rounded_to_8(tmp_path, channels):
    """All 65,536 values: the nearest of 0..255 to value / 257, so 128 goes down and 129 up."""
    values = np.arange(2**16, dtype=np.uint32).reshape(256, 256)
    stored = values if channels == 1 else np.stack([values, values[::-1], values.T], axis=-1)
    write_png(tmp_path / "a.png", stored, size=(256, 256))
    assert np.array_equal(
        images.read(tmp_path / "a.png"),
        np.rint(np.broadcast_to(stored.T, (3, 256, 256)).T / 257) if channels == 1 else np.rint(stored / 257),
    )
    assert not images.is_plain(tmp_path / "a.png")


def refusal(path: Path) -> str:
    """The one line by which both functions, or at least the one that decodes, refuse a file."""
    with pytest.raises(SettingsError) as caught:
        images.read(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def _text(path):
    path.write_text("not an image\nat all\n")


def _truncated(path):
    rgb().save(path)
    truncate(path)


def _corrupt(path):
    rgb().save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(data)


def _frames(path):
    rgb().save(path, save_all=True, append_images=[Image.new("RGB", SIZE)])


def _turned(path):
    exif = Image.Exif()
    exif[274] = 6
    rgb().save(path, exif=exif)


def _comment_bomb(path):
    """A text chunk that unpacks to 64 MB."""
    body = b"Comment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    write_png(path, pixels(), depth=8, extra=chunk)


REFUSED = {
    "absent.png": (lambda path: None, "No such file"),
    "folder.png": (lambda path: path.mkdir(), "directory"),
    "empty.png": (lambda path: path.touch(), "empty"),
    "text.png": (_text, "no image of a known kind"),
    "signature.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "no image of a known kind"),
    "truncated.png": (_truncated, "broken"),
    "truncated.jpg": (_truncated, "broken"),
    "truncated.bmp": (_truncated, "broken"),
    "truncated.tif": (_truncated, "broken"),
    "corrupt.png": (_corrupt, "broken"),
    "cmyk.jpg": (lambda path: Image.new("CMYK", SIZE).save(path), "CMYK"),
    "cmyk.tif": (lambda path: Image.new("CMYK", SIZE).save(path), "CMYK"),
    "lab.tif": (lambda path: Image.new("LAB", SIZE).save(path), "'LAB'"),
    "float.tif": (lambda path: Image.new("F", SIZE).save(path), "32 bits"),
    "wide.tif": (lambda path: Image.fromarray(np.zeros(SIZE, np.uint16)).save(path), "16 bits"),
    "wide_alpha.png": (lambda path: write_png(path, np.full((*SIZE[::-1], 4), 65535)), "16 bits"),
    "animated.gif": (_frames, "2 frames"),
    "animated.png": (_frames, "2 frames"),
    "pages.tif": (_frames, "2 frames"),
    "turned.jpg": (_turned, "orientation tag 6"),
    "turned.png": (_turned, "orientation tag 6"),
    "tiny.png": (lambda path: Image.new("RGB", (1, 1)).save(path), "1x1"),
    "narrow.png": (lambda path: Image.new("RGB", (15, 99)).save(path), "15x99"),
    "bomb.png": (lambda path: write_png(path, pixels(), depth=8, size=(60_000, 60_000)), "far too many pixels"),
    "large.png": (lambda path: write_png(path, pixels(), depth=8, size=(8_001, 8_000)), "64000000"),
    "comment.png": (_comment_bomb, "broken"),
    "vector.png": (
        lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "no image of a known kind",
    ),
    "printed.png": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path / name)
    assert words in refusal(tmp_path / name)


def test_a_file_that_may_not_be_read_is_refused_in_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    rgb().save(tmp_path / "a.png")
    monkeypatch.setattr(images.Image, "open", refuse)
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "a.png")


def test_a_name_that_lies_about_its_format_is_no_matter(tmp_path):
    rgb().save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(images.read(tmp_path / "a.jpg"), pixels()) and images.is_plain(tmp_path / "a.jpg")


def test_real_benchmark_files_are_copied_as_they_are(shared_data):
    for path in ("Urban100/img_001.png", "SOTS/outdoor/hazy/0001_0.8_0.2.jpg", "Rain100L/input/001.png"):
        assert images.is_plain(shared_data / path) and images.read(shared_data / path).ndim == 3
    assert not images.is_plain(shared_data / "OSN" / "test_01_original.tif")
