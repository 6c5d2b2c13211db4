import pytest
import torch

from bluesky_denoise.models import build_model, drawn_kernels, kernels
from bluesky_denoise.models.drawn_kernels import TERMS, drawn, points
from bluesky_denoise.models.features import describe

SIDE = 12


@pytest.fixture
def places():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)


def matrix(kernel):
    basis = torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
    return kernel(basis).reshape(SIDE**2, SIDE**2)


def test_a_drawn_kernel_is_a_symmetric_matrix_with_rows_of_at_most_one(places):
    found = matrix(drawn(places))
    # Rounding of float64.
    torch.testing.assert_close(found, found.T, atol=1e-12, rtol=0)
    assert found.min() >= 0
    assert 0.02 < found.sum(1).max() <= 1


def test_where_all_look_alike_the_mean_is_kept(places):
    inside = matrix(drawn(torch.zeros_like(places))).sum(1).reshape(SIDE, SIDE)[2:-2, 2:-2]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_pixels_share_with_those_of_their_level_only():
    rows, cols = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    on_line = rows == cols  # no kernel of `kernels` runs along it at the finest levels
    kernel = drawn(10.0 * on_line[None, None])
    spread = kernel(on_line[None, None].float())
    assert spread[0, 0, 5:-5, 5:-5][on_line[5:-5, 5:-5]].min() > 0
    assert spread[0, 0][~on_line].max() < 1e-10


def test_gradients_are_those_of_finite_differences(places):
    small = places[..., :6, :7].repeat(2, 1, 1, 1).requires_grad_()
    x = torch.rand(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, x: drawn(p)(x), (small, x))


def test_points_of_a_flat_frame_are_one_place_whatever_is_masked():
    valid = torch.ones(1, 1, 96, 96)
    valid[..., 40:44] = 0
    valid[..., 20, 70] = 0
    levels = describe(9 * valid, valid, 5, ((1, 0), (0, 1)))
    for level in levels[:3]:
        placed = points(torch.zeros(1, TERMS, *level.shape[-2:]), level)
        known = level[0, 3] > 0.3
        assert placed[0, :, known].var(1).max() < 1e-6


def test_points_of_counts_scatter_alike_at_any_level_of_counts():
    generator = torch.Generator().manual_seed(0)
    for mean in (30.0, 3000.0):
        counts = torch.poisson(torch.full((1, 1, 96, 96), mean), generator=generator)
        level = describe(counts, torch.ones_like(counts), 5, ((1, 0), (0, 1)))[0]
        placed = points(torch.zeros(1, TERMS, 96, 96), level)
        # The root of a Poisson number scatters by 1/2, that of 3 x 3 binomial taps by 3/8 of it.
        assert placed[0, 0].std() == pytest.approx(3 / 16, rel=0.05)


def test_steps_are_one_half_of_the_neighbours():
    opposite = {(-rows, -cols) for rows, cols in drawn_kernels.STEPS}
    assert len(opposite) == len(drawn_kernels.STEPS)
    assert opposite.isdisjoint(drawn_kernels.STEPS)


def test_a_network_that_shares_by_its_drawn_kernels_alone_keeps_an_oblique_edge():
    network = build_model("photon_exchange_drawn").eval()
    with torch.no_grad():
        for layer in (network.points_full, *network.points):
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in (network.out_full, *network.outs):
            layer.weight.zero_()
            layer.bias.fill_(-1)
        # Shares of the frame are in fours, of the drawn kernel before that of the coarser level.
        network.out_full.bias[-8:-4] = 1
    rows, cols = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    bright = rows + 2 * cols > 140
    edge = torch.where(bright, 900.0, 100.0)[None, None]
    with torch.inference_mode():
        out = network(torch.poisson(edge, generator=torch.manual_seed(0)), torch.ones_like(edge))
    on_edge = (kernels.blur(edge) != edge)[0, 0]
    on_edge[[0, -1]] = on_edge[:, [0, -1]] = False
    for side, level in ((bright, 900.0), (~bright, 100.0)):
        found = out[0, 0][side & on_edge]
        # A good part of the noise is gone, and next to nothing came across.
        assert found.std() < 0.7 * level**0.5
        assert found.mean() == pytest.approx(level, rel=0.02)


def test_oblique_lines_are_left_to_drawn_kernels():
    # Itself, a blur, two lines, two long ones, the drawn kernel, the coarser level; below
    # itself, a blur, four lines, and the coarser level, or two further blurs.
    assert build_model("photon_exchange_drawn").heads == [8, 8, 8, 7, 8]
