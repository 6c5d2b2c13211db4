"""PhotonExchange: a small U-Net that decides where photons are shared, and never makes any.

The estimate is a rearrangement of the counted photons. At every level of a pyramid
(full resolution, 2, 4, 8 and 16 pixels) the network gives each pixel a share ``u_k``
of a few symmetric kernels ``A_k`` (itself, a blur, lines of some directions) and of the
next coarser level. Two pixels exchange photons through a kernel only as far as *both* ask for it:

    M = sum_k diag(u_k) A_k diag(u_k),        M symmetric, >= 0

After a symmetric rescaling ``s`` (one Sinkhorn step, bounded so that no row of
``s M s`` exceeds 1) the estimate is

    out = s M[s n] + (1 - s M[s]) n

whose matrix is symmetric with rows, and hence columns, that sum to 1. So, whatever
the weights: ``out >= 0``, the counts of the valid pixels keep their sum exactly, a
flat frame stays flat up to masks and borders, and a hot pixel that asks for nothing
gives nothing. ``docs/decisions/0001-photons-are-exchanged.md`` has the evidence.

A second, small head tells the variance of each pixel of the estimate.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bluesky_denoise.models import kernels, spots
from bluesky_denoise.models.along_lines import share_along_lines
from bluesky_denoise.models.error_head import ErrorHead
from bluesky_denoise.models.features import describe
from bluesky_denoise.models.layers import Block, Point, roots
from bluesky_denoise.models.misfit import misfit

__all__ = ["Estimate", "PhotonExchange"]

LEVELS = 5
"""Levels of the pyramid; a pixel of the coarsest is 2 ** (LEVELS - 1) pixels wide."""


DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))
"""Steps (rows, columns) of the lines that photons can be shared along."""
BETWEEN = ((1, 2), (2, 1), (1, -2), (2, -1))
"""Steps of the lines in between, at 2 pixels: at single ones no training has used them."""


WIDE = (kernels.wide, kernels.wider)
"""Further blurs at the coarsest level."""


class Estimate(NamedTuple):
    """What the network says of a frame; all (B, 1, H, W) float32, 0 where masked."""

    counts: Tensor
    """Expected counts, >= 0."""
    variance: Tensor
    """Expected squared error of ``counts``, counts squared, > 0."""
    spread: Tensor | None
    """Another image, its photons exchanged as those of the frame were."""
    own: Tensor
    """Weight of a pixel's own counts in its estimate, 0 to 1."""


class _Shares(NamedTuple):
    """Square roots of the shares at one level, 0 where masked."""

    own: Tensor
    """(B, 1, h, w)"""
    kernels: list[Tensor]
    """(B, 1, h, w) for each kernel"""
    coarser: Tensor | None
    """(B, 1, h, w)"""


