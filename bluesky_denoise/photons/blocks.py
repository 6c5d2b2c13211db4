"""Blocks of a frame, as sums over them and as images of what is told of each."""

import numpy as np

__all__ = ["Blocks"]


class Blocks:
    """Blocks of a frame, so many pixels high and wide.

    What is left over is in the last ones, if it is less than half of a block.

    Parameters
    ----------
    shape : (H, W)
    side_px : of a block, pixels
    """

    def __init__(self, shape: tuple[int, ...], side_px: int) -> None:
        self._starts = [np.arange(0, max(size - side_px // 2, 1), side_px) for size in shape]
        pairs = zip(self._starts, shape, strict=True)
        self.sizes = [np.diff(starts, append=size) for starts, size in pairs]
        """Rows and columns of each."""

    def sums(self, image: np.ndarray) -> np.ndarray:
        """Sum over each block: (H, W) -> (rows of blocks, columns of blocks)."""
        for axis, starts in enumerate(self._starts):
            image = np.add.reduceat(image, starts, axis=axis)
        return image

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Give each pixel the value of its block: (rows, columns of blocks) -> (H, W)."""
        for axis, sizes in enumerate(self.sizes):
            values = values.repeat(sizes, axis=axis)
        return values
