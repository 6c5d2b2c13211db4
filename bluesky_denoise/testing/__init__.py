"""Help for tests of code that works on Bluesky documents; public."""

from bluesky_denoise.testing.denoiser import UnitDenoiser
from bluesky_denoise.testing.documents import DocumentCollector, assert_emitted, validate_documents

__all__ = ["DocumentCollector", "UnitDenoiser", "assert_emitted", "validate_documents"]
