"""A Bluesky document on its way, as callbacks take it."""

from collections.abc import Iterator, Mapping
from typing import Any

import event_model

__all__ = ["PAGES", "Document", "unpack_page"]

Document = tuple[str, Mapping[str, Any]]
"""Its name, such as ``"event"``, and what is in it."""

PAGES = ("event_page", "datum_page")
"""Names of documents that hold several others."""


def unpack_page(name: str, doc: Mapping[str, Any]) -> Iterator[Document]:
    """Yield the documents that a page holds."""
    for item in getattr(event_model, f"unpack_{name}")(doc):
        yield name.removesuffix("_page"), item
