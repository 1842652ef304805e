"""Inference: a section chunk by chunk, read out inside its shapes and streamed as a raster."""

from __future__ import annotations

from stpredict._inference._chunks import Runtime, RuntimeOptions
from stpredict._inference._dense import raster_shape, tiling_of
from stpredict._inference._plain import PlainEncoder
from stpredict._inference._run import (
    Prediction,
    embed,
    fold_batch_norms,
    n_chunks,
    predict,
    predict_with_spread,
    run_chunks,
)

__all__ = [
    "PlainEncoder",
    "Prediction",
    "Runtime",
    "RuntimeOptions",
    "embed",
    "fold_batch_norms",
    "n_chunks",
    "predict",
    "predict_with_spread",
    "raster_shape",
    "run_chunks",
    "tiling_of",
]
