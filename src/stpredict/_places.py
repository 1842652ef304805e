"""Places of tissue: which sections show one image, and blocks of it that are the same in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import shapely

from stpredict import _coverage
from stpredict._section import Section, image_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 1025  # quantiles of a section, by which sections of many and of few shapes count alike
TOUCHING = 1e-9  # of the image's side: shapes that only touch share no place
LEAST = 5  # shapes of which one part after the other is left out to choose a penalty


def blocks(section: Section, n_side: int = 4) -> NDArray[np.int64]:
    """(n,) the block of every shape's centre, 0 .. n_side^2 - 1 row by row, in a grid of quantiles of y and of x.

    Neighbours are correlated and see the same pixels: what is held out of a section is held out in blocks.
    """
    centre = _centres(section)
    levels = np.arange(1, n_side) / n_side
    y, x = (np.searchsorted(np.quantile(centre[:, axis], levels), centre[:, axis]) for axis in (0, 1))
    return n_side * y + x


def tissues(sections: Sequence[Section]) -> list[list[int]]:
    """The sections of every image, by their positions: several scales or regions of one tissue stand together.

    Two sections show one image where they were made of the same pixels, and where `image_digest` is the same: the same
    image in two objects or two stores. Reads 16 squares of an image where another has its size.
    """
    groups: list[list[int]] = []
    sizes = [(s.image.height, s.image.width) for s in sections]
    digests = [
        image_digest(s.image) if sizes.count(size) > 1 else None for s, size in zip(sections, sizes, strict=True)
    ]
    for i, section in enumerate(sections):
        for group in groups:
            first = group[0]
            same = digests[i] is not None and digests[i] == digests[first]
            if same or section.image.pixels is sections[first].image.pixels:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def common_blocks(sections: Sequence[Section], n_side: int = 4) -> list[NDArray[np.int64]]:
    """For each of several sections of one image (n,) the block of every shape's centre, cut alike in all of them.

    The borders are quantiles of y and of x of all sections together, each of which counts the same however many shapes
    it has; of a single section the blocks are those of `blocks`.
    """
    if len(sections) == 1:
        return [blocks(sections[0], n_side)]
    borders = _borders(sections, n_side)
    return [
        np.searchsorted(borders[0], centre[:, 0]) * n_side + np.searchsorted(borders[1], centre[:, 1])
        for centre in (_centres(s) / _size(s) for s in sections)
    ]


def share_in_blocks(sections: Sequence[Section], chosen: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """For each of several sections of one image (n,) the share of the blocks under a shape that are chosen, 0 to 1.

    Parameters
    ----------
    chosen : ndarray of bool
        (n_side^2,) blocks of `common_blocks`. Of several sections a shape is in every block that its bounding box
        meets; of a single one, whose shapes are all of one kind, in that of its centre.
    """
    n_side = round(len(chosen) ** 0.5)
    if len(sections) == 1:
        return [chosen[blocks(sections[0], n_side)].astype(np.float64)]
    borders = _borders(sections, n_side)
    total = np.zeros((n_side + 1, n_side + 1))
    total[1:, 1:] = chosen.reshape(n_side, n_side).cumsum(axis=0).cumsum(axis=1)
    shares = []
    for section in sections:
        bounds = _coverage.bounds(section.shapes) / np.tile(_size(section), 2)
        y0, x0 = (np.searchsorted(borders[k], bounds[:, k] + TOUCHING) for k in (0, 1))
        y1, x1 = (np.searchsorted(borders[k], bounds[:, k + 2] - TOUCHING) + 1 for k in (0, 1))
        n_chosen = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
        shares.append(n_chosen / ((y1 - y0) * (x1 - x0)))
    return shares


def inner_groups(sections: Sequence[Section]) -> NDArray[np.int64]:
    """(n,) the part of every shape, section after section, that an inner validation leaves out together with it.

    The images; of a single image its blocks, 4 x 4, cut alike for all of its sections.
    """
    images = tissues(sections)
    if len(images) == 1:
        return np.concatenate(common_blocks(sections))
    of = {i: number for number, group in enumerate(images) for i in group}
    return np.repeat([of[i] for i in range(len(sections))], [s.n_shapes for s in sections])


def check_inner_validation(sections: Sequence[Section], what: str) -> None:
    """Raise ValueError where sections have too few shapes to choose a penalty by leaving parts of them out.

    Parameters
    ----------
    what : str
        Whose penalty it is, for the message.
    """
    n = sum(section.n_shapes for section in sections)
    if n < LEAST:
        names = ", ".join(repr(section.name) for section in sections)
        raise ValueError(
            f"{what} chooses its penalty by leaving out one part of the training shapes after the other: that takes "
            f"{LEAST} shapes, and sections {names} have {n} usable ones in all. Add sections; or see why so few are "
            "usable: min_counts=, tissue_key=, and shapes that do not lie wholly on the image."
        )


def lies_on(section: Section, other: Section) -> NDArray[np.bool_]:
    """(n,) which shapes of a section share tissue with another section of the same image.

    By bounding boxes: those in which the centre of a shape of the other lies, or whose own centre lies in one of it.
    """
    (of_section, centre), (of_other, centre_of_other) = (_boxes(s) for s in (section, other))
    found = np.zeros(section.n_shapes, dtype=bool)
    found[shapely.STRtree(of_other).query(centre, predicate="within")[0]] = True
    found[shapely.STRtree(of_section).query(centre_of_other, predicate="within")[1]] = True
    return found


def _boxes(section: Section) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Bounding boxes and their centres, in shares of the image."""
    y0, x0, y1, x1 = (_coverage.bounds(section.shapes) / np.tile(_size(section), 2)).T
    return shapely.box(x0, y0, x1, y1), shapely.points((x0 + x1) / 2, (y0 + y1) / 2)


def _borders(sections: Sequence[Section], n_side: int) -> NDArray[np.float64]:
    """(2, n_side - 1) borders between rows and between columns of blocks, in shares of the image's height and width."""
    levels = np.linspace(0, 1, LEVELS)
    pooled = np.concatenate([np.quantile(_centres(s) / _size(s), levels, axis=0) for s in sections])
    return np.quantile(pooled, np.arange(1, n_side) / n_side, axis=0).T


def _centres(section: Section) -> NDArray[np.float64]:
    bounds = _coverage.bounds(section.shapes)
    return (bounds[:, :2] + bounds[:, 2:]) / 2


def _size(section: Section) -> NDArray[np.float64]:
    """Height and width of the image in working pixels, exact: two sections of one image may see it at two scales."""
    view = section.image
    return np.array([view.pixels.shape[1] / view.scale[0], view.pixels.shape[2] / view.scale[1]])
