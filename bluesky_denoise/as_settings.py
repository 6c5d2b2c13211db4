"""Settings, however they were given."""

from pathlib import Path
from typing import Any

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.settings import DenoiseSettings, overridden

__all__ = ["SettingsLike", "as_settings"]

SettingsLike = DenoiseSettings | str | Path
"""Settings, or a YAML file of them."""


def as_settings(settings: SettingsLike | None = None, **overrides: Any) -> DenoiseSettings:
    """Return settings that may be in a YAML file, with others by keyword on top of them.

    Raises
    ------
    SettingsError
        If they are something else, or the file cannot be read, or a setting is wrong.
    """
    if isinstance(settings, str | Path):
        return DenoiseSettings.from_yaml(settings, **overrides)
    if settings is None:
        return DenoiseSettings(**overrides)
    if not isinstance(settings, DenoiseSettings):
        raise SettingsError(
            f"Settings of a {type(settings).__name__} were given; expected DenoiseSettings, a "
            "YAML file of them, or keywords."
        )
    if not overrides:
        return settings
    given = {key: getattr(settings, key) for key in settings.model_fields_set}
    return DenoiseSettings(**overridden(given, overrides))
