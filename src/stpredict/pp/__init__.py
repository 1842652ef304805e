"""Before training and prediction: gene panels, outlines of tissue, target shapes, and texts of genes."""

from __future__ import annotations

from stpredict.pp.describe_genes import describe_genes
from stpredict.pp.gene_panel import gene_panel
from stpredict.pp.openai_source import openai_source
from stpredict.pp.tile_grid import tile_grid
from stpredict.pp.tissue import tissue

__all__ = ["describe_genes", "gene_panel", "openai_source", "tile_grid", "tissue"]
