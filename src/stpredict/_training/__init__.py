"""Training: the loop on Lightning, its options, and what is held out for validation."""

from __future__ import annotations

from stpredict._training._hold_out import hold_out_places
from stpredict._training._loop import TrainOptions, fit
from stpredict._training._module import MIN_STEPS, FitModule

__all__ = ["MIN_STEPS", "FitModule", "TrainOptions", "fit", "hold_out_places"]
