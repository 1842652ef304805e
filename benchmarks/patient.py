"""Another patient: models of C2..C5 on her2st A1, whole and by halves.

    python benchmarks/patient.py                       # the shipped model, its branches, and the nulls
    python benchmarks/patient.py --model folder        # another saved PixNet

Prints Markdown: PCC@M on A1, on the half of its spots where settings were chosen (left of the median), and on the
other half, which is of the same section as the choice; and in how many genes PixNet is above the nulls. The picture of
A1 has 3.2 um per pixel: every model sees it enlarged, at 2 um per pixel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import shapely
from _settings import DATA, ENCODER, SECTIONS, WEIGHTS
from spatialdata import SpatialData

import stpredict as stp
from stpredict.models import EncoderRidge, EncoderRidgeConfig, Model, PixNet, Ridge

MPP = 2.0


def halves(sdata: SpatialData) -> np.ndarray:
    """(n,) which rows of the table are in the half where settings are chosen."""
    (table,) = sdata.tables.values()
    about = table.uns["spatialdata_attrs"]
    spots = sdata.shapes[np.atleast_1d(about["region"])[0]].loc[table.obs[about["instance_key"]]]
    x = shapely.get_x(shapely.centroid(np.asarray(spots.geometry)))
    return x <= np.median(x)


def scores(sdata: SpatialData, model: Model) -> list[np.ndarray]:
    """The correlation of every gene on all spots, on the chosen half and on the other."""
    stp.tl.predict(sdata, model, key_added="predicted", precision="32", overwrite=True, progress=False)
    left = halves(sdata)
    found = []
    for keep in (np.ones(len(left), dtype=bool), left, ~left):
        part = sdata_of(sdata, keep)
        found.append(stp.tl.evaluate(part, "predicted")["pcc"].to_numpy())
    return found


def row(name: str, found: list[np.ndarray]) -> str:
    """PCC@M in three columns."""
    return f"| {name} | " + " | ".join(f"{np.nanmean(each):.3f}" for each in found) + " |"


def ahead(name: str, found: list[np.ndarray], other: list[np.ndarray]) -> str:
    """In how many genes PixNet is above another model, of those in which both have a correlation."""
    shares = [np.mean((a > b)[np.isfinite(a) & np.isfinite(b)]) for a, b in zip(found, other, strict=True)]
    return f"PixNet is above {name} in {', '.join(f'{share:.0%}' for share in shares)} of the genes (columns as above)."


def sdata_of(sdata: SpatialData, keep: np.ndarray) -> SpatialData:
    """The section with only these rows of its table."""
    (name,) = sdata.tables
    return SpatialData(
        images=dict(sdata.images), shapes=dict(sdata.shapes), tables={name: sdata.tables[name][keep].copy()}
    )


def branches(model: PixNet) -> Iterator[str]:
    """The model as it is, then either branch by itself."""
    assert model.context_map is not None
    share = model.context_map.share.clone()
    yield "PixNet"
    for name, of_context in (("PixNet, decoder alone", 0.0), ("PixNet, context alone", 1.0)):
        model.context_map.share.fill_(of_context)
        yield name
    model.context_map.share.copy_(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pixnet-her2st")
    args = parser.parse_args()
    sdata = stp.datasets.her2st(["A1"], path=DATA / "her2st_A")[0]
    print("| model | A1 | chosen half | other half, same section as the choice |", "|---|---|---|---|", sep="\n")
    model = stp.models.load(args.model)
    found = {}
    for name in branches(model):
        found[name] = scores(sdata, model)
        print(row(name, found[name]), flush=True)
    train = stp.datasets.her2st(list(SECTIONS), path=DATA / "her2st")
    genes = tuple(model.genes)
    nulls: dict[str, Model] = {
        "EncoderRidge": EncoderRidge(
            config=EncoderRidgeConfig(genes=genes, mpp=MPP, **ENCODER), encoder_weights=WEIGHTS
        ),
        "Ridge": Ridge(genes, mpp=MPP),
    }
    for name, null in nulls.items():
        stp.tl.train(train, null, val=0.0, precision="32", progress=False)
        found[name] = scores(sdata, null)
        print(row(name, found[name]), flush=True)
    print("", *(ahead(name, found["PixNet"], found[name]) for name in nulls), sep="\n")


if __name__ == "__main__":
    main()
