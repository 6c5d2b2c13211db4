"""What a network is shown of a frame: levels of counts, and how far they stand out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bluesky_denoise.models import kernels

__all__ = ["describe"]


def _soft(z: Tensor) -> Tensor:
    """Bound a significance by 8."""
    return 8 * z / (8 + z.abs())


def _line_significance(both: Tensor, rows: int, cols: int, area: float) -> Tensor:
    """Tell how far a long line stands out from its sides, in standard deviations.

    Parameters
    ----------
    both : (B, 2, h, w), means of counts and of validity
    rows, cols : direction of the line
    area : pixels of the frame in one pixel of this level
    """
    along = kernels.long(rows, cols)(both)
    sides = kernels.line(cols, rows)(along)
    line, around = (x[:, :1] / x[:, 1:].clamp_min(1e-3) for x in (along, sides))
    # A Gaussian of sigma 7 averages over 2 sqrt(pi) 7 = 25 pixels.
    area = 25 * area
    return (line - around) * torch.rsqrt((around + 0.3 / area) / area)


def _usual(sums: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """Average over 3 x 3 pixels of a level, and take the median of them.

    A bright peak raises the average far around it, and what is seen of a weak slope beside it
    would drown. It does not raise the median. Pixels without valid ones count as the average.
    """
    both = F.avg_pool2d(torch.cat([sums, masses], 1), 3, 1, 1)
    mean = both[:, :1] / both[:, 1:].clamp_min(1e-3)
    known = torch.where(masses > 0.05, sums / masses.clamp_min(1e-3), mean)
    height, width = known.shape[-2:]
    padded = F.pad(known, (1, 1, 1, 1), mode="replicate")
    near = [padded[..., r : r + height, c : c + width] for r in range(3) for c in range(3)]
    return mean, _middle_of_nine(near)


def _middle_of_nine(x: list[Tensor]) -> Tensor:
    """Return the median of nine; on a CPU `Tensor.median` takes longer.

    The columns of a square are sorted. Of the least of each the largest, of the middle ones the
    middle, and of the largest the least are left, and the middle of these is that of all.
    """
    least, middle, largest = zip(*(_sorted(*x[i : i + 3]) for i in (0, 3, 6)), strict=True)
    return _sorted(_sorted(*least)[2], _sorted(*middle)[1], _sorted(*largest)[0])[1]


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    b, c = torch.minimum(b, c), torch.maximum(b, c)
    return torch.minimum(a, b), torch.maximum(a, b), c


def describe(
    counts: Tensor, valid: Tensor, levels: int, directions: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Describe every level by levels and significances: 4 or 6 channels, |x| below 20.

    At 2 and 4 pixels that includes how far a long line stands out from its two sides. What is
    usual around is a median at the two coarsest levels; see `_usual`.

    Parameters
    ----------
    counts : (B, 1, H, W), counts, 0 where masked
    valid : (B, 1, H, W), 1 or 0
    levels : of the pyramid, each of half the size
    directions : steps (rows, columns) of long lines
    """
    sums, masses = [counts], [valid]
    for _ in range(levels - 1):
        sums.append(kernels.down(sums[-1]))
        masses.append(kernels.down(masses[-1]))
    means = [a / b.clamp_min(1e-3) for a, b in zip(sums, masses, strict=True)]
    (_, fine), (beyond, coarse) = (_usual(*x) for x in zip(sums[-2:], masses[-2:], strict=True))
    out = []
    for level in range(levels):
        area = 4.0**level
        # What the next coarser level would expect here; what is usual around; their own noise.
        here = means[level]
        around = kernels.up(means[level + 1]) if level + 1 < levels else beyond
        if level + 2 == levels:
            wide = kernels.up(coarse)
        elif level + 1 == levels:
            wide = coarse
        else:
            two = {levels - 2: fine, levels - 1: coarse}.get(level + 2, means[level + 2])
            wide = kernels.up(kernels.up(two))
        near = (here - around) * torch.rsqrt((around + 0.3 / area) / area)
        broad = (here - wide) * torch.rsqrt((wide + 0.3 / area) / area)
        found = [torch.log1p(here * area) * 0.5, _soft(near), _soft(broad), masses[level]]
        if level in (1, 2):
            both = torch.cat([sums[level], masses[level]], 1)
            found += [_soft(_line_significance(both, r, c, area)) for r, c in directions]
        out.append(torch.cat(found, 1))
    return out
