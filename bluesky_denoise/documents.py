"""A Bluesky document on its way, as callbacks take it."""

from collections.abc import Mapping
from typing import Any

__all__ = ["Document"]

Document = tuple[str, Mapping[str, Any]]
"""Its name, such as ``"event"``, and what is in it."""
