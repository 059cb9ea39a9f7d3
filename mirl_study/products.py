"""A weight times the features of every pixel, (B, H, W, K) to (B, H, W, N), by the library that is faster at it.

MKL knows the best instructions of its maker's processors alone. On others a 1x1 convolution (oneDNN) takes half the
time of a matrix product, but its call costs some tens of microseconds.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mirl_study.machine import processor_facts

PAYS_FROM = 200_000  # values that enter and leave: with fewer, calling a convolution takes longer than a product
TAKEN_FOR = (16, 4)  # images, rows: from so many images on torch calls oneDNN even with one thread; one row is slow


def least(facts: list[str]) -> float:
    """Returns from how many values on this torch should convolve, on a processor with these facts."""
    abroad = torch.backends.mkl.is_available() and not any("GenuineIntel" in fact for fact in facts)
    return PAYS_FROM if abroad and torch.backends.mkldnn.is_available() else math.inf


LEAST = least(processor_facts())


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x @ weight.T, for x (B, H, W, K) and weight (N, K).

    Its derivatives by x are ``product(gradient, weight.T)``.
    """
    if not _convolved(x, len(weight)):
        return F.linear(x, weight)
    return F.conv2d(_images(x), weight[:, :, None, None]).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def added(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Returns x + product(y, weight), for x (B, H, W, N)."""
    if _convolved(y, len(weight)):
        return product(y, weight).add_(x)
    return torch.addmm(_rows(x), _rows(y), weight.T).view_as(x)


def by_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns the derivatives of ``product`` by its weight, (N, K); gradient (B, H, W, N), x (B, H, W, K)."""
    outputs, inputs = gradient.shape[-1], x.shape[-1]
    if not _convolved(x, outputs):
        return _rows(gradient).T @ _rows(x)
    weight = x.new_empty(outputs, inputs, 1, 1)  # only its shape counts
    images, same, none, wanted = (_images(gradient), _images(x)), [1, 1], [0, 0], [False, True, False]
    _, found, _ = torch.ops.aten.convolution_backward(*images, weight, None, same, none, same, False, none, 1, wanted)
    return found.flatten(1)


def _convolved(x: Tensor, outputs: int) -> bool:
    """Whether a convolution pays."""
    possible = x.device.type == "cpu" and x.dtype is torch.float32
    return possible and x.numel() // x.shape[-1] * (x.shape[-1] + outputs) >= LEAST


def _images(x: Tensor) -> Tensor:
    """The pixels as images of other sizes, if their number allows, (B, K, H, W), channels last in memory."""
    images, rows = TAKEN_FOR
    if x.numel() // x.shape[-1] % (images * rows) == 0:
        x = x.reshape(images, rows, -1, x.shape[-1])
    return x.permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """The pixels one after another, (pixels, K)."""
    return x.reshape(-1, x.shape[-1])
