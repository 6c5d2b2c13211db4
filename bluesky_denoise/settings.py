"""What a user sets: validated, from keyword arguments or a YAML file."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from yaml import YAMLError

from bluesky_denoise.columns import LONGEST_OF_KEY, MOST_REGIONS, check_columns
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.masks import load_mask
from bluesky_denoise.settings_errors import EXPECTED, expected, explain
from bluesky_denoise.settings_rois import Rois, by_data_key, check_names, check_seen
from bluesky_denoise.support.directories import check_writable, data_directory
from bluesky_denoise.support.run_directories import check_run_directory, names_keys
from bluesky_denoise.support.yaml_files import read_yaml
from bluesky_denoise.tiled_address import check_address, server_and_key

__all__ = ["DenoiseSettings", "overridden"]

Seconds = Annotated[FiniteFloat, Field(gt=0)]


class DenoiseSettings(BaseModel):
    """Settings of a :class:`DenoiseRouter` or :class:`DenoiseProcess`.

    Raises
    ------
    SettingsError
        If a key is unknown or a value is not allowed; the message names the key,
        and the file where there is one.

    Examples
    --------
    >>> DenoiseSettings(data_keys=["pilatus_image"], exposure_s=1.0).streams
    ('primary',)
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, validate_default=True
    )

    data_keys: tuple[str, ...] | None = None
    """What to denoise: data keys, or detectors by name. ``"det"`` stands for the image key of
    the device, such as the ``det_image`` of an areaDetector; denoised frames, settings by data
    key, and numbers then have that name. None: every two-dimensional detector key of 16 x 16
    or more."""
    streams: tuple[str, ...] = ("primary",)
    """Streams to denoise."""
    exposure_s: Seconds | dict[str, Seconds] | None = None
    """Seconds, for all data keys, or by data key or detector; used where the documents do not
    say."""
    exposure_keys: tuple[str, ...] = ()
    """More keys (event or configuration) that hold an exposure time, looked at first."""
    mask: Path | np.ndarray | dict[str, Path | np.ndarray] | None = None
    """Invalid pixels (nonzero), (H, W): array, or .npy / .tif / .h5 file; or one by data key, or
    by detector."""

    rois: Annotated[Rois, BeforeValidator(by_data_key), AfterValidator(check_names)] = Field(
        default_factory=dict
    )
    """Regions whose intensity goes into each event, as ``{"satellite": ROI(rows=(80, 96),
    cols=(200, 216))}`` for the first denoised data key, or by data key (or detector) and name."""

    model: str = "default"
    """Name of weights that ship with the package, path of a safetensors file, or
    ``"package.module:factory"`` for a denoiser of your own."""
    device: str | None = None
    """``"cuda"``, ``"cuda:1"``, ``"cpu"``; None: CUDA where there is one, else CPU."""
    threads: PositiveInt | None = None
    """CPU threads of the denoiser; None: all cores but one, which the RunEngine keeps."""

    tiled_uri: str | None = None
    """Tiled server, or any of its web pages; None: nothing is written to Tiled."""
    tiled_api_key: SecretStr | None = None
    """None: from ``tiled_uri``, or the environment variable ``TILED_API_KEY``."""
    tiled_layout: Literal["stream", "run"] = "stream"
    """``"stream"``: into the raw run; ``"run"``: a derived run of its own."""
    tiled_container: str = "denoised"
    """For the layout ``"run"``: path of the container of derived runs, made if missing."""
    frames_directory: Path | None = None
    """Where denoised frames are saved as HDF5; the Tiled server must be able to read it. Names in
    braces are keys of the start document: ``/data/{proposal}/denoised``.
    None: pixels go through HTTP, which is slower, for sites without a shared file system."""
    save_sigma: bool = False
    """Save the standard error of each pixel too, as ``<data key>_sigma`` beside the frames.
    This doubles what is written: leave it off for fast scans, and `reprocess` those where it
    is wanted. Intensities of `rois` have their errors either way."""
    backup_directory: Path | None = None
    """Where documents wait when Tiled is down; None: beside the frames, or in the user's
    data directory."""

    audit: bool = True
    """Look in each frame for what denoising may have added or removed; what fails is marked.
    It takes longer than denoising, so that it is left out where the next frame waits
    already; `denoise_audit` of each event tells."""
    rate_range: tuple[float, float] | dict[str, tuple[float, float]] | None = None
    """Least and most counts / s that are expected on average in a valid pixel, or both by data
    key or detector. Frames outside of it fail the audit: nothing else can tell a wrong exposure
    time, or that there is no beam."""
    batch_size: PositiveInt = 16
    """Most frames that go through the network at once."""
    queue_size: PositiveInt = 128
    """Most events with frames that may wait for the denoiser; then `queue_wait_s` applies."""
    queue_wait_s: float = Field(default=1.0, ge=0)
    """How long a run may be held up, seconds, before frames are skipped."""
    read_timeout_s: PositiveFloat = 10.0
    """How long a frame may take to become readable in its file, seconds."""
    node_timeout_s: PositiveFloat = 60.0
    """Longest time until Tiled has the raw run, or takes what waits of a denoised one, seconds."""

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(explain(error, values, "DenoiseSettings")) from None

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read settings from a YAML file.

        Parameters
        ----------
        path :
            The file; relative paths in it are relative to its directory. That of a profile,
            `beamline.yaml`, has the settings under `denoise`, and `tiled_uri` beside them.
        **overrides :
            Settings that take precedence over those of the file.

        Raises
        ------
        SettingsError
            If the file cannot be read, or a setting is wrong.
        """
        path = Path(path)
        try:
            values = read_yaml(path) or {}
        except (OSError, YAMLError) as error:
            raise SettingsError(f"Settings file {path} cannot be read: {error}") from None
        address, where = {}, str(path)
        if isinstance(values, dict) and "denoise" in values:
            address = {"tiled_uri": values["tiled_uri"]} if values.get("tiled_uri") else {}
            values, where = values["denoise"] or {}, f"{path}, denoise"
        if not isinstance(values, dict):
            raise SettingsError(
                f"Settings file {where} holds {type(values).__name__}; expected `key: value` lines."
            )
        return cls.from_values({**values, **address}, path.parent, where, **overrides)

    @classmethod
    def from_values(
        cls,
        values: Mapping[str, Any],
        directory: Path,
        where: str = "DenoiseSettings",
        **overrides: Any,
    ) -> Self:
        """Make settings of what a file of other things has for them.

        Parameters
        ----------
        values :
            Settings as YAML gives them.
        directory :
            Relative paths in them are relative to it.
        where :
            What errors begin with, such as the name of the file.
        **overrides :
            Settings that take precedence.

        Raises
        ------
        SettingsError
            If a setting is wrong.
        """
        given = {str(key): value for key, value in values.items()}
        paths = ["frames_directory", "backup_directory", "mask"]
        if str(given.get("model", "")).endswith(".safetensors"):
            paths.append("model")
        placed = {key: _relative_to(directory, given[key]) for key in paths if key in given}
        try:
            return cls(**overridden(given | placed, overrides))
        except SettingsError as error:
            raise SettingsError(str(error).replace("DenoiseSettings", where, 1)) from None

    @model_validator(mode="before")
    @classmethod
    def _split_api_key(cls, values: Any) -> Any:
        """Take the key out of the address, so that no log or document can show it.

        The address of a web page becomes that of its server.
        """
        if not isinstance(values, dict) or not isinstance(values.get("tiled_uri"), str):
            return values
        try:
            clean, own = server_and_key(values["tiled_uri"])
        except ValueError:  # `_is_http` says so
            return values
        values = {**values, "tiled_uri": clean}
        # The key in an address is that of its server, whatever key there was for another.
        key = own or values.get("tiled_api_key") or os.environ.get("TILED_API_KEY")
        if key:
            values["tiled_api_key"] = key
        return values

    @field_validator(
        *("exposure_s", "threads", "rate_range", "batch_size", "queue_size"),
        *("queue_wait_s", "read_timeout_s", "node_timeout_s"),
        mode="before",
    )
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what YAML makes of `yes` or `on`: it would count as 1."""
        parts = value.values() if isinstance(value, dict) else [value]
        numbers = [
            n for part in parts for n in (part if isinstance(part, list | tuple) else [part])
        ]
        if any(isinstance(number, bool) for number in numbers):
            raise ValueError(f"true and false are no numbers; expected {expected(info)}")
        return value

    @field_validator("tiled_uri")
    @classmethod
    def _is_http(cls, uri: str | None) -> str | None:
        try:
            check_address(uri or "http://none")
        except ValueError as error:
            raise ValueError(f"{error}; expected {EXPECTED['tiled_uri']}") from None
        return uri or None

    @field_validator("data_keys", "streams", "exposure_keys", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("data_keys", "streams")
    @classmethod
    def _is_not_empty(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and not names:
            raise ValueError("expected one name at least; nothing would be denoised")
        return names

    @field_validator("data_keys", "streams", "exposure_keys")
    @classmethod
    def _has_names(
        cls, names: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        if any(not name.strip() for name in names or ()):
            raise ValueError(f"a name is empty; expected {expected(info)}")
        return names

    @field_validator("data_keys")
    @classmethod
    def _begin_columns(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_columns(names or (), LONGEST_OF_KEY)
        return names

    @field_validator("rate_range")
    @classmethod
    def _is_a_range(cls, limits: Any) -> Any:
        for low, high in limits.values() if isinstance(limits, dict) else [limits or (0, 1)]:
            if not 0 <= low < high:
                raise ValueError(f"expected 0 <= least < most, not {low:g} and {high:g}")
        return limits

    @field_validator("rois")
    @classmethod
    def _can_be_seen(cls, rois: Rois, info: ValidationInfo) -> Rois:
        check_seen(rois, lambda key: _of(info.data.get("mask"), (key,)))
        return rois

    @field_validator("tiled_layout")
    @classmethod
    def _has_room(cls, layout: str, info: ValidationInfo) -> str:
        number = sum(map(len, info.data.get("rois", {}).values()))
        if layout == "stream" and info.data.get("tiled_uri") and number > MOST_REGIONS:
            raise ValueError(
                f"`rois` has {number} regions, and a table of Tiled has columns for "
                f"{MOST_REGIONS}; leave some out"
            )
        return layout

    @field_validator("frames_directory", "backup_directory", mode="before")
    @classmethod
    def _is_named(cls, directory: Any, info: ValidationInfo) -> Any:
        """Refuse an empty text, which would be the folder that Python was started in."""
        if isinstance(directory, str) and not directory.strip():
            raise ValueError(f"expected {expected(info)}, or nothing")
        return directory

    @field_validator("frames_directory")
    @classmethod
    def _is_an_address(cls, directory: Path | None) -> Path | None:
        if directory is not None and set("#?") & set(str(directory.absolute())):
            raise ValueError(f"{directory} has a # or a ?, after which Tiled would read no file")
        return directory

    @field_validator("frames_directory", "backup_directory")
    @classmethod
    def _is_writable(cls, directory: Path | None, info: ValidationInfo) -> Path | None:
        if directory is None:
            return None
        given = directory.expanduser().absolute()
        # Tiled takes no `..`. Symlinks stay, since it may see a share under the link, unless they
        # decide where `..` leads.
        plain, resolved = os.path.normpath(given), os.path.realpath(given)
        directory = Path(plain if os.path.realpath(plain) == resolved else resolved)
        if info.field_name == "frames_directory" and names_keys(directory):
            check_run_directory(directory)  # each run has its own
            return directory
        try:
            check_writable(directory)
        except OSError as error:
            raise ValueError(f"{directory} cannot be written to: {error.strerror}") from None
        return directory

    @field_validator("mask", mode="before")
    @classmethod
    def _is_loadable(cls, mask: Any) -> Any:
        """Load at once: a bad mask must not wait for the first frame to show."""
        if mask is None:
            return None
        if isinstance(mask, dict):
            return {str(key): cls._is_loadable(value) for key, value in mask.items()}
        if not isinstance(mask, str | Path | np.ndarray):
            raise ValueError(f"expected {EXPECTED['mask']}")
        return load_mask(mask)

    def mask_of(self, *names: str) -> np.ndarray | None:
        """Return the mask of frames, (H, W) bool, True where invalid; or None.

        Parameters
        ----------
        *names :
            What the frames may be called here; the first that is found counts.
        """
        return _of(self.mask, names)

    def exposure_of(self, *names: str) -> float | None:
        """Return the exposure time set for frames, seconds; or None. As `mask_of`."""
        return _of(self.exposure_s, names)

    def rate_range_of(self, *names: str) -> tuple[float, float] | None:
        """Return what mean rate is expected, counts / s and pixel; or None. As `mask_of`."""
        return _of(self.rate_range, names)

    def rois_of(
        self, data_keys: Sequence[str], also: Mapping[str, Sequence[str]] | None = None
    ) -> Rois:
        """Return, for each of the data keys that a stream has, its regions by name.

        Parameters
        ----------
        data_keys :
            The first has the regions that are set without a data key.
        also :
            By data key, what else its frames may be called here.
        """
        also = also or {}
        regions: Rois = {key: {} for key in data_keys}
        for key, of_key in regions.items():
            for name in (key, *also.get(key, ())):
                of_key.update(self.rois.get(name, {}))
        if data_keys:
            regions[data_keys[0]] |= self.rois.get("*", {})
        return regions

    @property
    def backup_path(self) -> Path:
        """Where documents wait when Tiled is down."""
        if self.backup_directory is not None:
            return self.backup_directory
        if self.frames_directory is not None and not names_keys(self.frames_directory):
            return self.frames_directory / "backup"
        return data_directory() / "bluesky_denoise" / "backup"

    def redact(self, text: str) -> str:
        """Return a text without the key of Tiled."""
        key = self.tiled_api_key
        return text.replace(key.get_secret_value(), "***") if key else text

    def describe(self) -> dict[str, Any]:
        """Return the settings that shape the result, as JSON types without secrets.

        They go into the start document of every derived run.
        """
        shaping = {"data_keys", "streams", "exposure_s", "exposure_keys", "model", "rois"}
        shaping |= {"audit", "rate_range", "save_sigma"}
        if not self.rois:  # results are those of versions without them
            shaping.remove("rois")
        described = self.model_dump(include=shaping, mode="json", exclude_none=True)
        if self.mask is not None:
            described["mask"] = _summary(self.mask)
        return described

    def __eq__(self, other: object) -> bool:
        """Tell whether all is set alike; of arrays as masks, `==` is no one answer."""
        if not isinstance(other, DenoiseSettings):
            return NotImplemented
        one, two = ({**vars(each), "mask": _summary(each.mask)} for each in (self, other))
        return one == two


def overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others in their place; the key of one server is not for another."""
    kept = dict(values)
    if "tiled_uri" in overrides:
        kept.pop("tiled_api_key", None)
    return kept | dict(overrides)


def _of(value: Any, names: Sequence[str]) -> Any:
    """Return what is set for frames: for all alike, or by name."""
    if not isinstance(value, dict):
        return value
    return next((value[name] for name in names if name in value), None)


def _summary(mask: Any) -> Any:
    """Name a mask, or those by data key, so that another one has another name."""
    if not isinstance(mask, np.ndarray):
        return mask and {key: _summary(of_key) for key, of_key in mask.items()}
    digest = hashlib.sha256(np.packbits(mask != 0).tobytes()).hexdigest()
    return f"array of shape {mask.shape}, sha256 {digest[:16]}"


def _relative_to(directory: Path, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _relative_to(directory, item) for key, item in value.items()}
    return str(directory / Path(value).expanduser()) if isinstance(value, str) else value
