"""What is held out of the training sections to validate with: places of tissue, the same at every scale."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stpredict._places import common_blocks, share_in_blocks, tissues
from stpredict._section import Section, take

logger = logging.getLogger("stpredict")
N_SIDE = 4
ACROSS = "across the border of a held-out place"


def hold_out_places(sections: Sequence[Section], *, share: float, seed: int) -> tuple[list[Section], list[Section]]:
    """The sections without, and with only, about `share` of their shapes in spatial blocks (of a 4 x 4 grid).

    Sections of one image (several scales of a tissue, several regions of a slide) have one grid and the same blocks
    held out, so no place that is validated on is trained on at another scale. A shape that lies across the border of a
    held-out block is in neither part; a section without a shape in such a block has no part that is held out.

    Parameters
    ----------
    share : float
        In [0, 1); 0 holds nothing out.
    seed : int
        Of the draw of blocks.

    Returns
    -------
    tuple[list[Section], list[Section]]
        What is trained on, a part of every section in their order, and what is held out.

    Raises
    ------
    ValueError
        For a share outside [0, 1), or one that leaves no shape to either side of an image, or to the training part of a
        section.
    """
    if not 0 <= share < 1:
        raise ValueError(f"val={share} must lie in [0, 1): the share of each training section that is held out.")
    if share == 0:
        return list(sections), []
    parts: dict[int, tuple[Section, Section]] = {}
    for group in tissues(sections):
        parts |= zip(group, _of_one_image([sections[i] for i in group], share, seed), strict=True)
    both = [parts[i] for i in range(len(sections))]
    return [kept for kept, _ in both], [held for _, held in both if held.n_shapes]


def _of_one_image(sections: Sequence[Section], share: float, seed: int) -> list[tuple[Section, Section]]:
    n_all = sum(s.n_shapes for s in sections)
    order = np.random.default_rng([seed, n_all]).permutation(N_SIDE**2)
    # every section counts the same: one of small bins has a hundred times the shapes
    found = common_blocks(sections, N_SIDE)
    counts = [np.bincount(block, minlength=N_SIDE**2) * (n_all / len(block)) for block in found]
    reached = np.cumsum(np.sum(counts, axis=0)[order])
    held = np.zeros(N_SIDE**2, dtype=bool)
    held[order[: 1 + int(np.searchsorted(reached, share * n_all * len(sections)))]] = True
    shares = share_in_blocks(sections, held)
    parts = [(_without(s, of), take(s, of == 1)) for s, of in zip(sections, shares, strict=True)]
    _check(sections, parts, share)
    return parts


def _without(section: Section, share: np.ndarray) -> Section:
    """The section without all that meets a held-out block."""
    n_across = int(((share > 0) & (share < 1)).sum())
    if n_across:
        logger.info("section %s: %d shapes lie %s, and are in neither part", section.name, n_across, ACROSS)
        section = replace(section, dropped={**section.dropped, ACROSS: n_across})
    return take(section, share == 0)


def _check(sections: Sequence[Section], parts: Sequence[tuple[Section, Section]], share: float) -> None:
    """Raise ValueError for a section of which nothing is left to train on, and where nothing is held out of any."""
    lost = [s for s, (kept, _) in zip(sections, parts, strict=True) if not kept.n_shapes]
    if lost or not any(held.n_shapes for _, held in parts):
        section = lost[0] if lost else sections[0]
        beside = [s.name for s in sections if s is not section]
        of_all = f", on one image with {', '.join(map(repr, beside))}" if beside else ""
        raise ValueError(
            f"section {section.name!r} has {section.n_shapes} usable shapes{of_all}, too few to hold out {share:.0%} "
            "of them in blocks. Pass val=0, or validation sections."
        )
