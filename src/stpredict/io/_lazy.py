"""An image file as a dask array: opened when a chunk is first computed, and then kept open."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from stpredict._window import Window
from stpredict.io._files import reading

type Reader = Callable[[Window], NDArray[np.uint8]]
"""The pixels of a window, (3, height, width) uint8 RGB."""

CHUNK_PX = 1024
MAX_CHUNK_PX = 32_000_000  # 96 MB of RGB: a row of wide strips may be larger than a square chunk, but not by much


class _Source:
    """A reader that is opened on first use; copies and pickles travel unopened."""

    def __init__(self, opener: Callable[[], Reader], path: Path, token: tuple[Any, ...]) -> None:
        self.opener = opener
        self.path = path
        self.token = token
        self._reader: Reader | None = None
        self._lock = Lock()

    def read(self, window: Window) -> NDArray[np.uint8]:
        with reading(self.path):
            with self._lock:
                if self._reader is None:
                    self._reader = self.opener()
            # a copy: the reader may hand out a read-only view of all its pixels
            return np.array(self._reader(window), order="C")

    def __reduce__(self) -> tuple[type[_Source], tuple[Any, ...]]:
        return _Source, (self.opener, self.path, self.token)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self.token


def lazy_array(
    opener: Callable[..., Reader],
    path: Path,
    *args: int,
    shape: tuple[int, int],
    block: tuple[int, int] = (CHUNK_PX, CHUNK_PX),
) -> da.Array:
    """(3, y, x) uint8, computed from `opener(path, *args)`, which is called once, when the first chunk is needed.

    Parameters
    ----------
    shape : tuple[int, int]
        (height, width) of the image.
    block : tuple[int, int], default (CHUNK_PX, CHUNK_PX)
        (height, width) of the file's own tiles or strips: chunks are whole multiples of it, near 1024 x 1024.
    """
    stat = path.stat()
    token = ("stpredict", opener.__name__, str(path.resolve()), stat.st_size, stat.st_mtime_ns, *args)
    height = _chunk(block[0], shape[0], CHUNK_PX)
    width = _chunk(block[1], shape[1], max(CHUNK_PX, min(shape[1], block[1])))
    chunks = da.core.normalize_chunks(
        (3, max(1, min(height, MAX_CHUNK_PX // width)), width), (3, *shape), dtype=np.uint8
    )
    return da.map_blocks(
        _read_block,
        source=_Source(partial(opener, path, *args), path, token),
        chunks=chunks,
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), np.uint8),
    )


def _chunk(block: int, full: int, target: int) -> int:
    return min(full, max(1, target // block) * block)


def _read_block(source: _Source, block_info: dict[Any, dict[str, Any]] | None = None) -> NDArray[np.uint8]:
    if block_info is None:
        raise RuntimeError("dask called a block without saying which")
    (_, _), (y0, y1), (x0, x1) = block_info[None]["array-location"]
    return source.read(Window(int(y0), int(x0), int(y1 - y0), int(x1 - x0)))
