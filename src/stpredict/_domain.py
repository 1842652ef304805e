"""Domain of a model: colour, scale and form of the tissue it was trained on, and how far other tissue lies from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


DOMAIN_MPP = 2.0  # of the image that is described: a nucleus is 3 to 5 pixels wide
BLOCK_PX = 128  # 256 um: a spot and its surroundings; with half of it a wrong scale is seen less often
SHRINKAGE = 0.05  # of the correlations towards none
MIN_BLOCKS = 50  # of tissue, 3.3 mm2: fewer do not show how it varies
OUT = 99.0  # percentile beyond which a shape lies outside
MANY_OUT = 0.1  # share of shapes outside from which on a warning says so
N_QUANTILES = 101
COLOUR, FORM, N_FEATURES = slice(0, 9), slice(9, 24), 24
CUES = ("colour", "form", "scale")
PARTS = (*CUES, "joint")  # distances that make up that by all; "joint" is of colour and form together, and names no cue
FACTORS = (1 / 1.6, 1 / 1.25, 1.0, 1.25, 1.6)  # wrong scales that training tissue is seen at
PENALTY = 10.0  # of the regression of the scale, features standardised
SAID = {
    "colour": "colour (stain, scanner, or channels in another order)",
    "form": "form (another tissue, no tissue, or out of focus)",
    "scale": "scale (mpp)",
}


@dataclass(frozen=True)
class Domain:
    """Where the features of training tissue lie, and how far tissue that was left out lies from there.

    Parameters
    ----------
    mean, scale : ndarray of float64
        (f,) mean and standard deviation of each feature.
    correlation : ndarray of float64
        (f, f), shrunk by `SHRINKAGE`.
    zoom : ndarray of float64
        (f,) weights of standardised features that tell the log of the factor by which a scale is wrong: a ridge
        regression on the training tissue seen at `FACTORS`.
    reference : Mapping[str, ndarray of float64]
        For each of `PARTS` and for "all" of them: `N_QUANTILES` quantiles, from 0 to 100 %, of the distances of shapes
        that were left out: by section, or by spatial blocks of a single one.
    source : str
        What was left out.

    Notes
    -----
    Distances of colour, form and both are Mahalanobis distances; that of scale is the absolute log of the estimated
    factor. "All" is the fourth root of the sum of their fourth powers (nearly the largest of them), each in units of
    its 99th percentile on tissue that was left out.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    correlation: NDArray[np.float64]
    zoom: NDArray[np.float64]
    reference: Mapping[str, NDArray[np.float64]]
    source: str

    @classmethod
    def fit(
        cls, features: Sequence[Sequence[NDArray[np.float32]]], groups: Sequence[NDArray[np.int64]]
    ) -> Domain | None:
        """Of described sections; None where their shapes lie in fewer than `MIN_BLOCKS` blocks.

        Parameters
        ----------
        features
            For each section what `describe` returns at each of `FACTORS`.
        groups
            For each section the spatial block (n,) of each shape, which is left out where there is one section.
        """
        as_is = [each[FACTORS.index(1.0)] for each in features]
        known = [np.isfinite(each).all(axis=1) for each in as_is]
        if sum(len(np.unique(each[k], axis=0)) for each, k in zip(as_is, known, strict=True)) < MIN_BLOCKS:
            return None
        several = len(features) > 1
        part = np.concatenate(
            [np.full(k.sum(), i) if several else g[k] for i, (k, g) in enumerate(zip(known, groups, strict=True))]
        )
        seen = np.stack(
            [
                np.concatenate([each[k][rows] for each, rows in zip(features, known, strict=True)])
                for k in range(len(FACTORS))
            ]
        ).astype(np.float64)  # (factors, n, f)
        own = seen[FACTORS.index(1.0)]
        left_out: dict[str, list[NDArray[np.float64]]] = {cue: [] for cue in PARTS}
        for each in np.unique(part):
            moments = _moments(seen[:, part != each])
            for cue, distance in _distances(own[part == each], *moments).items():
                left_out[cue].append(distance)
        distances = {cue: np.concatenate(each) for cue, each in left_out.items()}
        levels = np.linspace(0, 1, N_QUANTILES)
        reference = {cue: np.quantile(each, levels) for cue, each in distances.items()}
        reference["all"] = np.quantile(_combined(distances, reference), levels)
        return cls(*_moments(seen), reference, "training sections" if several else "spatial blocks of the section")

    def distances(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Distances (n,) by each cue and by "all"; see the class."""
        found = _distances(features.astype(np.float64), self.mean, self.scale, self.correlation, self.zoom)
        return found | {"all": _combined(found, self.reference)}

    def factor(self, features: NDArray[np.float32]) -> float:
        """By what the scale of the shapes seems to be wrong, in the median: their mpp is this times the right one."""
        known = np.isfinite(features).all(axis=1)
        unit = (features[known] - self.mean) / self.scale
        return float(np.exp(np.median(unit @ self.zoom)))

    def percentile(self, distance: NDArray[np.float64], cue: str = "all") -> NDArray[np.float64]:
        """(n,) in [0, 100]: the share of left-out training shapes that lie nearer. 100: farther than all of them."""
        quantiles = np.maximum.accumulate(self.reference[cue])
        return np.where(np.isnan(distance), np.nan, np.interp(distance, quantiles, np.linspace(0, 100, len(quantiles))))

    def record(self) -> dict[str, Any]:
        """Plain values for a card."""

        def plain(values: NDArray[np.float64]) -> list[float]:
            return [float(f"{value:.6g}") for value in values.ravel()]

        return {
            "mpp": DOMAIN_MPP, "block_px": BLOCK_PX, "mean": plain(self.mean), "scale": plain(self.scale),
            "correlation": plain(self.correlation), "zoom": plain(self.zoom),
            "reference": {cue: plain(quantiles) for cue, quantiles in self.reference.items()},
            "source": self.source,
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Domain | None:
        """What `record` made; None for an empty one. Raises ValueError, naming the field, for one that is wrong."""
        if not record:
            return None
        n = N_FEATURES
        shapes: dict[str, tuple[int, ...]] = {"mean": (n,), "scale": (n,), "correlation": (n, n), "zoom": (n,)}
        made = {name: _numbers(record.get(name), shape, name) for name, shape in shapes.items()}
        stated = record.get("reference")
        if not isinstance(stated, Mapping) or set(stated) != {"all", *PARTS}:
            raise ValueError(f"domain.reference needs {sorted({'all', *PARTS})}.")
        reference = {cue: _numbers(stated[cue], (N_QUANTILES,), f"reference.{cue}") for cue in stated}
        if record.get("mpp") != DOMAIN_MPP or record.get("block_px") != BLOCK_PX:
            raise ValueError(f"domain is of blocks of {BLOCK_PX} pixels of {DOMAIN_MPP} um, not of this one's.")
        if (made["scale"] <= 0).any() or np.linalg.eigvalsh(made["correlation"]).min() <= 0:
            raise ValueError("domain.scale must be positive, and domain.correlation positive definite.")
        if not isinstance(record.get("source"), str):
            raise ValueError("domain.source must be a text.")
        return cls(**made, reference=reference, source=str(record["source"]))


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """An array of finite numbers of a shape; raises ValueError, naming the field, for anything else."""
    n = int(np.prod(shape))
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != n or not np.isfinite(np.array(values, dtype=np.float64)).all():
        raise ValueError(f"domain.{name} must be a list of {n} finite numbers.")
    return np.array(values, dtype=np.float64).reshape(shape)


Moments = tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]"]


def _moments(seen: NDArray[np.float64]) -> Moments:
    """Mean, standard deviation, shrunk correlation, and weights of the scale, of features (factors, n, f)."""
    own = seen[FACTORS.index(1.0)]
    mean, scale = own.mean(axis=0), own.std(axis=0) + 1e-6
    unit = (own - mean) / scale
    correlation = (1 - SHRINKAGE) * (unit.T @ unit) / len(unit) + SHRINKAGE * np.eye(len(mean))
    x = ((seen - mean) / scale).reshape(-1, seen.shape[-1])
    y = np.log(FACTORS).repeat(seen.shape[1])
    zoom = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ y)
    return mean, scale, correlation, zoom


def _distances(
    values: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64],
    correlation: NDArray[np.float64], zoom: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    unit = (values - mean) / scale
    out = {"scale": np.abs(unit @ zoom)}
    for cue, part in (("colour", COLOUR), ("form", FORM), ("joint", slice(None))):
        inverse = np.linalg.inv(correlation[part, part])
        out[cue] = np.sqrt(np.einsum("ni,ij,nj->n", unit[:, part], inverse, unit[:, part]) / len(inverse))
    return out


def _combined(
    distances: Mapping[str, NDArray[np.float64]], reference: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    at = round(OUT / 100 * (N_QUANTILES - 1))
    fourth = [(distances[cue] / max(reference[cue][at], 1e-9)) ** 4 for cue in PARTS]
    return np.sum(fourth, axis=0) ** 0.25


def outside(domain: Domain, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], str | None]:
    """Percentiles (n,) of shapes, and what to say where more than `MANY_OUT` of them lie beyond `OUT`; else None."""
    distances = domain.distances(features)
    percentiles = {cue: domain.percentile(each, cue) for cue, each in distances.items()}
    known = np.isfinite(percentiles["all"])
    if not known.any():
        return percentiles["all"], None
    shares = {cue: float((each[known] > OUT).mean()) for cue, each in percentiles.items()}
    if shares["all"] <= MANY_OUT:
        return percentiles["all"], None
    cues = sorted((cue for cue in CUES if shares[cue] > MANY_OUT / 2), key=lambda cue: -shares[cue])
    what = [SAID[cue] for cue in cues]
    if "scale" in cues:
        what[cues.index("scale")] += f", which seems to be {domain.factor(features):.2g} times the right one"
    return percentiles["all"], (
        f"{shares['all']:.0%} of the shapes do not look like what the model was trained on"
        + (f", by {'; by '.join(what)}" if what else "")
    )
