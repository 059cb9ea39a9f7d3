import pytest
import torch

from mirl_study.comparison import build_network
from mirl_study.comparison.mspfn import LAPTOP, MSPFN, PICO, Cell, Conv, MSPFNSettings
from mirl_study.network import describe
from mirl_study.settings import ModelSettings


def test_it_counts_as_its_authors_layers_do():
    with torch.device("meta"):
        table, lean = (describe(MSPFN(MSPFNSettings(unused=unused))) for unused in (True, False))
    assert table["size"].sum() == 20_995_776
    # a state of c channels has 9 c 4c weights; a forget gate 9 (32 + 1/9) c; c is 256, 128, 64
    idle = sum(36 * c * c + 289 * c for c in (256, 128, 64))
    assert lean["size"].sum() == 20_995_776 - idle
    assert table["size"][table.kind == "unused"].sum() == idle - 448, "and 448 biases"
    assert "unused" not in set(lean.kind)


def test_a_cell_is_one_step_of_a_whole_lstm_from_zeros():
    cell, x = Cell(3, 5, unused=True).double(), torch.randn(2, 3, 6, 7, dtype=torch.double)
    hidden = memory = torch.zeros(2, 5, 6, 7, dtype=torch.double)
    gates = *cell.gates(x).chunk(3, dim=1), cell.forget(x)
    entering, candidate, leaving, forget = map(torch.add, gates, cell.state(hidden).chunk(4, dim=1))
    memory = memory * (forget + 1).sigmoid() + entering.sigmoid() * candidate.tanh()
    assert torch.allclose(cell(x), memory.tanh() * leaving.sigmoid())


@pytest.mark.parametrize("settings", [LAPTOP, PICO])
def test_all_of_it_takes_part_but_the_unused(settings):
    shape = MSPFNSettings(settings.width, settings.blocks, settings.reduction, unused=True)
    network, images = MSPFN(shape), torch.rand(2, 3, 16, 24)
    network.loss(images, torch.rand_like(images), 0, 1).backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == {name for name, _ in network.named_parameters() if ".forget." in name or ".state." in name}
    lean = MSPFN(settings)
    missing, more = lean.load_state_dict(network.state_dict(), strict=False)
    assert not missing and set(more) == idle
    assert torch.equal(lean(images), network(images))


@pytest.mark.parametrize(("scale", "size"), [(1, (8, 12)), (0.5, (4, 6)), (2, (16, 24))])
def test_a_convolution_scales(scale, size):
    assert Conv(3, 5, scale)(torch.rand(1, 3, 8, 12)).shape == (1, 5, *size)


def test_coarse_sizes_see_means_alone_and_never_what_the_finer_ones_found():
    network = build_network(ModelSettings("mspfn", size="pico"), 0).double()
    seen = []
    network.blocks[-1].register_forward_hook(lambda _, given, made: seen.append(made))
    images = torch.rand(1, 3, 16, 16, dtype=torch.double)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.double).repeat(8, 8)
    network(images)
    network(images + 0.1 * board)  # the same means of 2x2 pixels
    (full, *coarser), (other_full, *other_coarser) = seen
    assert not torch.allclose(full, other_full)
    assert all(map(torch.allclose, coarser, other_coarser))


def test_without_its_last_layer_it_is_the_identity():
    network = build_network(ModelSettings("mspfn", size="pico"), 0)
    torch.nn.init.zeros_(network.output.weight)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network(images), images)
    with torch.no_grad():
        loss = network.loss(images, images, 0, 1)
    assert float(loss) == pytest.approx(1e-3 * 1.05)
