"""Partial sums: what each finished chunk of a section adds to the sums of its shapes, and what keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
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
