"""Fixed symmetric kernels, and the steps between the levels of a pyramid.

Every kernel is symmetric *as a matrix* up to the border, with zeros outside, and `up` is
four times the transpose of `down`: what flows from a pixel to another flows back alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blur", "dashed", "down", "line", "long", "shuffle", "up", "wide", "wider"]


def _halve(x: Tensor, axis: int) -> Tensor:
    """Average over [1, 3, 3, 1] / 8 along one axis in steps of 2, the border repeated."""
    size = x.shape[axis] // 2
    pairs = x.unflatten(axis, (size, 2))
    even, odd = pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
    before = torch.cat([even.narrow(axis, 0, 1), odd.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([even.narrow(axis, 1, size - 1), odd.narrow(axis, size - 1, 1)], axis)
    return (before + after).add(even + odd, alpha=3).mul(0.125)


def down(x: Tensor) -> Tensor:
    """Average 4 x 4 pixels in steps of 2: (B, C, h, w) -> (B, C, h / 2, w / 2).

    With the border repeated it is the transpose of `up` over 4, exactly.
    """
    return _halve(_halve(x, 2), 3)


def _double(x: Tensor, axis: int) -> Tensor:
    """Interpolate along one axis, the border repeated; a third faster than `F.interpolate`."""
    size = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
    return _interleave(torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25), axis)


def _interleave(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """Alternate the rows (axis 2) or columns (axis 3) of two images."""
    if axis == 3 and even.dtype == torch.float32:
        # Twice as fast as `stack` along the last axis.
        return torch.view_as_real(torch.complex(even, odd)).flatten(3)
    return torch.stack([even, odd], axis + 1).flatten(axis, axis + 1)


def up(x: Tensor) -> Tensor:
    """Interpolate: (B, C, h, w) -> (B, C, 2 h, 2 w)."""
    return _double(_double(x, 2), 3)


def _spread(x: Tensor, *steps: tuple[int, int]) -> Tensor:
    """Average over [1, 2, 1] / 4 once for each step (rows, columns), zeros outside.

    Padded once for all steps: cut in between, the matrix would not stay symmetric.
    """
    high = sum(abs(rows) for rows, _ in steps)
    wide = sum(abs(cols) for _, cols in steps)
    x = F.pad(x, (wide, wide, high, high))
    for rows, cols in steps:
        height, width = x.shape[-2] - 2 * abs(rows), x.shape[-1] - 2 * abs(cols)
        parts = []
        for sign in (-1, 0, 1):
            top, left = abs(rows) + sign * rows, abs(cols) + sign * cols
            parts.append(x[..., top : top + height, left : left + width])
        x = (parts[0] + parts[2]).add(parts[1], alpha=2)
    return x * 0.25 ** len(steps)


def line(x: Tensor, rows: int, cols: int) -> Tensor:
    """Average over [1, 2, 3, 4, 3, 2, 1] / 16 along a direction."""
    return _spread(x, (rows, cols), (2 * rows, 2 * cols))


def dashed(x: Tensor, rows: int, cols: int) -> Tensor:
    """Average over [1, 2, 1] / 4 in steps of a direction."""
    return _spread(x, (rows, cols))


def long(x: Tensor, rows: int, cols: int) -> Tensor:
    """Blur along one axis, sigma 7 pixels, width 1 pixel: (B, C, h, w), symmetric."""
    axis = 2 if rows else 3
    x = line(_halve(_halve(x, axis), axis), rows, cols)
    return _double(_double(x, axis), axis)


def blur(x: Tensor) -> Tensor:
    """Average over 3 x 3 binomial taps."""
    return _spread(x, (1, 0), (0, 1))


def wide(x: Tensor) -> Tensor:
    """Average over 7 x 7 pixels, triangular along both axes."""
    return _spread(x, (1, 0), (2, 0), (0, 1), (0, 2))


def wider(x: Tensor) -> Tensor:
    """Average over 15 x 15 pixels, triangular along both axes."""
    return _spread(x, (1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (0, 4))


def shuffle(x: Tensor) -> Tensor:
    """Put pixels of four parities together: (B, 1, 2, 2, h, w) -> (B, 1, 2 h, 2 w)."""
    even, odd = (_interleave(x[:, :, i, 0], x[:, :, i, 1], 3) for i in (0, 1))
    return _interleave(even, odd, 2)
