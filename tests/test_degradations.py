"""Noise, rain and haze do what their formulas say; a social network's handling is that of its parts."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mirl_study.degradations import (
    HazeRanges,
    RainRanges,
    UploadRanges,
    depth_map,
    gaussian_noise,
    haze,
    jpeg,
    rain,
    rain_layer,
    scatter,
    social_network,
    streak_kernel,
)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greys(level: float, images: int = 1, side: int = 256) -> torch.Tensor:
    return torch.full((images, 3, side, side), level)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(5).random((72, 96, 3), dtype=np.float32)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize(("quantise", "bias"), [("round", 0.0), ("truncate", -0.5), ("none", 0.0)])
def test_noise_has_the_sigma_asked_for_and_the_bias_of_its_quantisation(sigma, quantise, bias):
    # Uniform noise between two grey levels adds a variance of 1/12. At sigma 50 about 1 % of the values is clipped.
    error = 255 * (gaussian_noise(greys(128 / 255), torch.tensor([float(sigma)]), draw(), quantise) - 128 / 255)
    expected = (sigma**2 + (1 / 12 if quantise != "none" else 0)) ** 0.5
    assert error.std().item() == pytest.approx(expected, rel=0.02)
    assert error.mean().item() == pytest.approx(bias, abs=5 * sigma / error.numel() ** 0.5)


def test_noise_has_its_own_sigma_in_each_image():
    noisy = gaussian_noise(greys(0.5, images=3), torch.tensor([0.0, 10.0, 40.0]), draw(), "none")
    assert torch.equal(noisy[0], greys(0.5)[0])
    assert (255 * noisy[1:].std(dim=(1, 2, 3))).tolist() == pytest.approx([10, 40], rel=0.02)


def test_noise_is_clipped_and_on_the_grid_of_8_bit():
    for level in (0.0, 1.0):
        noisy = 255 * gaussian_noise(greys(level, side=32), torch.tensor([50.0]), draw())
        assert noisy.min() >= 0 and noisy.max() <= 255
        assert torch.allclose(noisy, noisy.round(), atol=1e-4)


def test_noise_depends_on_the_generator_alone_and_leaves_its_input():
    images, sigma = greys(0.5, images=2, side=16), torch.tensor([25.0, 25.0])
    first, again, other = (gaussian_noise(images, sigma, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(images, greys(0.5, images=2, side=16))


def test_noise_names_what_is_wrong():
    with pytest.raises(ValueError, match="quantise='floor'.*round, truncate, none"):
        gaussian_noise(greys(0.5, side=8), torch.tensor([25.0]), draw(), "floor")
    with pytest.raises(ValueError, match=r"sigma has shape \(2,\).*\(1,\)"):
        gaussian_noise(greys(0.5, side=8), torch.tensor([25.0, 15.0]), draw())


@pytest.mark.parametrize("seed", range(6))
def test_rain_layer_is_never_negative_and_dry_where_asked(seed):
    ranges = RainRanges(untouched=(0.7, 0.7))
    layer = rain_layer(200, 300, np.random.default_rng(seed), ranges)
    assert layer.shape == (200, 300) and layer.dtype == np.float32
    assert layer.min() == 0 and 0 < layer.max() <= 1
    assert np.mean(layer == 0) == pytest.approx(0.7, abs=0.08)


def test_rain_is_grey_only_brightens_and_clips(image):
    wet = rain(image, np.random.default_rng(3))
    added = wet - image
    assert wet.dtype == np.float32 and wet.max() <= 1 and added.min() >= 0
    free = (wet < 1).all(axis=-1)
    assert np.ptp(added[free], axis=-1).max() < 1e-6
    assert added.max() > 0.02


def test_rain_falls_in_the_direction_asked_for():
    # Wide streaks: finite differences see narrow ones too flat.
    ranges = RainRanges(angle=(20, 20), spread=0.0, width=(2.5, 2.5))
    gy, gx = np.gradient(rain_layer(200, 200, np.random.default_rng(0), ranges))
    # The main direction of the gradients (structure tensor) is across the streaks.
    across = 0.5 * np.degrees(np.arctan2(2 * (gx * gy).sum(), (gx**2 - gy**2).sum()))
    assert across == pytest.approx(20, abs=3)


def test_streak_is_as_long_and_as_wide_as_asked():
    kernel = streak_kernel(length=20, width=1.0, angle=0)
    middle = len(kernel) // 2
    assert kernel[middle, middle] == 1 and kernel.min() >= 0
    assert (kernel[:, middle] > 1e-9).sum() == 19
    assert kernel[middle, middle + 1] == pytest.approx(np.exp(-0.5))


@pytest.mark.parametrize("degrade", [rain, haze, social_network])
def test_what_is_drawn_depends_on_the_seed_alone(degrade, image):
    before = image.copy()
    first, again, other = (degrade(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(image, before)


def test_scatter_shows_the_scene_without_haze_and_the_airlight_behind_much(image):
    depth = np.ones(image.shape[:2])
    assert np.array_equal(scatter(image, depth, 0.8, beta=0), image)
    assert np.array_equal(scatter(image, 0 * depth, 0.8, beta=9), image)
    assert np.allclose(scatter(image, depth, 0.8, beta=50), 0.8)
    assert np.allclose(scatter(image, depth, 0.8, beta=np.log(2)), image / 2 + 0.4)


def test_haze_stays_in_range_and_takes_contrast_away(image):
    for seed in range(10):
        hazy = haze(image, np.random.default_rng(seed))
        assert hazy.dtype == np.float32 and hazy.min() >= 0 and hazy.max() <= 1
        assert hazy.std() < image.std()


def test_depth_is_far_above_and_near_below_and_smooth():
    for seed in range(10):
        depth = depth_map(120, 160, np.random.default_rng(seed))
        assert depth.shape == (120, 160) and depth.min() > 0 and depth.max() == 1
        assert depth[:12].mean() > 1.3 * depth[-12:].mean()
        assert np.abs(np.diff(depth, axis=1)).max() < 0.05


def test_haze_without_range_is_the_formula(image):
    ranges = HazeRanges(airlight=(0.9, 0.9), beta=(0.7, 0.7))
    depth = depth_map(*image.shape[:2], np.random.default_rng(4), ranges)
    assert np.array_equal(haze(image, np.random.default_rng(4), ranges), scatter(image, depth, 0.9, 0.7))


def smooth(height: int = 72, width: int = 96) -> np.ndarray:
    """A photograph of sorts: depth in three colours, which JPEG and resizing can keep."""
    depths = [depth_map(height, width, np.random.default_rng(seed)) for seed in range(3)]
    return np.rint(255 * np.stack(depths, axis=-1)).astype(np.float32) / 255


def error(image: np.ndarray, clean: np.ndarray) -> float:
    return float(np.sqrt(np.mean((image - clean) ** 2)))


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_jpeg_is_that_of_pillow(subsampling, image):
    file = io.BytesIO()
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=80, subsampling=subsampling)
    stored = Image.open(file)
    assert stored.layer[0][1:3] == ((2, 2) if subsampling == "4:2:0" else (1, 1))  # of brightness, in units of colour's
    assert np.array_equal(jpeg(image, 80, subsampling) * 255, np.asarray(stored))


def test_less_quality_and_less_colour_do_more_harm():
    clean = smooth()
    harm = [error(jpeg(clean, quality), clean) for quality in (20, 50, 80, 95)]
    assert harm == sorted(harm, reverse=True) and harm[-1] > 0
    stripes = clean.copy()
    stripes[:, ::2, 0] = 0  # colour that changes from pixel to pixel
    assert error(jpeg(stripes, 90), stripes) > 2 * error(jpeg(stripes, 90, "4:4:4"), stripes)


def test_a_post_without_range_is_one_encoding(image):
    ranges = UploadRanges(quality=(85, 85), posts=(1, 1), limit=(1, 1))
    for seed in range(3):
        assert np.array_equal(social_network(image, np.random.default_rng(seed), ranges), jpeg(image, 85))


def test_posted_twice_is_encoded_twice(image):
    ranges = UploadRanges(quality=(85, 85), posts=(2, 2), limit=(2, 2))
    assert np.array_equal(social_network(image, np.random.default_rng(0), ranges), jpeg(jpeg(image, 85), 85))


def test_an_image_over_the_limit_loses_detail_and_keeps_its_size_and_place():
    stripes = np.zeros((64, 96, 3), np.float32)
    stripes[:, ::2] = 1
    flat = social_network(stripes, np.random.default_rng(0), UploadRanges(limit=(0.5, 0.5)))
    kept = social_network(stripes, np.random.default_rng(0), UploadRanges(limit=(1, 1)))
    assert flat.shape == stripes.shape and flat[8:-8, 8:-8].std() < 0.05 < kept[8:-8, 8:-8].std()
    edge = np.zeros((64, 96, 3), np.float32)
    edge[:, 48:] = 1
    after = social_network(edge, np.random.default_rng(0), UploadRanges(limit=(0.5, 0.5)))
    assert after[:, :44].max() < 0.1 and after[:, 52:].min() > 0.9


def test_posts_are_of_8_bit_and_of_every_strength():
    clean, harm = smooth(49, 67), []
    for seed in range(40):
        posted = social_network(clean, np.random.default_rng(seed))
        assert posted.shape == clean.shape and posted.dtype == np.float32 and posted.min() >= 0 and posted.max() <= 1
        assert np.allclose(posted * 255, np.rint(posted * 255), atol=1e-4)
        harm.append(error(posted, clean))
    assert len(set(harm)) == 40 and min(harm) > 0


def test_both_ends_of_quality_and_posts_are_drawn(monkeypatch, image):
    from mirl_study import degradations

    seen = []
    monkeypatch.setattr(degradations, "_encoded", lambda picture, quality: seen.append(quality) or picture)
    posts = set()
    for seed in range(60):
        before = len(seen)
        social_network(image, np.random.default_rng(seed), UploadRanges(quality=(90, 92)))
        posts.add(len(seen) - before)
    assert set(seen) == {90, 91, 92} and posts == {1, 2}


def test_no_image_is_too_small_to_be_posted():
    for size in ((1, 1), (1, 40), (3, 2)):
        dot = np.full((*size, 3), 0.5, np.float32)
        assert social_network(dot, np.random.default_rng(0), UploadRanges(limit=(0.1, 0.1))).shape == dot.shape
