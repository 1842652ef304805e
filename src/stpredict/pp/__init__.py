"""Before training and prediction: gene panels and target shapes."""

from __future__ import annotations

from stpredict.pp.gene_panel import gene_panel
from stpredict.pp.tile_grid import tile_grid

__all__ = ["gene_panel", "tile_grid"]
