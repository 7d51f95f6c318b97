"""What values of an HDF5 file may take before they are read. The file is not trusted.

Sizes are checked before anything is allocated, and compressed pieces are unpacked no further than they say.
"""

from __future__ import annotations

import math
import zlib

import h5py

from sim.findings import Refused, refuse

#: Filters that only compress (HDF5's identifiers): deflate, shuffle, and the Fletcher checksum.
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


class Budget:
    """Bytes that the values of one file may still take."""

    def __init__(self, size: int, unpacked: int) -> None:
        """Allow a file of ``size`` bytes as many plain ones, and ``unpacked`` that are compressed or not written."""
        self._left = {"plain": size, "unpacked": unpacked}

    def spend(self, dataset: h5py.Dataset) -> None:
        """Raise :class:`Refused` for values that take more than is left, or lie outside the file."""
        layout, size = dataset.id.get_create_plist(), math.prod(dataset.shape) * dataset.dtype.itemsize
        kind = layout.get_layout()
        if layout.get_external_count() or kind == h5py.h5d.VIRTUAL:
            raise cannot("its values lie in another place")
        filters = [layout.get_filter(index)[0] for index in range(layout.get_nfilters())]
        if set(filters) - FILTERS:
            raise cannot(f"filter {min(set(filters) - FILTERS)} is not one that is known")
        if len(filters) > len(set(filters)):
            raise cannot("it is filtered twice in the same way")
        chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if kind == h5py.h5d.CHUNKED else 0
        plain = not filters and dataset.id.get_storage_size() >= size
        budget = "plain" if plain else "unpacked"
        self._left[budget] -= max(size, chunk)
        if self._left[budget] < 0:
            raise cannot(f"shape {dataset.shape} is more than the file can hold")
        if h5py.h5z.FILTER_DEFLATE in filters:
            for index in range(dataset.id.get_num_chunks()):
                skipped, data = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(index).chunk_offset)
                # HDF5 would unpack to the end, wherever that is. A checksum takes four bytes more.
                packed = not skipped >> filters.index(h5py.h5z.FILTER_DEFLATE) & 1
                unpacked = zlib.decompressobj().decompress(data, chunk + 5) if packed else data
                if len(unpacked) > chunk + 4:
                    raise cannot("a compressed piece holds more than it says")


def cannot(problem: str) -> Refused:
    """Build a refusal for values whose place the caller knows."""
    return refuse("", problem, "write the file again")
