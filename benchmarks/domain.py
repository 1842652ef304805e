"""How far tissue that a model knows nothing of lies from that it was trained on: her2st, each section left out.

    python benchmarks/domain.py          # prints Markdown

For each of C2..C5 a domain is made of the other three, and asked for the spots of the section that was left out, for
the same spots with the picture changed, and for spots of other tissue. Shares are of spots beyond the 99th percentile
of those that were left out of the three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from stpredict._appearance import describe, spatial_groups
from stpredict._domain import DOMAIN_MPP, FACTORS, OUT, Domain
from stpredict._section import ImageView, Section

Image.MAX_IMAGE_PIXELS = None
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SECTIONS = ("C2", "C3", "C4", "C5")
HER2ST_MPP = 0.69


class Changed(ImageView):
    """A picture whose windows are changed as they are read."""

    how = staticmethod(lambda rgb: rgb)

    def read(self, window):
        """The changed window."""
        return self.how(super().read(window))


def pixels_of(path: str) -> np.ndarray:
    return np.moveaxis(np.asarray(Image.open(DATA / path).convert("RGB")), -1, 0)


def features(pixels: np.ndarray, xy: np.ndarray, mpp: float, how=None) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, f) of 100-um spots at pixels `xy`, and their spatial blocks."""
    scale = DOMAIN_MPP / mpp
    image = (
        ImageView(pixels, (scale, scale), DOMAIN_MPP) if how is None else Changed(pixels, (scale, scale), DOMAIN_MPP)
    )
    if how is not None:
        object.__setattr__(image, "how", how)
    radius = np.full(len(xy), 50 / DOMAIN_MPP)
    section = Section(
        name="", image=image, geometry=shapely.points(xy / scale), radius=radius, ids=np.arange(len(xy)),
        area=np.pi * radius**2,
    )  # fmt: skip
    return describe(image, section), spatial_groups(section)


def blurred(um: float):
    sigma = um / DOMAIN_MPP
    return lambda rgb: np.rint(ndimage.gaussian_filter(rgb.astype(np.float32), (sigma, sigma, 0))).astype(np.uint8)


def her2st(name: str) -> tuple[np.ndarray, np.ndarray]:
    table = pd.read_csv(DATA / f"her2st/{name}_selection.tsv", sep="\t")
    return pixels_of(f"her2st/{name}.jpg"), table.loc[table["selected"] == 1, ["pixel_x", "pixel_y"]].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    own, rng = {name: her2st(name) for name in SECTIONS}, np.random.default_rng(0)
    seen = {
        name: [features(pixels, xy, HER2ST_MPP * factor) for factor in FACTORS] for name, (pixels, xy) in own.items()
    }
    known = {name: each[FACTORS.index(1.0)] for name, each in seen.items()}
    noise = rng.integers(0, 255, (3, 3000, 3000), dtype=np.uint8)
    spots = rng.uniform(300, 2700, (200, 2))
    colon = pd.read_csv(DATA / "mouse_colon/d0_spots.csv")[["x_px", "y_px"]].to_numpy()[::5]
    others = {
        "noise": features(noise, spots, HER2ST_MPP)[0],
        "mouse colon": features(pixels_of("mouse_colon/d0_he.jpg"), colon, 0.971)[0],
    }
    for name, image, table, mpp in (
        ("MOB 1", "mob/MOB1_he_2.75um.jpg", "mob/MOB1_spots_2.75um.csv", 2.75),
        ("MOB 11", "mob/MOB11_he_2.75um.jpg", "mob/MOB11_spots_2.75um.csv", 2.75),
    ):
        xy = pd.read_csv(DATA / table)[["x_px", "y_px"]].to_numpy()
        others[name] = features(pixels_of(image), xy, mpp)[0]
    changes = {
        "red and blue exchanged": (1.0, lambda rgb: rgb[..., ::-1]),
        "red and green exchanged": (1.0, lambda rgb: rgb[..., [1, 0, 2]]),
        "blur of 4 um": (1.0, blurred(4.0)), "mpp 1.6 times": (1.6, None), "mpp / 1.6": (1 / 1.6, None),
    }  # fmt: skip
    rows: dict[str, list[tuple[float, float]]] = {}
    inside = []
    for name in SECTIONS:
        rest = [other for other in SECTIONS if other != name]
        domain = Domain.fit([[f for f, _ in seen[other]] for other in rest], [known[other][1] for other in rest])
        mine = domain.distances(known[name][0])
        inside.append({cue: (domain.percentile(d, cue) > OUT).mean() for cue, d in mine.items()})
        asked = dict(others)
        for what, (factor, how) in changes.items():
            asked[what] = features(*own[name], HER2ST_MPP * factor, how)[0]
        for what, found in asked.items():
            far = domain.distances(found)
            truth = np.r_[np.zeros(len(mine["all"])), np.ones(len(found))]
            scores = {cue: roc_auc_score(truth, np.r_[mine[cue], far[cue]]) for cue in far}
            shares = {cue: (domain.percentile(d, cue) > OUT).mean() for cue, d in far.items()}
            rows.setdefault(what, []).append((scores, shares))
    cues = list(domain.reference)
    print(
        "| tissue | "
        + " | ".join(f"AUROC {cue} (worst)" for cue in cues)
        + " | "
        + " | ".join(f"out {cue}" for cue in cues)
        + " |"
    )
    print("|---" * (1 + 2 * len(cues)) + "|")
    print(
        "| left-out section | "
        + " | ".join("" for _ in cues)
        + " | "
        + " | ".join(f"{max(e[c] for e in inside):.1%}" for c in cues)
        + " |"
    )
    for what, found in rows.items():
        auroc = " | ".join(f"{min(s[cue] for s, _ in found):.3f}" for cue in cues)
        out = " | ".join(f"{np.mean([s[cue] for _, s in found]):.0%}" for cue in cues)
        print(f"| {what} | {auroc} | {out} |")


if __name__ == "__main__":
    main()
