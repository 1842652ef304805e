"""Partial sums: what each finished chunk of a section adds to the sums of its shapes, as files that resume reads."""

from __future__ import annotations

import os
import socket
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PartialSum:
    """What one chunk adds: `values` (k, d) to the sums of the shapes `rows` (k,)."""

    rows: NDArray[np.int64]
    values: NDArray[np.floating]


class PartialStore(Protocol):
    """Where the parts of finished chunks are kept."""

    def has(self, chunk: int) -> bool:
        """Whether this chunk is finished."""

    def load(self, chunk: int) -> PartialSum:
        """The part of a finished chunk."""

    def keep(self, chunk: int, part: PartialSum) -> None:
        """Keep the part of a chunk; whatever else the chunk writes is written by then."""


@dataclass(frozen=True)
class PartialFiles:
    """Parts of chunks as files of a folder; a file that is there is whole."""

    folder: Path

    def has(self, chunk: int) -> bool:
        """Whether this chunk is finished."""
        return self._path(chunk).is_file()

    def load(self, chunk: int) -> PartialSum:
        """The part of a finished chunk. Raises ValueError for a file that is damaged."""
        try:
            with self._path(chunk).open("rb") as file, np.load(file, allow_pickle=False) as held:
                return PartialSum(held["rows"], held["values"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self._path(chunk)}, part of an interrupted run, is damaged ({error}). Predict without resume=True, "
                "which starts afresh; the store itself is as it was."
            ) from error

    def keep(self, chunk: int, part: PartialSum) -> None:
        """Write a part; it is there at once and whole, or not at all."""
        new = self._path(chunk).with_suffix(f".{socket.gethostname()}-{os.getpid()}")
        with new.open("wb") as file:
            np.savez(file, rows=part.rows, values=part.values)
        os.replace(new, self._path(chunk))

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk}.npz"
