"""Restored images, and how far they are from what they should be."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mirl_study.figures.style import STYLE
from mirl_study.trained import Restoration

ERROR = 0.2  # of a range of 1: where the colours of the error maps end


def restoration_panels(restorations: Sequence[Restoration], crop: int = 96) -> Figure:
    """One test image a task: degraded, restored by each network, and the target; below each its error.

    Args:
        restorations: what ``trained.restorations`` returned.
        crop: height and width, in pixels, of the middle part that is shown; PSNR and SSIM are of the whole image.

    Returns:
        Two lines a task: the images with their scores, and the mean over colours of the absolute difference to the
        target.
    """
    columns = list(restorations[0].images)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        wide = 14 / len(columns)
        figure = Figure(figsize=(15, (1.9 * wide + 0.7) * len(restorations) + 0.3), dpi=90, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        axes = figure.subplots(2 * len(restorations), len(columns), squeeze=False)
        for place, item in enumerate(restorations):
            for axis, error, label in zip(axes[2 * place], axes[2 * place + 1], columns, strict=True):
                axis.imshow(_shown(item.images[label], crop), interpolation="none")
                axis.set_title(label + _scores(item, label), fontsize=11, linespacing=1.1)
                apart = (item.images[label] - item.images["target"]).abs().mean(0, keepdim=True)
                seen = error.imshow(_middle(apart, crop)[0], cmap="cividis", vmin=0, vmax=ERROR, interpolation="none")
                for part in (axis, error):
                    part.set_xticks([])
                    part.set_yticks([])
                error.set_visible(label != "target")
            axes[2 * place, 0].set_ylabel(item.task)
            axes[2 * place + 1, 0].set_ylabel("error")
        bar = figure.colorbar(seen, ax=axes, location="right", aspect=30, fraction=0.02, pad=0.01, extend="max")
        bar.set_label("absolute error (mean over colours)")
    return figure


def _scores(item: Restoration, label: str) -> str:
    """What stands below a panel's name."""
    return f"\n{item.psnr[label]:.2f} dB, {item.ssim[label]:.3f}" if label in item.psnr else f"\n({item.name})"


def _middle(image: Tensor, crop: int) -> np.ndarray:
    """The middle of a (C, H, W) image."""
    height, width = image.shape[-2:]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    return image[:, top : top + crop, left : left + crop].numpy()


def _shown(image: Tensor, crop: int) -> np.ndarray:
    """The middle of a (3, H, W) image, as 8-bit (height, width, 3)."""
    return (_middle(image.clamp(0, 1), crop) * 255).round().astype(np.uint8).transpose(1, 2, 0)
