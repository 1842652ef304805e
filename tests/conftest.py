"""Fixtures that every floor shares. stpredict is imported inside fixtures only (see CONTRIBUTING)."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data are not here (../shared/data)")
    return SHARED.resolve()
