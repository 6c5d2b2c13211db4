"""Every error this package raises on purpose, under one base class."""

__all__ = [
    "BackupError",
    "CheckpointError",
    "DenoiseError",
    "DenoiseFailed",
    "DenoiseTimeout",
    "ExposureNotFound",
    "FrameNotReady",
    "FrameShapeError",
    "FrameValueError",
    "MaskError",
    "ModelNotFound",
    "SettingsError",
    "TiledUnavailable",
]


class DenoiseError(Exception):
    """Base of the errors of this package; its subclasses derive from a builtin, too."""


class BackupError(DenoiseError, ValueError):
    """A backup file is damaged, or what it holds cannot be brought into Tiled."""


class SettingsError(DenoiseError, ValueError):
    """A setting is unknown, malformed, or contradicts another."""


class ModelNotFound(DenoiseError, LookupError):
    """No network or weights of the name asked for."""


class CheckpointError(DenoiseError, ValueError):
    """Weights are damaged, or do not fit the network that their card names."""


class FrameShapeError(DenoiseError, ValueError):
    """A frame's shape is not the one expected."""


class FrameValueError(DenoiseError, ValueError):
    """A frame holds values that are no detector counts."""


class MaskError(DenoiseError, ValueError):
    """A mask cannot be read, or does not fit the frames."""


class ExposureNotFound(DenoiseError, LookupError):
    """Neither the documents nor the settings tell the exposure time."""


class FrameNotReady(DenoiseError, TimeoutError):
    """A frame that the documents promise did not become readable in time."""


class TiledUnavailable(DenoiseError, ConnectionError):
    """Tiled could not be reached, or refused what was written."""


class DenoiseFailed(DenoiseError, RuntimeError):
    """Runs are not denoised, or not to their end, as the denoiser has died."""


class DenoiseTimeout(DenoiseError, TimeoutError):
    """Denoising did not finish within the time given."""
