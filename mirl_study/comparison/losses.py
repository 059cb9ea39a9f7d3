"""Losses of the compared models that are not the mean absolute error."""

import torch
import torch.nn.functional as F
from torch import Tensor

BINOMIAL = (0.05, 0.25, 0.4, 0.25, 0.05)  # Burt & Adelson's generating kernel, a = 0.4


def charbonnier(difference: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Returns the mean of sqrt(d^2 + epsilon^2): an absolute error that is smooth at zero (Charbonnier et al., 1994).

    Args:
        difference: of any shape, in units of the images.
        epsilon: below it the error counts as a square.
    """
    return (difference.square() + epsilon**2).sqrt().mean()


def pyramid_edges(images: Tensor) -> Tensor:
    """Returns what one level of a Laplacian pyramid leaves out of its coarser one (Burt & Adelson, 1983).

    Linear in the images, so the difference of two images' edges is the edges of their difference.

    Args:
        images: (B, C, H, W); borders are replicated.

    Returns:
        (B, C, H, W); zero where the images are flat.
    """
    coarse = torch.zeros_like(images)
    coarse[..., ::2, ::2] = _blurred(images)[..., ::2, ::2]
    return images - 4 * _blurred(coarse)


def neighbour_edges(images: Tensor) -> Tensor:
    """Returns eight times each pixel less its eight neighbours: the 3x3 Laplacian with diagonals, linear in the images.

    Args:
        images: (B, C, H, W); outside of them is zero.

    Returns:
        (B, C, H, W).
    """
    return 9 * (images - F.avg_pool2d(images, 3, stride=1, padding=1))


def _blurred(images: Tensor) -> Tensor:
    """Rows, then columns, by the binomial kernel."""
    channels = images.shape[1]
    kernel = images.new_tensor(BINOMIAL).expand(channels, 1, 1, -1)
    rows = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=channels)
