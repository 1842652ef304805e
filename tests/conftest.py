"""Fixtures that every floor shares. stpredict is imported inside fixtures only (see CONTRIBUTING)."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import shapely

MEMORY = Path("/dev/shm")
SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def _models() -> list[str]:
    """Classes of the model files, read from their text: stpredict must not be imported before the hook is in."""
    folder = Path(find_spec("stpredict").submodule_search_locations[0]) / "models"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("[a-z]*.py")))
    return re.findall(r"^class (\w+)\(Model\):", text, flags=re.MULTILINE)


MODELS = _models()


def pytest_configure(config) -> None:
    """Settle what every process of the tests inherits, before torch is imported and before the workers start.

    Stores are thousands of small files: where Linux has a file system in memory, `tmp_path` lies there. Beside others a
    process computes in one thread. Without compiled bytecode each process compiles torch and spatialdata anew.
    """
    if os.access(MEMORY, os.W_OK):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # its first parallel function would set torch's threads anew
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_xdist_auto_num_workers(config) -> int:
    """Two processes for folders, whose tests are mostly bound by Python; this process alone for named files."""
    if config.args and all(Path(arg.split("::")[0]).is_file() for arg in config.args):
        return 0
    return int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", "2"))


def pytest_generate_tests(metafunc) -> None:
    """A test with an argument `model_name` runs for every model there is."""
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", MODELS)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data are not here (../shared/data)")
    return SHARED.resolve()


@pytest.fixture
def no_features(monkeypatch):
    """Nothing is remembered of patches: encoders of one kind draw the same weights, and serve each other's features."""
    from stpredict.nn import features

    monkeypatch.setattr(features, "_held", type(features._held)())


@pytest.fixture(scope="session")
def colour_section():
    """A function of (seed, size) that makes a Section at 1 um / px whose genes are red, green and blue in its disks."""
    from stpredict._coverage import Shapes, coverage
    from stpredict._section import ImageView, Section
    from stpredict._window import Window

    def make(seed: int = 0, size: int = 512, mpp: float = 1.0) -> Section:
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(40, 230, (3, size // 32, size // 32))
        pixels = np.rint(np.kron(coarse, np.ones((1, 32, 32)))).astype(np.uint8)
        centres = rng.uniform(40, size - 40, (24, 2))
        geometry = np.array([shapely.Point(x, y) for y, x in centres], dtype=object)
        radius = np.full(len(geometry), 24.0)
        covered = coverage(Shapes(geometry, radius), Window(0, 0, size, size))
        mean = (covered @ pixels.reshape(3, -1).T.astype(float)) / covered.sum(axis=1)[:, None]
        return Section(
            name=f"colour{seed}",
            image=ImageView(pixels=pixels, scale=(1.0, 1.0), mpp=mpp),
            geometry=geometry,
            radius=radius,
            ids=np.arange(len(geometry)),
            area=np.pi * radius**2,
            expression=(mean / 255).astype(np.float32),
            genes=("red", "green", "blue"),
        )

    return make


@pytest.fixture(scope="session")
def build():
    """A function that makes a fresh model of a class by its name, small where the class has sizes."""
    from stpredict import models

    def texts(genes):
        from stpredict._embeddings import GeneEmbeddings

        vectors = np.stack([np.random.default_rng([ord(letter) for letter in gene]).normal(size=8) for gene in genes])
        return GeneEmbeddings(genes=tuple(genes), vectors=vectors.astype(np.float32), encoder="letters")

    def by_text(cls, genes, **fields):
        """With embeddings of the genes and of one more; as it is for genes that no config takes."""
        if not genes or isinstance(genes, str) or len(set(genes)) < len(genes):
            return cls(genes)
        everything = texts((*genes, "unseen"))
        config = dataclasses.replace(cls(genes, embeddings=everything).config, **fields)
        return cls(config=config, embeddings=everything)

    patches = {"patch_px": 64}
    small = {
        "BLEEP": patches,
        "DeepSpot": {"patch_px": 96, "part_px": 32, "width": 32, "members": 3},
        "FEAST": {"patch_px": 64, "width": 32},
        "HE2RNA": patches,
        "EncoderRidge": patches,
        "EGN": patches,
        "GeneQuery": {"patch_px": 64, "width": 32, "heads": 2, "head_width": 16},
        "HisToGene": patches,
        "SGN": patches,
        "STNet": patches,
        "TRIPLEX": patches,
        # without the context, which doubles the encoder's work and has tests of its own
        "PixNet": {"filters": (8, 8, 12, 16), "window_px": 256, "core_px": 512, "halo_px": 256, "context_rank": 0},
    }

    def make(name: str, genes: tuple[str, ...] = ("red", "green", "blue"), *, encoder: str = "mobilenetv2_035"):
        cls = getattr(models, name)
        if name not in small:
            return cls(genes)
        fields = {"mpp": 1.0, "encoder": encoder} | small[name]
        if name in ("GeneQuery", "SGN"):
            return by_text(cls, genes, **fields)
        return cls(config=getattr(models, f"{name}Config")(genes=genes, **fields))

    return make
