"""CNN denoising of detector frames on Bluesky's document stream."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("bluesky-denoise")

# Public name -> module that defines it. Nothing heavy (torch, tiled) is imported
# before it is asked for, so that `import bluesky_denoise` stays instant.
_EXPORTS = {
    "DenoiseError": "errors",
    "DenoiseProcess": "process",
    "DenoiseRouter": "router",
    "DenoiseSettings": "settings",
    "Denoised": "frames",
    "DenoisedBestEffortCallback": "best_effort",
    "DenoisedDetector": "denoised_detector",
    "DenoisedSignals": "devices",
    "DenoisedStream": "catalog",
    "Denoiser": "denoiser",
    "Frame": "frames",
    "FrameViewer": "viewer",
    "GapFiller": "gaps",
    "InTurn": "in_turn",
    "RawBackup": "backup",
    "ROI": "roi",
    "TiledSink": "tiled_sink",
    "audit_frame": "audit",
    "bus_denoiser": "from_bus",
    "denoised_streams": "catalog",
    "embedded_tiled": "server",
    "export_nexus": "nexus",
    "measure_roi": "roi",
    "measure_rois": "roi",
    "raw_writer": "raw_runs",
    "replay_backup": "tiled_sink",
    "reprocess": "reprocessing",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    try:
        module = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
