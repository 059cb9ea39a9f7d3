"""From an image file of any common kind to 8-bit RGB, by one stated rule or not at all."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from mirl_study.settings import SettingsError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
SMALLEST = 16  # pixels: below, neither the network's three halvings nor SSIM's window make sense
LARGEST = 64_000_000  # pixels in all: far above any benchmark, far below what fills the memory
RULE = (
    "8-bit RGB is taken as it is (PNG, JPEG and BMP files are copied byte for byte); 8-bit grey, black-and-white and "
    "palette images become RGB; an alpha channel is dropped where it is fully opaque; 16-bit grey and RGB PNG become "
    "8 bits by rounding value / 257; colour profiles are not applied. Refused: transparency, CMYK, other depths and "
    "colour spaces, more than one frame, an orientation tag, fewer than 16 pixels a side, more than 64 million in all."
)
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
_COPIED = ("PNG", "JPEG", "BMP")  # formats that stay as they are, if they hold 8-bit RGB
_ORIENTATION = 274  # the EXIF tag
_WIDE = ("I;16", "I;16B", "I")  # how Pillow names 16-bit grey, version by version


def read(path: Path) -> np.ndarray:
    """Decodes an image to 8-bit RGB by RULE.

    Args:
        path: of the file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        SettingsError: the file is missing, broken, or of a kind that RULE refuses.
    """
    with _opened(path) as image:
        if _depth(image) == 16:
            return _narrowed(image, path)
        if image.has_transparency_data:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            if alpha.min() < 255:
                raise _refusal(path, "is transparent in places", "opaque RGB")
        return np.asarray(image.convert("RGB"))


def is_plain(path: Path) -> bool:
    """Whether the file holds 8-bit RGB in a format that can be copied byte for byte; only its header is looked at.

    Raises:
        SettingsError: as ``read``, but for damage that only decoding shows.
    """
    with _opened(path) as image:
        plain = image.mode == "RGB" and _depth(image) == 8 and not image.has_transparency_data
        return plain and image.format in _COPIED


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image that RULE does not refuse by its header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage that is only warned of ends in an error, which is enough
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _check(image, path)
                yield image
    except SettingsError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _refusal(path, "has far too many pixels", f"at most {LARGEST}") from error
    except Exception as error:  # decoders raise almost anything over a broken file
        raise SettingsError(f"image {path} {_reason(path, error)}") from error


def _check(image: Image.Image, path: Path) -> None:
    """Raises SettingsError for what RULE refuses and the header shows."""
    size = f"{image.width}x{image.height} pixels"
    if image.width * image.height > LARGEST:
        raise _refusal(path, f"has {size}", f"at most {LARGEST} in all")
    if min(image.size) < SMALLEST:
        raise _refusal(path, f"has {size}", f"at least {SMALLEST}x{SMALLEST}")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise _refusal(path, f"holds {frames} frames", "a single image")
    if image.mode in ("CMYK", "YCCK"):
        raise _refusal(path, "is CMYK, for print", "RGB (export it as sRGB: inks need a colour profile to convert)")
    if (orientation := image.getexif().get(_ORIENTATION, 1)) not in (0, 1):
        raise _refusal(
            path, f"carries orientation tag {orientation}", "an image that is turned itself, without the tag,"
        )
    depth, wide = _depth(image), image.mode in (*_WIDE, "RGB") and image.format == "PNG"
    if depth > 8 and not (depth == 16 and wide and not image.has_transparency_data):
        raise _refusal(
            path, f"is {image.format} with {depth} bits, mode {image.mode!r}", "8 bits, or 16-bit grey or RGB PNG"
        )
    if depth <= 8 and image.mode not in ("RGB", "L", "1", "P", "RGBA", "LA", "PA", "RGBX"):
        raise _refusal(path, f"has mode {image.mode!r}", "8-bit RGB or grey")


def _depth(image: Image.Image) -> int:
    """Bits of one channel as stored; Pillow's mode hides 16-bit RGB."""
    if image.format == "PNG":
        return _png_depth(image)
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    return 8


def _png_depth(image: Image.Image) -> int:
    """The byte that follows signature, length, name, width and height of the first chunk."""
    with open(image.filename, "rb") as file:
        return struct.unpack_from("B", file.read(25), 24)[0]


def _narrowed(image: Image.Image, path: Path) -> np.ndarray:
    """A 16-bit PNG in 8 bits: value / 257, rounded."""
    if image.mode != "RGB":
        wide = np.asarray(image).astype(np.uint32)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    # Pillow keeps the first byte of each big-endian pair; told that pairs are little-endian, it keeps the second
    high = np.asarray(image).astype(np.uint32)
    with Image.open(path, formats=("PNG",)) as again:
        again.tile = [(*tile[:3], "RGB;16L") for tile in again.tile]
        low = np.asarray(again)
    return ((high * 256 + low + 128) // 257).astype(np.uint8)


def _refusal(path: Path, what: str, wanted: str) -> SettingsError:
    return SettingsError(f"image {path} {what}: {wanted} is wanted")


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file that no decoder takes, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if path.is_file() and path.stat().st_size == 0:
        return "is empty (0 bytes); an image is wanted"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is no image of a known kind; PNG, JPEG, BMP, TIFF, WebP or GIF is wanted"
    return f"is broken ({str(error).splitlines()[0] if str(error) else type(error).__name__}); a whole image is wanted"
