"""What the benchmarks of a network take from the command line: its weights, and how many frames."""

import argparse

import numpy as np

from bluesky_denoise.denoiser import Denoiser

__all__ = ["judged", "with_and_without"]


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
    parser.add_argument("--non-local", action="store_true")
    given = parser.parse_args()
    denoiser = Denoiser.load(given.weights, threads=1, non_local=given.non_local)
    number = getattr(given, what)
    print(f"weights {denoiser.weights_sha256[:12]}, {number} {what} each")
    return denoiser, number


def with_and_without(denoiser: Denoiser, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Denoise a frame of 1 s as it is done by default, and with `non_local`: the rates."""
    rates = []
    was = denoiser.non_local
    for denoiser.non_local in (False, True):
        rates.append(denoiser.denoise(counts, 1.0).rate)
    denoiser.non_local = was
    return rates[0], rates[1]
