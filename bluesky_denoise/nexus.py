"""A denoised run as a NeXus file: raw and denoised frames, numbers, mask, provenance."""

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bluesky_denoise.catalog import FROM_ARCHIVE, DenoisedStream, as_tiled_run, find_stream
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.in_tiled.archive import ArchivedStream, find_raw
from bluesky_denoise.in_tiled.event_array import rows_at_once
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.sources.frame_keys import SIGMA, is_sigma, raw_key

__all__ = ["export_nexus"]

_PACKED = {"compression": "gzip", "compression_opts": 4, "shuffle": True}  # read everywhere


def export_nexus(
    run: Any,
    denoised: DenoisedStream | str,
    path: str | Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a run with its denoised stream to a NeXus file, which silx and NeXpy open.

    For each data key of frames ``<key>`` (NXdata; raw, counts) and ``<key>_denoised``
    (counts / s, with ``rate_errors`` where the stream has standard errors), both against
    the first motor of the scan. ``instrument/<key>`` (NXdetector) has the exposure times
    and, if any frame could be denoised, the ``pixel_mask``; ``numbers`` (NXdata) the ROI
    intensities with their errors; ``table`` (NXcollection) every column of the stream;
    ``denoise`` (NXprocess) what made it, with all settings; ``bluesky`` (NXcollection) the
    start and stop documents as JSON.

    Parameters
    ----------
    run :
        The raw run, from Tiled.
    denoised :
        One of its `denoised_streams`, or the name of one, such as ``"denoised"``.
    path :
        The file; it appears when it is complete. Its folder is made, if there is none.
    progress :
        Called with the rows of frames written, and with how many there are.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    SettingsError
        If the file exists or is a folder, or the stream has no events, or is of another kind.
    DenoiseError
        If the run has no such stream, or Tiled does not tell which raw frames it is of.
    OSError
        If the file cannot be written; nothing is left of it.

    References
    ----------
    https://manual.nexusformat.org/classes/base_classes/NXdata.html
    """
    path, run = Path(path), as_tiled_run(run)
    if isinstance(denoised, str):
        denoised = find_stream(run, denoised)
    elif not isinstance(denoised, DenoisedStream):  # such as run["denoised"]
        raise SettingsError(
            f"A {type(denoised).__name__} was given; expected one of `denoised_streams(run)`, or "
            "the name of one, such as 'denoised'."
        )
    if path.is_dir():
        raise SettingsError(f"{path} is a folder; expected the name of a file.")
    if path.exists():
        raise SettingsError(f"{path} exists; remove it, or write to another file.")
    stored, raw = StoredStream(denoised.stream), find_raw(run, denoised.raw_stream)
    table = stored.read_table()
    if table is None or table.empty:  # that has been begun has no rows yet
        raise SettingsError(f"The stream {denoised.name!r} has no events; nothing to export.")
    rows = len(table)
    stamps = {"time", "seq_num", *(f"ts_{key}" for key in stored.metadata["data_keys"])}
    columns = {key: table[key].to_numpy() for key in table.columns if key not in stamps}
    frames = {key: array for key, array in stored.arrays.items() if array.ndim >= 3}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _Disk(part) as disk:
            try:
                with h5py.File(disk, "w") as file:
                    entry = _entry(file, run)
                    axes = _axes(run.metadata["start"], columns, denoised)
                    keys = [
                        key for key in frames if not is_sigma(key, stored.metadata["data_keys"])
                    ]
                    for i, key in enumerate(keys):
                        for written in _frames(entry, raw, denoised, frames, key, axes, columns):
                            disk.check(path)
                            progress(i * rows + written, len(keys) * rows)
                    _numbers(entry, columns, axes)
                    _table(entry, columns, table["time"].to_numpy())
                    _provenance(entry, denoised)
                    if "default" not in entry.attrs:
                        entry.attrs["default"] = "numbers"
            finally:  # rather than what HDF5 makes of it
                disk.check(path)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return path


class _Disk(io.FileIO):
    """A new file that hides from HDF5 that it cannot be written.

    What HDF5 has failed to write it tries again when Python ends, and takes that down.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all, as long as there is room."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self._error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self._error = error
        self.seek(len(left), os.SEEK_CUR)
        return size

    def check(self, path: Path) -> None:
        """Raise where something could not be written to what is to be `path`."""
        if self._error is not None:
            raise OSError(f"{path} cannot be written: {self._error.strerror}") from self._error


def _name(key: str) -> str:
    """Return a data key as a name that NeXus allows: those of ophyd-async have hyphens."""
    name = re.sub(r"\W", "_", key)
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"


def _free(parent: h5py.Group, key: str) -> str:
    """Return the name of a data key, another one where it is taken: a motor may be a `title`."""
    name = _name(key)
    while name in parent:
        name += "_"
    return name


def _group(parent: h5py.Group, name: str, nexus_class: str, **attributes: Any) -> h5py.Group:
    group = parent.create_group(_free(parent, name))
    group.attrs.update({"NX_class": nexus_class, **attributes})
    return group


def _text(value: Any) -> str:
    """Return a text without NUL, which HDF5 does not take; EPICS may fill up texts with it."""
    return str(value).replace("\0", "")


def _field(parent: h5py.Group, name: str, value: Any, units: str = "") -> h5py.Dataset:
    if isinstance(value, str):
        value = _text(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OUT":
        value = np.array([_text(item) for item in value], dtype=h5py.string_dtype())
    dataset = parent.create_dataset(_free(parent, name), data=value)
    if units:
        dataset.attrs["units"] = units
    return dataset


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _entry(file: h5py.File, run: Any) -> h5py.Group:
    start, stop = run.metadata["start"], run.metadata.get("stop") or {}
    now = datetime.now(UTC).isoformat()
    file.attrs.update(
        {"NX_class": "NXroot", "default": "entry", "file_time": now, "creator": "bluesky-denoise"}
    )
    entry = _group(file, "entry", "NXentry")
    title = f"{start.get('plan_name', 'run')} {start.get('scan_id', '')}".strip()
    _field(entry, "title", title)
    _field(entry, "entry_identifier", start["uid"])
    _field(entry, "start_time", _when(start["time"]))
    if "time" in stop:
        _field(entry, "end_time", _when(stop["time"]))
    sample = start.get("sample")
    if sample:
        group = _group(entry, "sample", "NXsample")
        name = sample.get("name", "") if isinstance(sample, Mapping) else sample
        _field(group, "name", str(name))
    documents = _group(entry, "bluesky", "NXcollection")
    for name, document in (("start", start), ("stop", stop)):
        _field(documents, name, json.dumps(dict(document), default=str))
    return entry


def _axes(
    start: Mapping[str, Any], columns: Mapping[str, np.ndarray], denoised: DenoisedStream
) -> dict[str, tuple[np.ndarray, str]]:
    """Return what was moved, the first first; without motors the number of the event."""
    dimensions = (start.get("hints") or {}).get("dimensions") or []
    hinted = [field for fields, *_ in dimensions for field in fields]  # some plans say more
    motors = start.get("motors") or []
    named = [key for key in (*hinted, *motors) if isinstance(key, str) and key in columns]
    keys = [key for key in dict.fromkeys(named) if columns[key].dtype.kind in "fiu"]
    keys = keys or ["raw_seq_num"]
    specs = denoised.stream.base.metadata.get("data_keys", {})
    return {key: (columns[key], specs.get(key, {}).get("units") or "") for key in keys}


def _add_axes(group: h5py.Group, axes: Mapping[str, tuple[np.ndarray, str]]) -> str:
    """Write what was moved beside a signal; return the name of the first."""
    names = [_leaf(_field(group, key, values, units)) for key, (values, units) in axes.items()]
    group.attrs.update({f"{name}_indices": 0 for name in names})
    return names[0]


def _leaf(item: h5py.Dataset | h5py.Group) -> str:
    return item.name.rsplit("/", 1)[-1]


def _frames(
    entry: h5py.Group,
    raw: ArchivedStream | None,
    denoised: DenoisedStream,
    frames: Mapping[str, Any],
    key: str,
    axes: Mapping[str, tuple[np.ndarray, str]],
    columns: Mapping[str, np.ndarray],
) -> Iterator[int]:
    """Write the frames of one data key; yield after each few rows."""
    rate, rows = frames[key], len(columns["raw_seq_num"])
    shape = _squeezed((rows, *rate.shape[1:]))
    kind = _group(entry, f"{key}_denoised", "NXdata", signal="rate")
    if "default" not in entry.attrs:
        entry.attrs["default"] = _leaf(kind)
    arrays: list[tuple[Any, h5py.Dataset, np.ndarray | None]] = [
        (rate, _dataset(kind, "rate", shape, np.float32, "counts / s"), None)
    ]
    specs = denoised.stream.base.metadata["data_keys"]
    if key + SIGMA in frames and is_sigma(key + SIGMA, specs):
        errors = _dataset(kind, "rate_errors", shape, np.float32, "counts / s")
        arrays.append((frames[key + SIGMA], errors, None))
    _describe(kind, axes, len(shape), f"{key}, denoised by {denoised.model}")
    of_raw = raw_key(key, specs.get(key, {}))
    counts = None
    if raw is not None and of_raw in raw.stored.nodes:
        counts = _group(entry, key, "NXdata", signal="counts")
        events = raw.stored.frames(of_raw)
        from_archive = bool(denoised.provenance.get(FROM_ARCHIVE))
        seq_nums = columns["raw_seq_num"].astype(int)
        rows_of_raw = raw.rows_of(seq_nums, len(events), from_archive=from_archive)
        arrays.append(
            (events, _dataset(counts, "counts", shape, events.dtype, "counts"), rows_of_raw)
        )
        _describe(counts, axes, len(shape), f"{key}, raw")
    masked = np.ones(shape[-2:], bool)
    each = rows_at_once(*(source for source, *_ in arrays))
    for first in range(0, rows, each):
        last = min(first + each, rows)
        for source, dataset, order in arrays:
            dataset[first:last] = _read(source, first, last, order).reshape(-1, *shape[1:])
        seen = arrays[0][1][first:last].reshape(-1, *shape[-2:])
        masked &= ~np.isfinite(seen).any(axis=0)
        yield last
    detector = _instrument(entry, key)
    if counts is not None:
        detector["data"] = counts["counts"]
    if not masked.all():  # else none could be denoised, and that tells of no pixel
        mask = _field(detector, "pixel_mask", masked.astype(np.uint32))
        mask.attrs["description"] = "1: never denoised, which is a masked pixel"
    if f"{key}_exposure_s" in columns:
        _field(detector, "count_time", columns[f"{key}_exposure_s"], "s")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the axis of frames in an event where there is one frame in each."""
    return (shape[0], *shape[-2:]) if len(shape) == 4 and shape[1] == 1 else shape


def _read(source: Any, first: int, last: int, order: np.ndarray | None) -> np.ndarray:
    """Read rows; of raw frames those that the denoised ones are of."""
    if order is None:
        return np.asarray(source[first:last])
    wanted = order[first:last]
    low = int(wanted.min())
    return np.asarray(source[low : int(wanted.max()) + 1])[wanted - low]


def _dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, units: str
) -> h5py.Dataset:
    chunks = (1,) * (len(shape) - 2) + shape[-2:]
    dataset = group.create_dataset(name, shape, dtype, chunks=chunks, **_PACKED)
    dataset.attrs["units"] = units
    return dataset


def _describe(group: h5py.Group, axes: Mapping[str, Any], ndim: int, title: str) -> None:
    _field(group, "title", title)
    first = _add_axes(group, axes)
    group.attrs["axes"] = [first, *["."] * (ndim - 1)]


def _instrument(entry: h5py.Group, key: str) -> h5py.Group:
    if "instrument" not in entry:
        _group(entry, "instrument", "NXinstrument")
    return _group(entry["instrument"], key, "NXdetector")


def _numbers(
    entry: h5py.Group,
    columns: Mapping[str, np.ndarray],
    axes: Mapping[str, tuple[np.ndarray, str]],
) -> None:
    """Write the intensities of the ROIs, or the denoised totals, as a plot."""
    shown = [key for key in columns if f"{key}_error" in columns and key.endswith("_intensity")]
    shown = shown or [key for key in columns if key.endswith("_denoised_total")]
    if not shown:
        return
    group = _group(entry, "numbers", "NXdata")
    names = []
    for key in shown:
        field = _field(group, key, columns[key], "counts / s")
        names.append(_leaf(field))
        if f"{key}_error" in columns:
            _field(group, f"{names[-1]}_errors", columns[f"{key}_error"], "counts / s")
    group.attrs["signal"] = names[0]
    if names[1:]:
        group.attrs["auxiliary_signals"] = names[1:]
    _describe(group, axes, 1, "from raw counts")


def _table(entry: h5py.Group, columns: Mapping[str, np.ndarray], time: np.ndarray) -> None:
    group = _group(entry, "table", "NXcollection")
    _field(group, "time", time, "s")
    for key, values in columns.items():
        _field(group, key, values)


def _provenance(entry: h5py.Group, denoised: DenoisedStream) -> None:
    group = _group(entry, "denoise", "NXprocess")
    _field(group, "program", "bluesky-denoise")
    _field(group, "version", denoised.version)
    _field(group, "date", _when(denoised.time))
    for name in ("model", "weights_sha256", "run_uid", "reason"):
        _field(group, name, getattr(denoised, name))
    _field(group, "exit_status", denoised.exit_status or "not ended")
    note = _group(group, "provenance", "NXnote")
    _field(note, "type", "application/json")
    _field(note, "data", json.dumps(denoised.provenance, default=str))
