"""Physics of the three degradations: Gaussian noise, rain streaks, haze.

Noise is drawn on the fly, batch by batch, in torch; rain and haze are drawn once, image by image, in numpy.
Every function is a pure function of its arguments and the random generator handed in.
"""

from dataclasses import dataclass
from math import ceil, log

import numpy as np
import torch
from scipy import ndimage, signal

QUANTISE = ("round", "truncate", "none")
GREY = 255.0
# A streak fainter than this disappears when the image is stored in 8 bits.
FAINTEST = 0.5 / GREY
# Shape of the gamma distribution of brightness: many faint streaks, a few bright ones.
RAIN_SHAPE = 1.5


def gaussian_noise(
    images: torch.Tensor, sigma: torch.Tensor, generator: torch.Generator, quantise: str = "round"
) -> torch.Tensor:
    """Add white Gaussian noise of a given strength to each image, clip, and store as 8 bit would.

    Args:
        images: (N, C, H, W) float32 in [0, 1].
        sigma: (N,) standard deviation of the noise for each image, in grey levels 0..255.
        generator: source of the noise; one on the CPU gives the same noise for images on any device.
        quantise: "round" to the nearest of 256 grey levels; "truncate" to the level below, which is what a cast to
            uint8 does and darkens the image by half a level on average; "none" keeps the fractions.

    Returns:
        (N, C, H, W) float32 in [0, 1], on the device of `images`.

    Raises:
        ValueError: `quantise` is none of the three, or `sigma` does not hold one value an image.
    """
    if quantise not in QUANTISE:
        raise ValueError(f"quantise={quantise!r}: must be one of {', '.join(QUANTISE)}")
    if sigma.shape != images.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}: must be ({len(images)},), one value an image")
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
    strength = sigma.to(images.device, images.dtype).view(-1, 1, 1, 1)
    grey = noise.mul_(strength).add_(images, alpha=GREY).clamp_(0, GREY)
    if quantise == "round":
        grey.round_()
    elif quantise == "truncate":
        grey.floor_()
    return grey.div_(GREY)


@dataclass(frozen=True)
class RainRanges:
    """Ranges (low, high) that a rain layer is drawn from, uniformly unless said otherwise.

    angle: direction of the streaks from the vertical, degrees.
    spread: half-width of the deviation of each kind of streak from that direction, degrees (one number).
    kinds: how many kinds of streak (length, width) share the layer, both ends included.
    length: of a streak, pixels, log-uniform.
    width: standard deviation of a streak's profile, pixels.
    untouched: share of pixels that no streak reaches.
    strength: mean brightness added in the middle of a streak, in [0, 1].
    """

    angle: tuple[float, float] = (-30.0, 30.0)
    spread: float = 2.0
    kinds: tuple[int, int] = (2, 4)
    length: tuple[float, float] = (16.0, 100.0)
    width: tuple[float, float] = (0.4, 0.9)
    untouched: tuple[float, float] = (0.5, 0.85)
    strength: tuple[float, float] = (0.06, 0.3)


def streak_kernel(length: float, width: float, angle: float) -> np.ndarray:
    """Draw one streak: a straight line with a Gaussian profile across and ends that fade out.

    Args:
        length: pixels from end to end.
        width: standard deviation across the line, pixels.
        angle: degrees from the vertical; positive leans the upper end to the right.

    Returns:
        (K, K) float64 in [0, 1], K odd, peak in the middle.
    """
    half = ceil(length / 2 + 3 * width)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    sin, cos = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    along, across = x * sin - y * cos, x * cos + y * sin
    fade = np.cos(np.pi * np.clip(along / length, -0.5, 0.5))
    return fade * np.exp(-0.5 * (across / width) ** 2)


def rain_layer(height: int, width: int, rng: np.random.Generator, ranges: RainRanges = RainRanges()) -> np.ndarray:
    """Draw the brightness that rain adds to a grey scene.

    Streaks of a few kinds fall at random places with gamma-distributed brightness. How many is set by the
    uncovered share of a Boolean model, exp(-streaks per pixel x pixels per streak) (Chiu, Stoyan, Kendall, Mecke,
    "Stochastic Geometry and its Applications", 3rd ed., section 3.1).

    Args:
        height: of the layer, pixels.
        width: of the layer, pixels.
        rng: source of every draw.
        ranges: what is drawn from.

    Returns:
        (H, W) float32 in [0, 1], exactly 0 where no streak reaches.
    """
    angle, strength = rng.uniform(*ranges.angle), rng.uniform(*ranges.strength)
    kinds = rng.integers(*ranges.kinds, endpoint=True)
    covered = -log(rng.uniform(*ranges.untouched)) / kinds
    layer = np.zeros((height, width))
    for _ in range(kinds):
        length = np.exp(rng.uniform(*np.log(ranges.length)))
        tilt = angle + rng.uniform(-ranges.spread, ranges.spread)
        kernel = streak_kernel(length, rng.uniform(*ranges.width), tilt)
        # Seeds also lie outside the image, so that its border is as wet as its middle.
        seeds = np.zeros((height + len(kernel) - 1, width + len(kernel) - 1))
        count = rng.poisson(covered / (kernel * strength > FAINTEST).sum() * seeds.size)
        brightness = rng.gamma(RAIN_SHAPE, strength / RAIN_SHAPE, size=count)
        np.add.at(seeds.reshape(-1), rng.integers(seeds.size, size=count), brightness)
        layer += signal.fftconvolve(seeds, kernel, mode="valid")
    # The threshold also takes away what the Fourier transform leaves where nothing fell.
    return np.where(layer > FAINTEST, np.minimum(layer, 1), 0).astype(np.float32)


