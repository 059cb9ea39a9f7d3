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
    return -10 * (a.double() - b.double()).square().flatten(1).mean(1).log10()


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
    a, b = a.double(), b.double()
    means = F.avg_pool2d(torch.cat((a, b, a * a, b * b, a * b)), WINDOW, stride=1)
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_a, var_b, cov = (sample * t for t in (square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b))
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.flatten(1).mean(1)


@torch.no_grad()
def restore(network: nn.Module, images: Tensor) -> Tensor:
    """Restores whole images of any size.

    They are reflected at the right and bottom up to multiples of 8, restored, cut back and clipped.

    Args:
        network: a restoration network.
        images: (N, 3, H, W) in [0, 1], at least 8x8 pixels.

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="reflect")
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
