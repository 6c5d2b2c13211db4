"""What :mod:`bluesky_denoise.roi` measures with: photons of a region, and the shape of a peak."""
