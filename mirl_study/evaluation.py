"""PSNR and SSIM image by image, on whole images of any size."""

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.data import Bank

WINDOW = 7  # SSIM's window, scikit-image's default


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio for a data range of 1.

    Args:
        a, b: images (N, C, H, W) in [0, 1].

    Returns:
        (N,) float64, in dB; infinite for equal images.
    """
    return -10 * (a - b).square().flatten(1).mean(1, dtype=torch.float64).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) as scikit-image has it by default, for a data range of 1.

    The window is 7x7 and uniform, the covariance that of a sample.

    Args:
        a, b: images (N, C, H, W) in [0, 1], at least 7x7 pixels.

    Returns:
        (N,) float64, the mean over channels and all windows that lie inside the image.

    Raises:
        ValueError: for images smaller than the window.
    """
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"images of {a.shape[-1]}x{a.shape[-2]} pixels are smaller than SSIM's window of {WINDOW}x{WINDOW}"
        )
    c1, c2 = 0.01**2, 0.03**2
    scores = []
    for one, other in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True):  # channel by channel: that fits into caches
        one, other = one - 0.5, other - 0.5  # so that small variances are no differences of large numbers
        sums = torch.stack((one, other, one * one + other * other, one * other))
        mean_a, mean_b, squares, product = _windows(sums).div_(WINDOW**2)
        sample = WINDOW**2 / (WINDOW**2 - 1)
        covariance = product.addcmul_(mean_a, mean_b, value=-1).mul_(2 * sample).add_(c2)
        variances = squares.addcmul_(mean_a, mean_a, value=-1).addcmul_(mean_b, mean_b, value=-1).mul_(sample).add_(c2)
        mean_a, mean_b = mean_a.add_(0.5), mean_b.add_(0.5)
        luminance = (mean_a * mean_b).mul_(2).add_(c1)
        brightness = mean_a.square_().addcmul_(mean_b, mean_b).add_(c1)
        value = luminance.mul_(covariance).div_(brightness.mul_(variances))
        scores.append(value.mean(dtype=torch.float64))
    return torch.stack(scores).view(a.shape[:2]).mean(1)


def _windows(planes: Tensor) -> Tensor:
    """Sums of (C, H, W) over all windows of 7x7 that lie inside, as 2 + 2 + 2 + 1 rows, then columns."""
    for axis in (1, 2):
        size = planes.shape[axis]
        two = planes.narrow(axis, 0, size - 1) + planes.narrow(axis, 1, size - 1)
        seven = two.narrow(axis, 0, size - 6) + two.narrow(axis, 2, size - 6)
        planes = seven.add_(two.narrow(axis, 4, size - 6)).add_(planes.narrow(axis, 6, size - 6))
    return planes


@torch.no_grad()
def restore(network: nn.Module, images: Tensor) -> Tensor:
    """Restores whole images of any size.

    They are reflected at the right and bottom up to multiples of 8, or of what the network says (``multiple``),
    restored, cut back and clipped. An edge too short to reflect is repeated.

    Args:
        network: a restoration network.
        images: (N, 3, H, W) in [0, 1], at least 8x8 pixels.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    height, width = images.shape[-2:]
    multiple = getattr(network, "multiple", 8)
    right, bottom = -width % multiple, -height % multiple
    mode = "reflect" if right < width and bottom < height else "replicate"
    padded = F.pad(images, (0, right, 0, bottom), mode=mode)
    return network(padded)[..., :height, :width].clamp(0, 1)


@torch.no_grad()
def evaluate(network: nn.Module, bank: Bank) -> pd.DataFrame:
    """Scores every image of every task.

    Args:
        network: on the bank's device.
        bank: test images.

    Returns:
        A row an image: ``task``, ``name``, ``psnr`` (dB), ``ssim``, and the same of the degraded input itself:
        ``input_psnr``, ``input_ssim``.
    """
    network.eval()
    rows = []
    for sample in bank.samples():
        both = torch.cat((restore(network, sample.degraded), sample.degraded))
        target = sample.target.expand_as(both)
        (ours, given), (our_ssim, given_ssim) = psnr(both, target).tolist(), ssim(both, target).tolist()
        rows.append((sample.task, sample.name, ours, our_ssim, given, given_ssim))
    return pd.DataFrame(rows, columns=["task", "name", "psnr", "ssim", "input_psnr", "input_ssim"])
