"""Those who listen to the documents of derived runs."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from bluesky.run_engine import Dispatcher
from event_model import DocumentNames

__all__ = ["Subscribers"]

logger = logging.getLogger(__name__)


class Subscribers:
    """Call functions with documents; one that fails keeps them from no other."""

    def __init__(self) -> None:
        self._dispatcher = Dispatcher()
        self._dispatcher.cb_registry.ignore_exceptions = True
        self._functions: dict[int, Callable] = {}  # the dispatcher holds them weakly

    def subscribe(self, func: Callable[[str, Mapping[str, Any]], Any], name: str = "all") -> int:
        """Call `func` with each document, or with those of one name; returns a token."""
        token = self._dispatcher.subscribe(func, name)
        self._functions[token] = func
        return token

    def unsubscribe(self, token: int) -> None:
        """Undo `subscribe`."""
        self._dispatcher.unsubscribe(token)
        self._functions.pop(token, None)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Hand on a document; what a function raises is logged."""
        for error, _ in self._dispatcher.cb_registry.process(DocumentNames[name], name, doc):
            logger.error(
                "A subscriber of the denoised documents failed on a %s", name, exc_info=error
            )
