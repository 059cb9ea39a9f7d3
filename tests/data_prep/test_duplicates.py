"""The same photograph is recognised through common changes; others, however similar, are not."""

import functools
import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_prep import duplicates


@functools.cache
def photograph(seed: int, height: int = 96, width: int = 144) -> np.ndarray:
    """Random shapes of all sizes, with the 1/f spectrum that photographs have; (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])[..., None]
    noise = np.fft.fft2(rng.normal(size=(height, width, 3)), axes=(0, 1)) / np.maximum(frequency, 1 / width)
    shapes = np.fft.ifft2(noise, axes=(0, 1)).real @ (np.eye(3) + 1.5)  # the colours are much alike
    image = np.clip(128 + 45 * (shapes - shapes.mean()) / shapes.std(), 0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


def encoded(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def found(*images: np.ndarray) -> list[tuple[int, int]]:
    pairs, _, _ = duplicates.near_duplicates(np.stack([duplicates.thumbnail(image) for image in images]))
    return [tuple(pair) for pair in pairs.tolist()]


SAME = {
    "jpeg": lambda image: encoded(image, 75),
    "poor jpeg": lambda image: encoded(image, 10),
    "smaller": lambda image: image.resize((round(image.width * 0.9), round(image.height * 0.9))),
    "half": lambda image: image.reduce(2),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "stretched": lambda image: image.resize((image.width, round(image.height * 1.1))),
    "brighter": lambda image: image.point(lambda level: min(level + 2, 255)),
    "hazy": lambda image: image.point(lambda level: round(level * 0.3 + 154)),
    "gamma": lambda image: image.point(lambda level: round(255 * (level / 255) ** 0.6)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "a pixel less": lambda image: image.crop((0, 0, image.width - 1, image.height - 1)),
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_photograph_is_found_through(change):
    for seed in range(5):
        image = photograph(seed)
        changed = np.asarray(SAME[change](Image.fromarray(image)).convert("RGB"))
        assert found(photograph(100), image, photograph(101), changed) == [(1, 3)]


LIMITS = {  # not found, and said so
    "mirrored": lambda image: image[:, ::-1],
    "turned": lambda image: np.rot90(image).copy(),
    "cropped by a quarter": lambda image: image[12:-12, 18:-18],
}


@pytest.mark.parametrize("change", LIMITS)
def test_limits(change):
    image = photograph(0)
    assert found(image, np.ascontiguousarray(LIMITS[change](image))) == []


def test_similar_images_are_no_duplicates():
    texture = photograph(0, 200, 300)
    assert found(texture[:96, :144], texture[:96, 72:216], texture[48:144, :144]) == []
    light = np.linspace(0, 150, 144)[None, :, None]  # the same broad light over different things
    lit = [np.clip(photograph(seed) * 0.4 + light, 0, 255).astype(np.uint8) for seed in range(10)]
    assert found(*lit) == []


def test_flat_images_are_not_compared():
    black, white = np.zeros((20, 30, 3), np.uint8), np.full((50, 50, 3), 255, np.uint8)
    assert found(black, white, black, photograph(0), photograph(0)) == [(3, 4)]
    assert found(black) == [] and duplicates.correlation(*[duplicates.thumbnail(black)] * 2) == 0
    assert [len(part) for part in duplicates.near_duplicates(np.empty((0, 64, 64), np.uint8))] == [0, 0, 0]


def test_blocks_do_not_change_what_is_found(monkeypatch):
    images = [photograph(seed) for seed in (0, 1, 0, 2, 1, 0)]
    wanted = [(0, 2), (0, 5), (1, 4), (2, 5)]
    assert sorted(found(*images)) == wanted
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    assert sorted(found(*images)) == wanted


def test_scenes_are_chains_of_pairs():
    number = duplicates.scenes(5, np.array([[0, 3], [3, 4]]))
    assert number[0] == number[3] == number[4] and len(set(number)) == 3
    assert len(set(duplicates.scenes(3, np.empty((0, 2), int)))) == 3


def test_psnr():
    image = np.full((4, 6, 3), 100, np.uint8)
    assert duplicates.psnr(image + 2, image) == pytest.approx(20 * np.log10(255 / 2))
    assert duplicates.psnr(image, image + 2) == duplicates.psnr(image + 2, image)
    assert duplicates.psnr_at_one_size(image, image) == np.inf
    larger = np.full((8, 12, 3), 105, np.uint8)
    assert duplicates.psnr_at_one_size(image, larger) == pytest.approx(20 * np.log10(255 / 5))
    assert duplicates.psnr_at_one_size(larger, image) == duplicates.psnr_at_one_size(image, larger)
