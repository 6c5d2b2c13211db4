"""Resource documents of ophyd, as Bluesky's `TiledWriter` needs them."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["RESOURCE_PATCHES", "end_folder"]


def end_folder(resource: Mapping[str, Any]) -> dict[str, Any]:
    """End the folder of a series of files with the slash that ophyd leaves out.

    areaDetector makes the name of a file from ``%s%s_%6.6d.tiff``, a folder with its slash, a name
    and a number. bluesky-tiled-plugins puts name and number right behind the folder that the
    Resource has, which for ``/data/raw`` gives ``/data/rawscan_000000.tiff``.

    Parameters
    ----------
    resource :
        A Resource document, such as those of ``FileStoreTIFF`` (``AD_TIFF``) and
        ``FileStoreHDF5Single`` (``AD_HDF5_SINGLE``); others are returned as they are.
    """
    template = str(resource.get("resource_kwargs", {}).get("template", ""))
    path = resource.get("resource_path", "")
    if not template.startswith("%s%s") or path.endswith("/"):
        return dict(resource)
    return {**resource, "resource_path": f"{path}/"}


RESOURCE_PATCHES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "resource": end_folder
}
"""For ``TiledWriter(client, patches=RESOURCE_PATCHES)``."""
