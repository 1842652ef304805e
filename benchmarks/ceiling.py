"""The noise ceiling beside the score of the true field, on simulated sections where that is known.

python benchmarks/ceiling.py        # prints Markdown
"""

from __future__ import annotations

import numpy as np
from spatialdata import SpatialData

import stpredict as stp


def main() -> None:
    print("| seed | section | efficiency_sd | true field | with depth | ceiling | ceiling - true field |")
    print("|---|---|---|---|---|---|---|")
    for efficiency_sd in (0.35, 0.1):
        found = []
        for seed in (0, 1):
            for i, section in enumerate(stp.datasets.toy(2, seed=seed, efficiency_sd=efficiency_sd)):
                counts = section.tables["table"].X
                ceiling = float(np.nanmean(stp.metrics.ceiling(counts, np.arange(counts.shape[1]))))
                found.append((section.attrs["toy"]["oracle"]["pcc_m"], with_depth(section), ceiling))
                true = found[-1][0]
                shown = " | ".join(f"{score:.3f}" for score in found[-1])
                print(f"| {seed} | {i} | {efficiency_sd} | {shown} | {ceiling - true:+.4f} |")
        true, depth, ceiling = np.mean(found, axis=0)
        print(
            f"| **mean** | | {efficiency_sd} | {true:.3f} | {depth:.3f} | {ceiling:.3f} | **{ceiling - true:+.4f}** |"
        )


def with_depth(section: SpatialData, *, n_draws: int = 60) -> float:
    """PCC@M of the expected target given the true rate and the spot's own depth, which no image shows."""
    table, rng = section.tables["table"], np.random.default_rng(0)
    counts = table.X.toarray().astype(float)
    total = counts.sum(axis=1)
    truth = np.asarray(stp.datasets.toy_truth_shapes(section, "spots"))
    rate = np.expm1(truth) * total[:, None] / 1e4
    draws = [stp.metrics.log1p_cp10k(rng.poisson(rate).astype(float), total) for _ in range(n_draws)]
    target = stp.metrics.log1p_cp10k(counts, total)
    return float(np.nanmean(stp.metrics.pcc(np.mean(draws, axis=0), target)))


if __name__ == "__main__":
    main()
