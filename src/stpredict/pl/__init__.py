"""Figures of predicted expression: maps over the H&E, measured against predicted, training, benchmarks."""

from __future__ import annotations

from stpredict.pl.compare import compare
from stpredict.pl.expression import expression
from stpredict.pl.gene_scatter import gene_scatter
from stpredict.pl.history import history
from stpredict.pl.latent import latent
from stpredict.pl.raster import raster
from stpredict.pl.reliability import reliability
from stpredict.pl.scores import scores

__all__ = ["compare", "expression", "gene_scatter", "history", "latent", "raster", "reliability", "scores"]
