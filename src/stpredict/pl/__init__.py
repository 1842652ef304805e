"""Figures of predicted expression: maps over the H&E, measured against predicted, the course of training."""

from __future__ import annotations

from stpredict.pl.compare import compare
from stpredict.pl.expression import expression
from stpredict.pl.gene_scatter import gene_scatter
from stpredict.pl.history import history
from stpredict.pl.latent import latent
from stpredict.pl.raster import raster

__all__ = ["compare", "expression", "gene_scatter", "history", "latent", "raster"]
