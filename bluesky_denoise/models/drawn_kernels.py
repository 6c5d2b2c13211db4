"""Kernels that a network draws itself: photons are shared with near pixels that look alike.

Each pixel is given a point in a space of a few dimensions. What two pixels may share falls with
the squared distance of their points, so that along an arc, or the edge of a shadow, a pixel
finds those of its own level in any direction. Like those of `kernels`, such a kernel is symmetric
as a matrix. ``docs/decisions/0014-kernels-that-are-drawn.md`` has the evidence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from bluesky_denoise.models import kernels

__all__ = ["TERMS", "drawn", "points"]

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1))
"""Steps (rows, columns) to one half of the neighbours; the other half is opposite."""
TERMS = 3
"""What a network tells of each pixel: a gain, and two coordinates."""
TERM_SCALE = 0.01
"""Of a network's terms in a point: the features that they are mixed of are of the order of 100."""


def points(terms: Tensor, level: Tensor) -> Tensor:
    """Place each pixel: how far apart two are says how little alike they look.

    The first coordinate is the root of the counts around, times a gain: its standard deviation
    is known, and alike at any level of counts. Differences that are far below the noise are for
    the network to find, by coordinates of its own.

    Parameters
    ----------
    terms : (B, TERMS, h, w), of the network
    level : (B, 4 or more, h, w), of `describe`

    Returns
    -------
    Tensor
        (B, TERMS, h, w)
    """
    gain, place = (TERM_SCALE * terms).split((1, TERMS - 1), 1)
    counts, mass = torch.expm1(2 * level[:, :1]), level[:, 3:4]
    near, some = kernels.blur(torch.cat([counts * mass, mass], 1)).split(1, 1)
    root = torch.sqrt((near / some.clamp_min(1e-3)).clamp_min(0) + 0.375)
    return torch.cat([root * (1 + gain).clamp_min(0), place], 1)


def drawn(points: Tensor) -> kernels.Kernel:
    """Draw a kernel: pixels share with their neighbours as far as they look alike.

    Parameters
    ----------
    points : (B, D, h, w), a point of D dimensions for each pixel; two at a distance d are alike
        by ``exp(-d ** 2)``

    Returns
    -------
    Kernel
        Up to the border it keeps the mean of an image where all look alike.
    """
    likeness = _Likeness.apply(points)

    def apply(x: Tensor) -> Tensor:
        return _Shared.apply(x, *likeness)

    return kernels.Kernel(apply, 1 / (2 * len(STEPS)), "drawn")


def _ends(x: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Cut out where a step begins, and where it ends: for all steps that stay in the image."""
    height, width = x.shape[-2] - rows, x.shape[-1] - abs(cols)
    left, right = max(-cols, 0), max(cols, 0)
    return x[..., :height, left : left + width], x[..., rows:, right : right + width]


def _share(x: Tensor, likeness: Sequence[Tensor]) -> Tensor:
    """Sum over neighbours by their likeness: (B, C, h, w) -> (B, C, h, w)."""
    out = torch.zeros_like(x)
    for step, alike in zip(STEPS, likeness, strict=True):
        (begin, end), (to_begin, to_end) = _ends(x, *step), _ends(out, *step)
        to_begin.addcmul_(alike, end)
        to_end.addcmul_(alike, begin)
    return out


# Gradients are written out: autograd would keep the images in between, of every step.


class _Likeness(torch.autograd.Function):
    """(B, D, h, w) points -> for each step (B, 1, h - rows, w - |columns|), 1 where the same."""

    @staticmethod
    def forward(ctx: FunctionCtx, points: Tensor) -> tuple[Tensor, ...]:
        found = []
        for step in STEPS:
            begin, end = _ends(points, *step)
            apart = begin - end
            found.append(apart.mul_(apart).sum(1, keepdim=True).neg_().exp_())
        ctx.save_for_backward(points, *found)
        return tuple(found)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        points, *found = ctx.saved_tensors
        out = torch.zeros_like(points)
        for step, alike, grad in zip(STEPS, found, grads, strict=True):
            (begin, end), (to_begin, to_end) = _ends(points, *step), _ends(out, *step)
            change = (grad * alike).mul_(-2) * (begin - end)
            to_begin.add_(change)
            to_end.sub_(change)
        return out


class _Shared(torch.autograd.Function):
    """`_share`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, *likeness: Tensor) -> Tensor:
        ctx.save_for_backward(x, *likeness)
        return _share(x, likeness)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        x, *likeness = ctx.saved_tensors
        of_likeness = []
        for step in STEPS:
            (begin, end), (at_begin, at_end) = _ends(x, *step), _ends(grad, *step)
            of_likeness.append((at_begin * end).addcmul_(at_end, begin).sum(1, keepdim=True))
        return (_share(grad, likeness), *of_likeness)
