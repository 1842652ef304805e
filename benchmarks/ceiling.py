"""The noise ceiling beside the score of the true field, on simulated sections where that is known.

python benchmarks/ceiling.py        # prints Markdown
"""

from __future__ import annotations

import numpy as np

import stpredict as stp


def main() -> None:
    print("| seed | section | efficiency_sd | true field | ceiling | difference |\n|---|---|---|---|---|---|")
    for efficiency_sd in (0.35, 0.1):
        for seed in (0, 1):
            for i, section in enumerate(stp.datasets.toy(2, seed=seed, efficiency_sd=efficiency_sd)):
                counts = section.tables["table"].X
                ceiling = float(np.nanmean(stp.metrics.ceiling(counts, np.arange(counts.shape[1]))))
                oracle = section.attrs["toy"]["oracle"]["pcc_m"]
                print(f"| {seed} | {i} | {efficiency_sd} | {oracle:.3f} | {ceiling:.3f} | {ceiling - oracle:+.4f} |")


if __name__ == "__main__":
    main()
