"""Whether rows of an HDF5 dataset are stored: HDF5 reads what is not as zeros, without a word.

Writers that know the number of frames make room for all of them at the start, and virtual
datasets over the files of several writers show frames that one of them still lacks.
"""

import os
import re
from pathlib import Path
from typing import Any

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
        mappings = dataset.virtual_sources()
        return all(_is_stored(dataset, mappings, n) for n in range(rows.start, rows.stop))
    if dataset.chunks is None:
        return True
    sizes = dataset.chunks
    for chunk in dataset.iter_chunks((rows, *[slice(None)] * (dataset.ndim - 1))):
        corner = tuple(s.start // n * n for s, n in zip(chunk, sizes, strict=True))
        if dataset.id.get_chunk_info_by_coord(corner).byte_offset is None:
            return False
    return True


def _is_stored(dataset: h5py.Dataset, mappings: list[Any], row: int) -> bool:
    """Return whether each source of this row of a virtual dataset has what it brings."""
    has = [_has(dataset, mapping, row) for mapping in mappings if _brings(mapping, row)]
    return bool(has) and all(has)


def _brings(mapping: Any, row: int) -> bool:
    return not _is_regular(mapping.vspace) or _place(mapping.vspace, row) is not None


def _has(dataset: h5py.Dataset, mapping: Any, row: int) -> bool:
    """Return whether a source has what it brings to a row; where that is not known, it has."""
    if not (_is_regular(mapping.vspace) and _is_regular(mapping.src_space)):
        return True
    if _NUMBERED.search(mapping.file_name + mapping.dset_name) or _ELSEWHERE in os.environ:
        return True
    here = Path(dataset.file.filename)
    path = here if mapping.file_name == "." else here.parent / mapping.file_name
    if not path.is_file():
        return False
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        if mapping.dset_name not in file:
            return False
        source = file[mapping.dset_name]
        if source.ndim < dataset.ndim:  # one frame
            return are_stored(source, slice(0, len(source)))
        first = _row(mapping.src_space, _place(mapping.vspace, row))
        return first < len(source) and are_stored(source, slice(first, first + 1))


def _is_regular(space: h5py.h5s.SpaceID) -> bool:
    """Return whether what is selected has one stride on each axis."""
    return _is_whole(space) or (
        space.get_select_type() == h5py.h5s.SEL_HYPERSLABS and space.is_regular_hyperslab()
    )


def _is_whole(space: h5py.h5s.SpaceID) -> bool:
    return space.get_select_type() == h5py.h5s.SEL_ALL


def _place(space: h5py.h5s.SpaceID, row: int) -> int | None:
    """Return how many selected rows come before this one; None if it is not selected."""
    if _is_whole(space):
        return row
    start, stride, count, block = (values[0] for values in space.get_regular_hyperslab())
    turn, within = divmod(row - start, stride) if count > 1 else (0, row - start)
    if row < start or turn >= count or within >= block:
        return None
    return turn * block + within


def _row(space: h5py.h5s.SpaceID, place: int) -> int:
    """Return the row before which so many are selected."""
    if _is_whole(space):
        return place
    start, stride, _, block = (values[0] for values in space.get_regular_hyperslab())
    turn, within = divmod(place, block)
    return start + turn * stride + within
