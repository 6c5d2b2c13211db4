"""``python -m bluesky_denoise.training``: what ``bluesky-denoise train`` does, for torchrun."""

import typer

from bluesky_denoise.training.commands import train

if __name__ == "__main__":
    typer.run(train)
