"""Training: the loop on Lightning, its options, and what is held out for validation."""

from __future__ import annotations

from stpredict._training._bar import stage
from stpredict._training._evidence import by_gene
from stpredict._training._fit import fit, fit_leaving_out
from stpredict._training._hold_out import hold_out_places
from stpredict._training._loop import TrainOptions, in_memory
from stpredict._training._module import MIN_STEPS, FitModule

__all__ = [
    "MIN_STEPS",
    "FitModule",
    "TrainOptions",
    "by_gene",
    "fit",
    "fit_leaving_out",
    "hold_out_places",
    "in_memory",
    "stage",
]
