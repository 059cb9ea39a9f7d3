import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mirl_study import build_network
from mirl_study.evaluation import psnr, restore, ssim


def images(height, width, noise, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * width)
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
    clean = (ramp * torch.rand(1, 3, 1, 1, generator=generator)).to(dtype)
    return clean, (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 1).to(dtype)


@pytest.mark.parametrize("size", [(7, 7), (16, 31), (120, 93)])
@pytest.mark.parametrize("noise", [0.001, 0.05, 0.5])
def test_scores_equal_scikit_images(size, noise):
    a, b = images(*size, noise)
    x, y = (t[0].permute(1, 2, 0).numpy() for t in (a, b))
    assert psnr(a, b).item() == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)
    assert ssim(a, b).item() == pytest.approx(structural_similarity(x, y, channel_axis=-1, data_range=1), abs=1e-4)


def test_equal_images_are_perfect_and_batches_are_scored_one_by_one():
    a, b = images(20, 20, 0.1)
    assert psnr(a, a).item() == math.inf and ssim(a, a).item() == pytest.approx(1)
    both = torch.cat((a, b)), torch.cat((b, b))
    assert psnr(*both)[0] == psnr(a, b)[0] and ssim(*both)[1] == pytest.approx(1)


def test_images_below_ssims_window_are_named():
    with pytest.raises(ValueError, match="20x6 pixels"):
        ssim(torch.rand(1, 3, 6, 20), torch.rand(1, 3, 6, 20))


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (17, 23), (30, 9)])
def test_any_size_is_restored_to_its_own_size(size):
    network = build_network("pico")
    given = torch.rand(2, 3, *size)
    restored = restore(network, given)
    assert restored.shape == given.shape and restored.min() >= 0 and restored.max() <= 1
    if size[0] % 8 == size[1] % 8 == 0:
        assert torch.equal(restored, network(given).detach().clamp(0, 1))
    torch.nn.init.zeros_(network.output.weight)
    assert torch.equal(restore(network, given), given)
    assert np.isfinite(restored.numpy()).all()
