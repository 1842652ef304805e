"""`stpredict demo`: train on a simulated section, predict another, and score it against the known truth."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("stpredict-demo"),
    seed: Annotated[int, Parameter(help="Of the sections, the weights and the training windows.")] = 0,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier demo in `--out`.", negative="")] = False,
) -> None:
    """Train on a simulated section, predict another, and score it against the known truth.

    Works offline, on two cores, in a few minutes: two toy sections, of which every pixel's expression is known; a small
    PixNet beside Ridge and Mean, trained on the first; one table of how well they do on the second, against its
    measured spots and against the truth from 8 um up. Writes both sections as stores, the trained model, the table and
    a figure, and says where they are.
    """
    # by name: what it imports takes seconds, which `stpredict --help` should not
    importlib.import_module("stpredict.cli._demo_run").run(out, seed=seed, overwrite=overwrite)
