"""Readers of H&E images and spatial transcriptomics into SpatialData objects."""

from __future__ import annotations

# for stpredict.datasets, which lays sections out as these readers do; what is public stands in __all__
from stpredict.io._assemble import assemble as assemble
from stpredict.io._assemble import check_on_image as check_on_image
from stpredict.io._counts import read_counts as read_counts
from stpredict.io._grid import pitch_px as pitch_px
from stpredict.io._image import MICROMETERS as MICROMETERS
from stpredict.io._image import coordinate_systems as coordinate_systems
from stpredict.io._image import image_element as image_element
from stpredict.io._pixels import open_pixels as open_pixels
from stpredict.io.read_hest import read_hest
from stpredict.io.read_image import read_image
from stpredict.io.read_st import read_st
from stpredict.io.read_visium import read_visium
from stpredict.io.read_visium_hd import read_visium_hd
from stpredict.io.read_xenium import read_xenium

__all__ = ["read_hest", "read_image", "read_st", "read_visium", "read_visium_hd", "read_xenium"]
