"""Our social network beside three real ones: one photograph, its original and what they made of it."""

import io

import numpy as np
import pytest
from PIL import Image

from mirl_study.degradations import UploadRanges, jpeg, social_network

MEASURED = {"facebook": 40.4, "wechat": 41.0, "weibo": 33.1}  # dB, against the original
MARK = np.s_[520:, 490:]  # where Weibo prints the name of who posted


@pytest.fixture(scope="module")
def photograph(shared_data) -> dict[str, Image.Image]:
    kinds = {"original": "tif", "facebook": "jpg", "wechat": "jpg", "weibo": "jpg"}
    return {name: Image.open(shared_data / "OSN" / f"test_01_{name}.{kind}") for name, kind in kinds.items()}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def psnr(image: np.ndarray, clean: np.ndarray, where=np.s_[:]) -> float:
    return float(-10 * np.log10(np.mean((image.astype(float) - clean)[where] ** 2)))


def tables(quality: int) -> dict[int, list[int]]:
    """Quantisation tables of libjpeg at this quality."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    return {number: list(table) for number, table in Image.open(file).quantization.items()}


@pytest.mark.parametrize(("network", "quality", "colour"), [("facebook", 92, (2, 2)), ("weibo", 85, (1, 1))])
def test_quality_and_subsampling_are_read_from_the_files(photograph, network, quality, colour):
    picture = photograph[network]
    assert {number: list(table) for number, table in picture.quantization.items()} == tables(quality)
    assert picture.layer[0][1:3] == colour
    low, high = UploadRanges().quality
    assert low <= quality <= high


def test_our_encoding_does_what_the_networks_did(photograph):
    clean = pixels(photograph["original"])
    assert psnr(jpeg(clean, 92), clean) == pytest.approx(psnr(pixels(photograph["facebook"]), clean), abs=0.15)
    weibo, ours = pixels(photograph["weibo"]), jpeg(clean, 85, "4:4:4")
    outside = np.ones(clean.shape[:2], bool)
    outside[MARK] = False
    assert np.array_equal(weibo[outside], ours[outside]), "outside its mark, Weibo's version is one encoding"
    assert psnr(weibo, clean, outside) == pytest.approx(40.36, abs=0.01)


def test_our_range_covers_what_was_measured(photograph):
    clean, ranges = pixels(photograph["original"]), UploadRanges()

    def posted(end: int, limit: float) -> float:
        quality, posts = ranges.quality[end], ranges.posts[1 - end]
        only = UploadRanges((quality, quality), (posts, posts), (limit, limit))
        return psnr(social_network(clean, np.random.default_rng(0), only), clean)

    worst, best = posted(0, ranges.limit[0]), posted(1, ranges.limit[1])
    for network, measured in MEASURED.items():
        assert psnr(pixels(photograph[network]), clean) == pytest.approx(measured, abs=0.06)
        assert worst < measured < best
    assert posted(0, 1) == pytest.approx(37, abs=0.5) and best == pytest.approx(41.6, abs=0.1)  # nothing is resized
    assert 31 < worst < 32
