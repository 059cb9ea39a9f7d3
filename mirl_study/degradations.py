"""What the degradations do: Gaussian noise, rain streaks, haze, and the way through a social network.

Noise is drawn on the fly, batch by batch, in torch; the others are drawn once, image by image, in numpy.
Every function is a pure function of its arguments and the random generator handed in.
"""

import io
from dataclasses import dataclass
from math import ceil, log

import numpy as np
import torch
from PIL import Image
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


@dataclass(frozen=True)
class UploadRanges:
    """Ranges (low, high) that the way through a social network is drawn from, uniformly.

    Set by one photograph that was posted to three networks (published with Wu et al., "Robust Image Forgery Detection
    over Online Social Network Shared Images", CVPR 2022). By their quantisation tables Facebook encodes with quality 92
    and 4:2:0, Weibo with 85 and 4:4:4 (and prints its mark into a corner); WeChat's version has the error of about 88.
    Against the original they have 40.4, 40.4 (33.1 with the mark) and 41.0 dB.

    quality: of an encoding, on libjpeg's scale, both ends included; the interval that the code of that paper names.
    posts: how many times it is posted, saved and posted again, both ends included.
    limit: the longest side that a network lets through, as a share of the image's own; from 1 on nothing is resized.
        Networks state it in pixels (2048, say, for a photograph of 4000), which small images would never meet.
    """

    quality: tuple[int, int] = (71, 95)
    posts: tuple[int, int] = (1, 2)
    limit: tuple[float, float] = (0.5, 1.5)


def jpeg(image: np.ndarray, quality: int, subsampling: str = "4:2:0") -> np.ndarray:
    """Encode an image as JPEG, and decode it.

    Args:
        image: (H, W, 3) float32 in [0, 1].
        quality: on libjpeg's scale, 1 to 100.
        subsampling: of the colours: "4:2:0" (half as many each way) or "4:4:4" (none).

    Returns:
        (H, W, 3) float32 in [0, 1], on the grid of 8 bit.
    """
    return _from_picture(_encoded(_to_picture(image), quality, subsampling))


def social_network(image: np.ndarray, rng: np.random.Generator, ranges: UploadRanges = UploadRanges()) -> np.ndarray:
    """Post an image to a social network and fetch it back: resized to a limit, encoded as JPEG, shown at its old size.

    Pictures larger than the limit are shrunk (Lanczos) and, after the last encoding, brought back to their size
    (bicubic, as a viewer does). So the clean image itself is the target, and the lost detail is a part of the damage.
    Colours are stored at half the resolution (4:2:0), the usual and the harsher way.

    Args:
        image: (H, W, 3) float32 in [0, 1].
        rng: source of every draw.
        ranges: what is drawn from.

    Returns:
        (H, W, 3) float32 in [0, 1], on the grid of 8 bit, as large as `image`.
    """
    limit, posts = rng.uniform(*ranges.limit), rng.integers(*ranges.posts, endpoint=True)
    picture = _to_picture(image)
    size = picture.size
    if limit < 1:
        small = tuple(max(1, round(side * limit)) for side in size)
        picture = picture.resize(small, Image.Resampling.LANCZOS)
    for quality in rng.integers(*ranges.quality, size=posts, endpoint=True):
        picture = _encoded(picture, int(quality))
    return _from_picture(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))


def _encoded(picture: Image.Image, quality: int, subsampling: str = "4:2:0") -> Image.Image:
    """The picture after one encoding as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")


def _to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(image * GREY).astype(np.uint8))


def _from_picture(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / np.float32(GREY)
