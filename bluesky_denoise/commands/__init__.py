"""What stands behind the command ``bluesky-denoise``."""
