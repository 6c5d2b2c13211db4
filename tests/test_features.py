import pytest
import torch

from bluesky_denoise.models.features import _middle_of_nine, describe
from bluesky_denoise.models.kernels import repeat

LEVELS, LINES = 5, ((1, 0), (0, 1))
BROAD = 2
"""Channel that tells how far a pixel stands out from what is usual around it."""


@pytest.fixture
def hump():
    rows, cols = torch.meshgrid(torch.arange(192.0), torch.arange(192.0), indexing="ij")
    scene = 5 * (1 + 0.6 * torch.exp(-0.5 * ((rows - 96) ** 2 + (cols - 96) ** 2) / 25**2))
    return scene[None, None]


def described(counts, valid=None):
    valid = torch.ones_like(counts) if valid is None else valid
    return describe(counts * valid, valid, LEVELS, LINES)


def test_a_bright_peak_does_not_hide_a_broad_hump_beside_it(hump):
    peaks = hump.clone()
    peaks[..., 72:77, 52:57] += 2e4
    alone, beside = described(hump), described(peaks)
    for level in (2, 3, 4):
        middle = 96 // 2**level
        seen = alone[level][0, BROAD, middle, middle].item()
        assert seen > 0.3
        assert beside[level][0, BROAD, middle, middle].item() == pytest.approx(seen, abs=0.5)


def test_a_flat_frame_stands_out_nowhere_whatever_is_masked():
    flat = torch.full((1, 1, 192, 192), 3.0)
    valid = torch.ones_like(flat)
    valid[..., 40:44] = 0
    valid[..., 96:, 100:] = 0
    for channels in described(flat, valid):
        here = channels[0, 3] > 0.3
        assert channels[0, 1:3][:, here].abs().max() < 0.02


def test_all_that_a_network_is_shown_is_bounded():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((1, 1, 64, 64), 0.01), generator=generator)
    counts[..., 10, 10] = 1e7
    for channels in described(counts):
        assert channels.isfinite().all()
        assert channels.abs().max() < 20


def test_each_pixel_is_made_four_of():
    x = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert torch.equal(repeat(x), torch.nn.functional.interpolate(x, scale_factor=2.0))


def test_the_middle_of_nine_is_their_median():
    # Small numbers, so that many are the same.
    x = torch.randint(0, 6, (9, 100_000), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_middle_of_nine(list(x)), x.median(0).values)
