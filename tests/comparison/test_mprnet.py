import pytest
import torch
import torch.nn.functional as F

from mirl_study.comparison import build_network
from mirl_study.comparison.losses import charbonnier, pyramid_edges
from mirl_study.comparison.mprnet import DEBLUR, DENOISE, DERAIN, LAPTOP, PICO, MPRNet, MPRNetSettings, Up
from mirl_study.network import describe
from mirl_study.settings import ModelSettings


@pytest.fixture
def network():
    return build_network(ModelSettings("mprnet", size="pico"), 0)


@pytest.mark.parametrize(
    ("settings", "count"),
    [(DERAIN, 3_637_249), (DENOISE, 15_741_025), (DEBLUR, 20_127_073), (MPRNetSettings(), 39_486_145)],
)
def test_every_published_configuration_has_its_published_count(settings, count):
    with torch.device("meta"):
        table = describe(MPRNet(settings))
    assert table["size"].sum() == count
    assert set(table.kind) == {"convolution", "output", "slope"}
    assert table["size"][table.kind == "slope"].sum() == 1, "one slope for all"


@pytest.mark.parametrize("settings", [LAPTOP, PICO])
def test_all_of_it_takes_part(settings):
    images, idle = torch.rand(2, 3, 16, 24), []
    for _ in range(8):  # by chance, a gate with one or two hidden units can begin dead
        network = MPRNet(settings)
        stages = network.stages(images)
        assert [stage.shape for stage in stages] == [images.shape] * 3
        assert torch.equal(network(images), stages[-1])
        network.loss(images, torch.rand_like(images), 0, 1).backward()
        idle.append({name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()})
    assert set.intersection(*idle) == set()


def test_the_first_stage_sees_halves_alone_and_the_others_the_whole_image(network):
    images = torch.rand(1, 3, 16, 16, dtype=torch.double)
    changed = images.clone()
    changed[..., :8, :] = torch.rand(1, 3, 8, 16, dtype=torch.double)
    before, after = network.double().stages(images), network.stages(changed)
    bottom = [not torch.equal(one[..., 8:, :], other[..., 8:, :]) for one, other in zip(before, after, strict=True)]
    assert bottom == [False, True, True]
    assert not torch.equal(before[0][..., :8, :], after[0][..., :8, :])


def test_the_first_encoder_sees_quarters(network):
    seen = []
    network.encoder1.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    network.encoder2.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    network(torch.rand(2, 3, 32, 48))
    assert seen == [(8, 4, 16, 24), (4, 4, 16, 48)]


def test_a_convolution_before_the_interpolation_is_one_after_it():
    up, x = Up(6, 4).double(), torch.rand(2, 6, 5, 7, dtype=torch.double)
    assert torch.allclose(up(x), up.conv(F.interpolate(x, scale_factor=2, mode="bilinear")))


def test_the_loss_of_a_perfect_restoration_is_what_charbonnier_leaves(network):
    images = torch.rand(1, 3, 16, 16)
    network.stages = lambda degraded: (degraded,) * 3
    assert float(network.loss(images, images, 0, 1)) == pytest.approx(3 * 1e-3 * 1.05)
    flat = torch.full_like(images, 0.2)  # no edges but at the border
    expected = 3 * (charbonnier(flat) + 0.05 * charbonnier(pyramid_edges(flat)))
    assert (
        float(network.loss(images, images - flat, 0, 1))
        == pytest.approx(float(expected))
        == pytest.approx(0.6, rel=0.01)
    )