def rain(image: np.ndarray, rng: np.random.Generator, ranges: RainRanges = RainRanges()) -> np.ndarray:
    """Let it rain: add one layer of streaks, the same to R, G and B, and clip.

    The additive model is that of the "light rain" benchmarks (Yang et al., "Deep Joint Rain Detection and Removal
    from a Single Image", CVPR 2017).

    Args:
        image: (H, W, 3) float32 in [0, 1].
        rng: source of every draw.
        ranges: what is drawn from.

    Returns:
        (H, W, 3) float32 in [0, 1], nowhere darker than `image`.
    """
    layer = rain_layer(*image.shape[:2], rng, ranges)
    return np.minimum(image + layer[..., None], 1).astype(np.float32)


@dataclass(frozen=True)
class HazeRanges:
    """Ranges (low, high) that haze is drawn from, uniformly.

    airlight: A, brightness of the haze itself, in [0, 1], grey.
    beta: scattering coefficient, for one unit of depth; the farthest point is at depth 1.
    horizon: where the ground ends, as a share of the height, counted from the top.
    nearness: height of the camera over the ground in units of the picture's; small = the ground in front is near.
    relief: standard deviation of the logarithm of depth around the plain ground and sky (one number).
    """

    airlight: tuple[float, float] = (0.75, 1.0)
    beta: tuple[float, float] = (0.35, 1.0)
    horizon: tuple[float, float] = (0.1, 0.5)
    nearness: tuple[float, float] = (0.15, 0.6)
    relief: float = 0.12


def depth_map(height: int, width: int, rng: np.random.Generator, ranges: HazeRanges = HazeRanges()) -> np.ndarray:
    """Draw a depth map a photograph could have: far above the horizon, nearer and nearer below, with smooth relief.

    Below the horizon the depth is that of flat ground seen by a pinhole camera, inversely proportional to the number
    of rows under the horizon.

    Args:
        height: of the map, pixels.
        width: of the map, pixels.
        rng: source of every draw.
        ranges: what is drawn from.

    Returns:
        (H, W) float32 in (0, 1], 1 = farthest.
    """
    horizon, nearness = rng.uniform(*ranges.horizon), rng.uniform(*ranges.nearness)
    below = np.maximum(np.linspace(0, 1, height) - horizon, 0)
    relief = ndimage.gaussian_filter(rng.standard_normal((height, width)), min(height, width) / 5, mode="reflect")
    relief *= ranges.relief / max(relief.std(), np.finfo(float).tiny)
    depth = (nearness / (below + nearness))[:, None] * np.exp(relief)
    return (depth / depth.max()).astype(np.float32)


def scatter(image: np.ndarray, depth: np.ndarray, airlight: float, beta: float) -> np.ndarray:
    """Look at a scene through haze: I = J t + A (1 - t) with t = exp(-beta d).

    Koschmieder's law as used by Narasimhan and Nayar, "Vision and the Atmosphere", IJCV 2002. It is applied to the
    stored (gamma-encoded) values, as the common dehazing benchmarks do.

    Args:
        image: J, (H, W, 3) float32 in [0, 1].
        depth: d, (H, W), not negative.
        airlight: A, in [0, 1].
        beta: scattering coefficient, one over the unit of depth.

    Returns:
        I, (H, W, 3) float32 in [0, 1].
    """
    t = np.exp(-beta * depth)[..., None]
    return (image * t + airlight * (1 - t)).astype(np.float32)


def haze(image: np.ndarray, rng: np.random.Generator, ranges: HazeRanges = HazeRanges()) -> np.ndarray:
    """Lay haze of random depth, density and brightness over an image.

    Args:
        image: (H, W, 3) float32 in [0, 1].
        rng: source of every draw.
        ranges: what is drawn from.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    depth = depth_map(*image.shape[:2], rng, ranges)
    return scatter(image, depth, rng.uniform(*ranges.airlight), rng.uniform(*ranges.beta))
