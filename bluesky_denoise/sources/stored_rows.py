"""Whether rows of an HDF5 dataset are stored: HDF5 reads what is not as zeros, without a word.

Writers that know the number of frames make room for all of them at the start, and virtual
datasets over the files of several writers show frames that one of them still lacks.
``docs/decisions/0015-a-place-is-no-frame.md`` has what can be told, and what cannot.
"""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import h5py

__all__ = ["are_stored"]

_ELSEWHERE = "HDF5_VDS_PREFIX"
_NUMBERED = re.compile(r"%\d*b")
"""A name in a virtual dataset that stands for a series of files or datasets."""


def are_stored(dataset: h5py.Dataset, rows: slice) -> bool:
    """Return whether something is stored for all of these rows.

    Parameters
    ----------
    dataset :
        Chunked, contiguous or virtual, rows on the first axis. Where rows share a chunk, the
        first that is stored speaks for all; contiguous ones count as stored.
    rows :
        ``slice(start, stop)``.
    """
    if dataset.is_virtual:
        return all(_is_brought(dataset, row) for row in range(rows.start, rows.stop))
    if dataset.chunks is None:
        return True
    if not _has_any_chunk(dataset):
        return False
    chunks = dataset.iter_chunks((rows, *(slice(0, n) for n in dataset.shape[1:])))
    return all(_has_chunk(dataset, tuple(part.start for part in chunk)) for chunk in chunks)


def _has_any_chunk(dataset: h5py.Dataset) -> bool:
    """Return whether any chunk is stored.

    Without one, `_has_chunk` would not know: HDF5 gives no size, and h5py takes what lies in memory
    for it.
    """
    if hasattr(dataset.id, "chunk_iter"):  # ends at the first
        return bool(dataset.id.chunk_iter(lambda _: True))
    return dataset.id.get_num_chunks() > 0  # HDF5 before 1.10.10, or 1.12.3


def _has_chunk(dataset: h5py.Dataset, place: tuple[int, ...]) -> bool:
    """Return whether the chunk around a place is stored, by asking for it without room for it.

    `get_chunk_info_by_coord` would go through all chunks before it.
    """
    try:
        dataset.id.read_direct_chunk(place, out=bytearray(0))
    except ValueError:  # it does not fit, so it is there
        return True
    except RuntimeError as error:
        if "not allocated" not in str(error):
            raise
        return False
    return True


# Virtual datasets


class _Rows(NamedTuple):
    """Rows that are selected: `turns` blocks of `block` rows, a stride apart."""

    start: int
    stride: int
    turns: int
    block: int

    def place(self, row: int) -> int | None:
        """Return how many selected rows come before this one; None if it is not selected."""
        turn, within = divmod(row - self.start, self.stride)
        if self.turns == 1:  # whatever the stride
            turn, within = 0, row - self.start
        if row < self.start or turn >= self.turns or within >= self.block:
            return None
        return turn * self.block + within

    def row(self, place: int) -> int:
        """Return the row before which so many are selected."""
        turn, within = divmod(place, self.block)
        return self.start + turn * self.stride + within


class _Mapping(NamedTuple):
    """Rows of a dataset in another file that are rows of a virtual one."""

    file: str
    dataset: str
    there: _Rows
    here: _Rows


_ALL = _Rows(0, 1, 1, 2**62)


def _is_brought(dataset: h5py.Dataset, row: int) -> bool:
    """Return whether each source of a row of a virtual dataset has it."""
    path = Path(dataset.file.filename)
    mappings = _mappings(path, dataset.name, path.stat().st_mtime_ns)
    if mappings is None or _ELSEWHERE in os.environ:
        return True  # not known
    has = [
        _has(path, mapping, place, dataset.ndim)
        for mapping in mappings
        if (place := mapping.here.place(row)) is not None
    ]
    return bool(has) and all(has)


# Kept: of a file with thousands of them, they take longer to list than a frame to read.
@lru_cache(maxsize=16)
def _mappings(path: Path, name: str, changed_ns: int) -> list[_Mapping] | None:
    """Return the sources of a virtual dataset; None if one of them is of another kind.

    `changed_ns` tells that a file is still the same.
    """
    found = []
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        for mapping in file[name].virtual_sources():
            there, here = _selected(mapping.src_space), _selected(mapping.vspace)
            if not (there and here) or _NUMBERED.search(mapping.file_name + mapping.dset_name):
                return None
            found.append(_Mapping(mapping.file_name, mapping.dset_name, there, here))
    return found


def _selected(space: h5py.h5s.SpaceID) -> _Rows | None:
    """Return the rows that are selected; None where they are not evenly spaced."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return _ALL
    if kind != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    return _Rows(*(values[0] for values in space.get_regular_hyperslab()))


def _has(virtual: Path, mapping: _Mapping, place: int, ndim: int) -> bool:
    """Return whether a source has the row at a place of those that it brings."""
    path = virtual if mapping.file == "." else virtual.parent / mapping.file
    if not path.is_file():
        return False
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        if mapping.dataset not in file:
            return False
        source = file[mapping.dataset]
        if source.ndim < ndim:  # one frame
            return are_stored(source, slice(0, len(source)))
        row = mapping.there.row(place)
        return row < len(source) and are_stored(source, slice(row, row + 1))
