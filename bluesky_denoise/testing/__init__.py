"""Help for tests of code that works on Bluesky documents; public."""

from .denoiser import UnitDenoiser
from .documents import DocumentCollector, assert_emitted, validate_documents

__all__ = ["DocumentCollector", "UnitDenoiser", "assert_emitted", "validate_documents"]
