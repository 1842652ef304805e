"""What of a map is the decoder's own grid: a woven pattern, and the borders of its attention windows.

    python benchmarks/pattern.py --models pixnet-her2st [FOLDER ...] --section C5        # prints Markdown

A map is averaged over all cells of the same place in a square of 4 or 8 cells; what these means spread, against the
spread of the map over cells, is pattern: tissue does not know of the grid. Across the borders of the squares of 8, 16
and 32 cells neighbouring cells differ as much as elsewhere, or the squares show; a second grid has its borders half a
square further on, which is the second figure. Medians and means over genes.
"""

from __future__ import annotations

import argparse

import numpy as np
from _settings import DATA
from numpy.typing import NDArray

import stpredict as stp
from stpredict.models import PixNet

PERIODS, BORDERS = (4, 8), (8, 16, 32)


def woven(maps: NDArray[np.float32], period: int) -> float:
    """Spread of the means over places in a square of `period` cells, against that over cells; maps are (g, r, c)."""
    rows, columns = (side // period for side in maps.shape[1:])
    cut = maps[:, : rows * period, : columns * period].astype(np.float64)
    means = np.nanmean(cut.reshape(-1, rows, period, columns, period), axis=(1, 3))
    return float(np.median(means.std(axis=(1, 2)) / np.nanstd(cut, axis=(1, 2))))


def over_borders(maps: NDArray[np.float32], side: int, first: int = 0) -> float:
    """Mean difference of neighbours across the borders of squares of `side` cells, against that where none has any.

    The borders lie at `first` and every `side` cells from there.
    """
    found = []
    for axis in (1, 2):
        steps = np.nanmean(np.abs(np.diff(maps, axis=axis)), axis=(0, 3 - axis))
        place = np.arange(1, len(steps) + 1)
        found.append(steps[place % side == first].mean() / steps[place % (min(BORDERS) // 2) != 0].mean())
    return float(np.mean(found))


def row(model: PixNet, section: str) -> list[str]:
    """PixNet's map of a section, by the periods and borders; the decoder alone, as the context has no fine grid."""
    sdata = stp.datasets.her2st([section], path=DATA / ("her2st_A" if section.startswith("A") else "her2st"))[0]
    if model.context_map is not None:
        model.context_map.share.fill_(0.0)
    stp.tl.predict(sdata, model, output="raster", key_added="map", precision="32", progress=False)
    element = sdata.images["map"]
    image = next(iter(element["scale0"].values())) if "scale0" in getattr(element, "children", {}) else element
    maps = np.asarray(image.transpose("c", "y", "x"), dtype=np.float32)
    borders = [f"{over_borders(maps, side):.2f} / {over_borders(maps, side, side // 2):.2f}" for side in BORDERS]
    return [*(f"{woven(maps, period):.3f}" for period in PERIODS), *borders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pixnet-her2st"])
    parser.add_argument("--section", default="C5")
    args = parser.parse_args()
    named = [*(f"pattern of {period} cells" for period in PERIODS), *(f"borders of {side}" for side in BORDERS)]
    print(f"| model | {' | '.join(named)} |\n{'|---' * (len(named) + 1)}|")
    for name in args.models:
        print(f"| {name} | {' | '.join(row(stp.models.load(name), args.section))} |", flush=True)


if __name__ == "__main__":
    main()
