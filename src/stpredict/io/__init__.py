"""Readers of H&E images and spatial transcriptomics into SpatialData objects."""

from __future__ import annotations

from stpredict.io.read_hest import read_hest
from stpredict.io.read_image import read_image
from stpredict.io.read_st import read_st
from stpredict.io.read_visium import read_visium

__all__ = ["read_hest", "read_image", "read_st", "read_visium"]
