"""Small SpatialData objects whose every part is known."""

from __future__ import annotations

import pytest
from spatialdata import SpatialData

from .builders import make_spots


@pytest.fixture
def spots() -> SpatialData:
    """See `make_spots`."""
    return make_spots()
