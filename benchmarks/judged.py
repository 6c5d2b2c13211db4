"""What the benchmarks of a network take from the command line: its weights, and how many frames."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.models import photon_exchange

__all__ = ["judged", "network_alone", "without_and_with"]


def judged(description: str, what: str, number: int) -> tuple[Denoiser, int]:
    """Load the network that is to be judged, and print which it is.

    Parameters
    ----------
    description : of the command; its first line is shown
    what : ``frames`` or ``scenes``, the name of an option
    number : its default

    Returns
    -------
    tuple
        The denoiser, on one thread, and the number that was asked for.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(f"--{what}", type=int, default=number)
    parser.add_argument("--weights", default="default")
    given = parser.parse_args()
    denoiser = Denoiser.load(given.weights, threads=1)
    number = getattr(given, what)
    print(f"weights {denoiser.weights_sha256[:12]}, {number} {what} each")
    return denoiser, number


@contextmanager
def network_alone() -> Iterator[None]:
    """Leave out the last exchange, along lines."""
    kept = photon_exchange.share_along_lines
    photon_exchange.share_along_lines = lambda valid, estimate, variance, free: (estimate, variance)
    try:
        yield
    finally:
        photon_exchange.share_along_lines = kept


def without_and_with(denoiser: Denoiser, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Denoise a frame of 1 s without the last exchange, and with it: the rates."""
    with network_alone():
        before = denoiser.denoise(counts, 1.0).rate
    return before, denoiser.denoise(counts, 1.0).rate
