"""Fixed symmetric kernels, and the steps between the levels of a pyramid.

Every kernel is symmetric *as a matrix* up to the border, with zeros outside, and `up` is
four times the transpose of `down`: what flows from a pixel to another flows back alike.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Kernel",
    "blur",
    "down",
    "halve",
    "line",
    "long",
    "repeat",
    "shuffle",
    "slope",
    "unshuffle",
    "up",
    "wide",
    "wider",
]


class Kernel(NamedTuple):
    """A symmetric kernel: ``scale * apply(x)`` has the mean of ``x``, up to the border."""

    apply: Callable[[Tensor], Tensor]
    """(B, C, h, w) -> (B, C, h, w)."""
    scale: float
    """Left to the caller, who multiplies anyway."""
    centre: float
    """Weight of a pixel in its own average; of `long` on average, as it depends on the place."""
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """Spread an image: (B, C, h, w) -> (B, C, h, w)."""
        return self.apply(x) * self.scale


def _with_ends(x: Tensor, axis: int) -> Tensor:
    """Repeat the border along one axis: a pixel more at either end."""
    return F.pad(x, (1, 1, 0, 0) if axis == 3 else (0, 0, 1, 1), mode="replicate")


def _fours(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Return four in a row along one axis, in steps of 2, the border repeated."""
    end = x.shape[axis] - 1
    wide = _with_ends(x, axis)
    steps = [slice(first, end + first, 2) for first in range(4)]
    return tuple(wide[..., step] if axis == 3 else wide[:, :, step] for step in steps)


def _eight(x: Tensor, axis: int) -> Tensor:
    """Sum over [1, 3, 3, 1] along one axis in steps of 2, the border repeated."""
    a, b, c, d = _fours(x, axis)
    return (a + d).add_(b + c, alpha=3)


def halve(x: Tensor, axis: int) -> Tensor:
    """Average over [1, 3, 3, 1] / 8 along one axis in steps of 2, the border repeated."""
    return _eight(x, axis).mul_(1 / 8)


def slope(x: Tensor, axis: int) -> Tensor:
    """Return the change per pixel along one axis, [-1, -1, 1, 1] / 4, in steps of 2."""
    a, b, c, d = _fours(x, axis)
    return (c + d).sub_(a + b).mul_(0.25)


def down(x: Tensor) -> Tensor:
    """Average 4 x 4 pixels in steps of 2: (B, C, h, w) -> (B, C, h / 2, w / 2).

    With the border repeated it is the transpose of `up` over 4, exactly.
    """
    return _eight(_eight(x, 2), 3).mul_(1 / 64)


def _double(x: Tensor, axis: int) -> Tensor:
    """Interpolate along one axis, the border repeated; a third faster than `F.interpolate`."""
    size = x.shape[axis]
    wide = _with_ends(x, axis)
    before, after = wide.narrow(axis, 0, size), wide.narrow(axis, 2, size)
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
    """Sum over [1, 2, 1] once for each step (rows, columns), zeros outside.

    Padded once for all steps: cut in between, the matrix would not stay symmetric.
    """
    high = sum(abs(rows) for rows, _ in steps)
    wide = sum(abs(cols) for _, cols in steps)
    x = F.pad(x, (wide, wide, high, high))
    for rows, cols in steps:
        parts = [_within(_within(x, 2, rows, sign), 3, cols, sign) for sign in (-1, 0, 1)]
        x = (parts[0] + parts[2]).add_(parts[1], alpha=2)
    return x


def _within(x: Tensor, axis: int, step: int, sign: int) -> Tensor:
    """Leave out a step at both ends of one axis, from what is moved by a step in a direction."""
    if step == 0:
        return x
    return x.narrow(axis, abs(step) + sign * step, x.shape[axis] - 2 * abs(step))


def _line(x: Tensor, rows: int, cols: int) -> Tensor:
    return _spread(x, (rows, cols), (2 * rows, 2 * cols))


def line(rows: int, cols: int) -> Kernel:
    """Average over [1, 2, 3, 4, 3, 2, 1] / 16 in steps of a direction."""
    return Kernel(partial(_line, rows=rows, cols=cols), 1 / 16, 0.25, f"line {rows, cols}")


def _long(x: Tensor, rows: int, cols: int) -> Tensor:
    axis = 2 if rows else 3
    x = _line(_eight(_eight(x, axis), axis), rows, cols)
    return _double(_double(x, axis), axis)


def long(rows: int, cols: int) -> Kernel:
    """Blur along one axis, sigma 7 pixels, width 1 pixel."""
    scale = 1 / (8 * 8 * 16)  # twice halved, and a line
    return Kernel(partial(_long, rows=rows, cols=cols), scale, 0.0555, f"long {rows, cols}")


def _boxed(name: str, *steps: tuple[int, int]) -> Kernel:
    def apply(x: Tensor) -> Tensor:
        return _spread(x, *steps)

    return Kernel(apply, 0.25 ** len(steps), 0.5 ** len(steps), name)


blur = _boxed("blur", (1, 0), (0, 1))
"""Average over 3 x 3 binomial taps."""
wide = _boxed("wide", (1, 0), (2, 0), (0, 1), (0, 2))
"""Average over 7 x 7 pixels, triangular along both axes."""
wider = _boxed("wider", (1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (0, 4))
"""Average over 15 x 15 pixels, triangular along both axes."""


def repeat(x: Tensor) -> Tensor:
    """Make four pixels of each: (B, C, h, w) -> (B, C, 2 h, 2 w).

    Three times as fast as `F.interpolate` plane by plane.
    """
    across = _interleave(x, x, 3)
    return _interleave(across, across, 2)


def shuffle(x: Tensor) -> Tensor:
    """Put pixels of four parities together: (B, 1, 2, 2, h, w) -> (B, 1, 2 h, 2 w)."""
    even, odd = (_interleave(x[:, :, i, 0], x[:, :, i, 1], 3) for i in (0, 1))
    return _interleave(even, odd, 2)


def unshuffle(x: Tensor) -> Tensor:
    """Part pixels by the parity of row and column: (B, C, h, w) -> (B, 4 C, h / 2, w / 2).

    More than twice as fast as `F.pixel_unshuffle`.
    """
    parts = [x[..., row::2, col::2] for row in (0, 1) for col in (0, 1)]
    return torch.stack(parts, 2).flatten(1, 2)
