"""A weight times the features of every pixel, (..., K) to (..., N), by the library that is faster at it.

MKL has its best instructions for its maker's processors alone. On AMD's, a large product takes less time as a 1x1
convolution, which oneDNN computes; but its call costs some tens of microseconds.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mirl_study.machine import processor_facts

PAYS_FROM = 200_000  # values that enter and leave: with fewer, calling a convolution takes longer than a product
IMAGES = 16  # that the pixels are dealt out to: from so many on torch calls oneDNN with one thread, too
ROWS = 4  # of each of them: oneDNN takes longer for one


def convolved_from(facts: list[str]) -> float:
    """Returns from how many values on products are convolved, on a processor with these facts."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return PAYS_FROM if both and any("AuthenticAMD" in fact for fact in facts) else math.inf


CONVOLVED_FROM = convolved_from(processor_facts())


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x @ weight.T, for x (..., K) and weight (N, K).

    Its derivatives by x are ``product(gradient, weight.T)``.
    """
    if not _convolved(x, len(weight)):
        return F.linear(x, weight)
    return F.conv2d(_images(x), weight[:, :, None, None]).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def added(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Returns x + product(y, weight), for x (..., N)."""
    if _convolved(y, len(weight)):
        return product(y, weight).add_(x)
    return torch.addmm(_rows(x), _rows(y), weight.T).view_as(x)


def by_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns the derivatives of ``product`` by its weight, (N, K); gradient (..., N), x (..., K)."""
    outputs, inputs = gradient.shape[-1], x.shape[-1]
    if not _convolved(x, outputs):
        return _rows(gradient).T @ _rows(x)
    weight = x.new_empty(outputs, inputs, 1, 1)  # only its shape counts
    images, same, none, wanted = (_images(gradient), _images(x)), [1, 1], [0, 0], [False, True, False]
    _, found, _ = torch.ops.aten.convolution_backward(*images, weight, None, same, none, same, False, none, 1, wanted)
    return found.flatten(1)


def _convolved(x: Tensor, outputs: int) -> bool:
    """Whether a convolution is possible and pays."""
    pixels = math.prod(x.shape[:-1])
    possible = x.device.type == "cpu" and x.dtype is torch.float32 and pixels % (IMAGES * ROWS) == 0
    return possible and pixels * (x.shape[-1] + outputs) >= CONVOLVED_FROM


def _images(x: Tensor) -> Tensor:
    """The pixels dealt out to images of one size, (B, K, H, W), channels last in memory."""
    return x.reshape(IMAGES, ROWS, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """The pixels one after another, (pixels, K)."""
    return x.reshape(-1, x.shape[-1])
