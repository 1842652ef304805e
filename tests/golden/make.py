"""Write what an older version left behind: saved models, a store with results, and the values that they gave.

Run at the commit whose models and stores later versions must read (the archive beside this file is of 891ed2f)::

    PYTHONPATH=src:tests/tl python make.py 891ed2f.zip
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from conftest import GENES, colour_sdata  # of tests/tl

import stpredict as stp

QUIET = {"device": "cpu", "precision": "32", "progress": False}
SMALL = {"mpp": 1.0, "patch_px": 64, "encoder": "test_efficientnet"}


def texts(genes):
    """Made-up embeddings of gene texts."""
    vectors = [np.random.default_rng([ord(letter) for letter in gene]).normal(size=8) for gene in genes]
    return stp.tl.GeneEmbeddings(genes=tuple(genes), vectors=np.stack(vectors).astype(np.float32), encoder="letters")


def trained(folder: Path) -> dict:
    """Models of each kind after an epoch, by name."""
    genes = GENES[:3]
    known = texts(GENES)
    pixnet = stp.models.PixNetConfig(
        genes=genes, mpp=1.0, filters=(8, 8, 12, 16), window_px=256, core_px=512, halo_px=256, context_rank=0,
        encoder="test_efficientnet", taps=(0, 1, 2, 3),
    )  # fmt: skip
    genequery = stp.models.GeneQuery(genes, embeddings=known).config
    genequery = dataclasses.replace(genequery, width=32, heads=2, head_width=16, **SMALL)
    made = {
        "mean": stp.models.Mean(genes),
        "ridge": stp.models.Ridge(genes),
        "pixnet": stp.models.PixNet(config=pixnet),
        "stnet": stp.models.STNet(config=stp.models.STNetConfig(genes=genes, **SMALL)),
        "bleep": stp.models.BLEEP(config=stp.models.BLEEPConfig(genes=genes, width=16, **SMALL)),
        "genequery": stp.models.GeneQuery(config=genequery, embeddings=known),
    }
    for name, model in made.items():
        stp.tl.train([colour_sdata(0), colour_sdata(1)], model, val=0.2, max_epochs=1, batch_size=8, **QUIET)
        model.save(folder / name)
    return made


def main(archive: Path) -> None:
    """Make everything in a folder of its own, and pack it."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        models = trained(folder)
        sdata = colour_sdata(7, n=12)
        sdata.write(folder / "slide.zarr")
        values = {}
        for name, model in models.items():
            stp.tl.predict(sdata, model, key_added=name, **QUIET)
            values[f"layer/{name}"] = np.asarray(sdata.tables["table"].layers[name])
        stp.tl.predict(sdata, models["pixnet"], key_added="map", output="raster", **QUIET)
        stp.tl.predict(sdata, models["pixnet"], key_added="latent", output="latent", **QUIET)
        stp.tl.aggregate(sdata, "map", shapes_key="spots", table_added="of_map")
        values["aggregate"] = np.asarray(sdata.tables["of_map"].X)
        genes = list(GENES[:2])
        stp.tl.query(sdata, "latent", genes, model=models["pixnet"], shapes_key="spots", table_added="of_latent")
        values["query"] = np.asarray(sdata.tables["of_latent"].X)
        np.savez(folder / "values.npz", **values)
        shutil.make_archive(str(archive.with_suffix("")), "zip", folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
