import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirl_study.comparison.losses import charbonnier, neighbour_edges, pyramid_edges

EDGES = [pyramid_edges, neighbour_edges]
sizes = st.integers(3, 9).map(lambda half: 2 * half)


def draw(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 2, 3, height, width, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("edges", EDGES)
@given(seed=st.integers(0, 99), height=sizes, width=sizes, factor=st.floats(-3, 3))
def test_edges_are_linear(edges, seed, height, width, factor):
    one, other = draw(seed, height, width)
    assert torch.allclose(edges(one - factor * other), edges(one) - factor * edges(other))


@pytest.mark.parametrize("edges", EDGES)
def test_flat_and_evenly_rising_images_have_no_edges(edges):
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    inside = (..., slice(5, -5), slice(5, -5))
    for image in (torch.full_like(rows, 0.7), 0.02 * rows - 0.03 * columns):
        assert edges(image[None, None])[inside].abs().max() < 1e-5
    step = (columns >= 12).float()
    assert edges(step[None, None])[inside].abs().max() > 0.1


def test_edges_of_a_single_point():
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    found = neighbour_edges(point)[0, 0]
    assert found[4, 4] == pytest.approx(8) and found[3:6, 3:6].sum().abs() < 1e-5 and found[0].abs().max() < 1e-6
    # 0.4^2 of it stays in the coarser level, which is 4 * 0.4^2 of that again when it has been blown up
    assert float(pyramid_edges(point)[0, 0, 4, 4]) == pytest.approx(1 - 4 * sum(k**2 for k in (0.05, 0.4, 0.05)) ** 2)


def test_charbonnier_is_an_absolute_error_that_is_smooth_at_zero():
    assert float(charbonnier(torch.full((2, 3), -0.4))) == pytest.approx(0.4, rel=1e-4)
    zero = torch.zeros(4, requires_grad=True)
    loss = charbonnier(zero)
    loss.backward()
    assert float(loss) == pytest.approx(1e-3) and (zero.grad == 0).all()
