"""Inference: a section chunk by chunk, read out inside its shapes and streamed as a raster."""

from __future__ import annotations

from stpredict._inference._dense import raster_shape
from stpredict._inference._run import (
    RuntimeOptions,
    embed,
    fold_batch_norms,
    n_chunks,
    predict,
    resolve_runtime,
    run_chunks,
)

__all__ = [
    "RuntimeOptions",
    "embed",
    "fold_batch_norms",
    "n_chunks",
    "predict",
    "raster_shape",
    "resolve_runtime",
    "run_chunks",
]