class PhotonExchange(nn.Module):
    """Estimate expected counts by exchanging photons between pixels.

    Parameters
    ----------
    channels : channels of the U-Net at 2, 4, 8 and 16 pixels
    full_counts : counts beyond which a pixel is left as it was counted: its share that
        may be exchanged is ``exp(-(n / full_counts) ** 2)``
    pixel_sigmas, spot_sigmas : a pixel, and 3 x 3 pixels, that stand out by more than so many
        standard deviations over all those 3 away stay as they were counted, with their
        neighbours: the share that may be exchanged is ``exp(-(z / sigmas) ** 16)``. A pixel of less
        than half of the counts 3 away is no part of a spot: ``z`` falls in proportion to its counts
    floor : least root of a share before it is normalised, so that no estimate near a
        photon is 0
    """

    multiple = 2 ** (LEVELS - 1)
    """Frames must be padded to a multiple of this many pixels."""
    field_px = 384
    """Pixels beyond this distance cannot change an estimate by more than rounding."""
    tells_variance = True
    """`estimate` gives the variance too, and `forward` does if it is given a third image."""

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64, 64),
        full_counts: float = 4000.0,
        pixel_sigmas: float = 4.7,
        spot_sigmas: float = 4.3,
        floor: float = 0.005,
    ) -> None:
        super().__init__()
        self.full_counts = full_counts
        self.pixel_sigmas = pixel_sigmas
        self.spot_sigmas = spot_sigmas
        self.floor = floor
        lines = tuple(kernels.line(*step) for step in DIRECTIONS)
        between = tuple(kernels.line(*step) for step in BETWEEN)
        long = tuple(kernels.long(*step) for step in DIRECTIONS[:2])
        upright = lines[:2] + long
        banks = [upright, lines + between + long, lines + long, lines, (*lines, *WIDE)]
        self.banks = [(kernels.blur, *bank) for bank in banks]
        # Itself, the kernels, and the coarser level where there is one.
        self.heads = [1 + len(bank) + (level < LEVELS - 1) for level, bank in enumerate(self.banks)]
        ins = [4 * 4 + 6, 6] + [4] * (LEVELS - 3)
        self.stems = nn.ModuleList(
            nn.Conv2d(i, c, 3, padding=1) for i, c in zip(ins, channels, strict=True)
        )
        # None at 2 pixels: half of the time would be spent there.
        self.encoders = nn.ModuleList([nn.ReLU(inplace=True), *(Block(c) for c in channels[1:])])
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(channels)
        )
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(channels))
        self.decoders = nn.ModuleList(Block(c) for c in channels[:-1])
        self.outs = nn.ModuleList(
            Point(c, h) for c, h in zip(channels, self.heads[1:], strict=True)
        )
        self.out_full = Point(channels[0], 4 * self.heads[0])
        self.error = ErrorHead(channels)
        for head in (*self.outs, self.out_full):
            nn.init.constant_(head.bias, 0.5)  # all shares alike at first

    def shares(
        self, counts: Tensor, valid: Tensor, free: Tensor | None = None
    ) -> tuple[list[_Shares], list[Tensor]]:
        """Run the U-Net: shares of every kernel at every level; its features, finest first."""
        # Counts need all their digits: only the convolutions may run at half precision.
        with torch.autocast(counts.device.type, enabled=False):
            feats = describe(counts, valid, LEVELS, DIRECTIONS[:2])
        first = torch.cat([kernels.unshuffle(feats[0]), feats[1]], 1)  # (B, 20, H/2, W/2)
        inputs = [first, *feats[2:]]
        skips: list[Tensor] = []
        for i, (stem, encoder, feat) in enumerate(
            zip(self.stems, self.encoders, inputs, strict=True)
        ):
            x = stem(feat.contiguous(memory_format=torch.channels_last))
            if skips:
                x.add_(self.downs[i - 1](skips[-1]))
            skips.append(encoder(x))
        x = skips[-1]
        logits, found = [self.outs[-1](x)], [x]
        for i in reversed(range(len(skips) - 1)):
            x = F.interpolate(self.ups[i](x), scale_factor=2.0).add_(skips[i])
            x = self.decoders[i](x)
            logits.insert(0, self.outs[i](x))
            found.insert(0, x)
        # The frame's own shares stay apart by the parity of row and column until they are
        # normalised: (B, 4 K, H/2, W/2) -> (B, K, 2, 2, H/2, W/2).
        logits.insert(0, self.out_full(x).unflatten(1, (-1, 2, 2)))
        # Plane by plane from here on: shares multiply single-channel frames.
        with torch.autocast(counts.device.type, enabled=False):
            free = self._free(counts) if free is None else free
            return self._bound([z.float() for z in logits], free, valid), found

    def _bound(self, logits: list[Tensor], free: Tensor, valid: Tensor) -> list[_Shares]:
        full, *others = logits
        both = torch.cat([free * valid, valid], 1)
        free, some = kernels.unshuffle(both).unflatten(1, (2, 2, 2)).split(1, 1)
        # Bright pixels, and spots that stand out, are known well: they stay as counted.
        own, *roots = self._roots(full, free)
        planes = [torch.sqrt(torch.addcmul(1 - free * free, own, own)) * some, *roots]
        levels = [[kernels.shuffle(plane) for plane in planes], *map(self._roots, others)]
        shares = []
        for z, bank in zip(levels, self.banks, strict=True):
            own, rest, coarser = z[0], z[1 : len(bank) + 1], z[len(bank) + 1 :]
            shares.append(_Shares(own, rest, coarser[0] if coarser else None))
        return shares

    def _free(self, counts: Tensor) -> Tensor:
        """Tell how far a pixel may exchange photons at all, 0 to 1, as a root."""
        ring, nine = spots.ring_maximum(counts), 9 * spots.mean_near(counts)
        pixel = spots.excess(counts, ring) / self.pixel_sigmas
        spot = spots.excess(nine, spots.ring_maximum(nine)) / self.spot_sigmas
        excess = spots.largest_near(torch.maximum(pixel, spot))  # neighbours stay too,
        excess = excess * (counts / (0.5 * ring + 1)).clamp_max(1)  # unless they are dim
        for _ in range(4):  # to the power of 16; `pow` takes six times as long
            excess = excess * excess
        return torch.exp(-0.5 * ((counts / self.full_counts) ** 2 + excess))

    def _roots(self, z: Tensor, free: Tensor | None = None) -> list[Tensor]:
        """Roots of shares: of unit length, with a floor so that no estimate near a photon is 0."""
        return list(roots(z, self.floor, free).split(1, 1))

    def exchange(self, shares: list[_Shares], x: Tensor, level: int = 0) -> Tensor:
        """Apply M: (B, C, h, w) -> (B, C, h, w)."""
        own, others, coarser = shares[level]
        out = own * own * x
        for share, spread in zip(others, self.banks[level], strict=True):
            out.addcmul_(share, spread.apply(share * x), value=spread.scale)
        if coarser is not None:
            beyond = self.exchange(shares, kernels.down(coarser * x), level + 1)
            out.addcmul_(coarser, kernels.up(beyond))
        return out

    def forward(
        self, counts: Tensor, valid: Tensor, other: Tensor | None = None
    ) -> Tensor | Estimate:
        """Estimate expected counts.

        Parameters
        ----------
        counts : (B, 1, H, W) float32 counts, 0 where masked; H, W multiples of `multiple`
        valid : (B, 1, H, W) float32, 1 where a pixel counts, else 0
        other : (B, 1, H, W), an image to be spread as the counts are: the true expected
            counts come out as what such counts would give on average

        Returns
        -------
        Tensor or Estimate
            (B, 1, H, W) float32 expected counts, 0 where masked; with ``other``, all that
            is known.
        """
        if other is not None:
            return self.estimate(counts, valid, other)
        shares, _ = self.shares(counts, valid)
        with torch.autocast(counts.device.type, enabled=False):
            (out,), *_ = self._moved(shares, valid, counts)
            return out

    def estimate(
        self,
        counts: Tensor,
        valid: Tensor,
        other: Tensor | None = None,
        free: Tensor | None = None,
    ) -> Estimate:
        """Estimate expected counts and their variance; arguments as for `forward`.

        ``free`` is what `_free` says of the counts, where that is known already.
        """
        shares, found = self.shares(counts, valid, free)
        with torch.autocast(counts.device.type, enabled=False):
            images = [counts] if other is None else [counts, other]
            out, kept, scale = self._moved(shares, valid, *images)
            variance = self.error(found, out[0], kept) * valid
            own = self._own(shares[0], kept.detach(), scale.detach())
        return Estimate(out[0], variance, None if other is None else out[1], own)

    def denoise(self, counts: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate expected counts, let noisy pixels share along lines, and hear the counts.

        Nothing of that is learnt: training does without it. Arguments as for `forward`.

        Returns
        -------
        tuple
            (B, 1, H, W) float32 each: expected counts, their variance, and what that would be if
            the counts did not disagree with them.
        """
        free = self._free(counts)
        found = self.estimate(counts, valid, free=free)
        with torch.autocast(counts.device.type, enabled=False):
            free = (free * free).mul_(valid)
            # Of what the network alone tells: lines take noise away, and leave what was lost.
            beyond = misfit(counts, found.counts, found.variance, found.own, free)
            estimate, expected = share_along_lines(valid, found.counts, found.variance, free)
            return estimate, beyond.add_(expected), expected

    def _moved(
        self, shares: list[_Shares], valid: Tensor, *images: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Exchange the photons of images; also tell what a pixel keeps of its own, and ``s``."""
        scale = torch.rsqrt(self.exchange(shares, valid).clamp_min(1e-6)) * valid
        # No row of s M s may exceed 1, else a pixel would give more than it has.
        reached = self.exchange(shares, scale)
        scale = torch.minimum(scale, 1 / reached.clamp_min(1e-6)) * valid
        all_images = torch.cat([scale, *(scale * image for image in images)], 1)
        share, *moved = (scale * self.exchange(shares, all_images)).split(1, 1)
        left = (1 - share).clamp_min(0)
        out = [(m + left * image) * valid for m, image in zip(moved, images, strict=True)]
        return out, left + (scale * shares[0].own) ** 2, scale

    def _own(self, shares: _Shares, kept: Tensor, scale: Tensor) -> Tensor:
        """Tell the weight of a pixel's own counts: what it kept, and what kernels give back.

        The little that comes back from coarser levels is left out.
        """
        back = torch.zeros_like(kept)
        for share, kernel in zip(shares.kernels, self.banks[0], strict=True):
            share = share.detach()
            back.addcmul_(share, share, value=kernel.centre)
        return torch.addcmul(kept, back, scale * scale)
