"""Addresses of Tiled servers, as they are typed, or copied from a browser."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

__all__ = ["check_address", "server_and_key", "without_api_key"]


def server_and_key(address: str) -> tuple[str, str | None]:
    """Take the key out of an address, so that no log or document can show it.

    Parameters
    ----------
    address :
        Of a server, or of a web page of it.

    Returns
    -------
    tuple
        The address of the server, and the key; None where there is none.

    Raises
    ------
    ValueError
        If it cannot be taken apart.
    """
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    key = query.pop("api_key", None)
    path = parts.path
    if "/api/" not in path:  # of a page that a browser shows
        path = re.sub(r"/ui(/.*)?$", "/api/v1", path)
    return urlunsplit(parts._replace(path=path, query=urlencode(query))), key


def check_address(address: str) -> None:
    """Raise `ValueError`, with the reason and no secret, if an address is none of a server."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ValueError("it has the name of a user before an @; Tiled takes a key alone")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no address" if "@" in address else f"got {address!r}")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"the port of {parts.netloc!r} is no number from 0 to 65535") from None


def without_api_key(text: str) -> str:
    """Return a text in which no address of Tiled has its key."""
    return re.sub(r"[?&]api_key=[^&#\s'\"]*", "", text)
