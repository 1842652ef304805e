"""Steps that `tl.benchmark` and `tl.unseen_genes` share: a seeded model, its cached result, training, prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpredict import _inference, _training
from stpredict.models._base import first_seed
from stpredict.tl._cache import cached_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpredict._section import Section
    from stpredict.models import Model


def cached_run(
    build: Callable[[], Model],
    seed: int,
    file: Path | None,
    key_of: Callable[[Model], str],
    measure: Callable[[Model], dict[str, Any]],
    *,
    name: str,
) -> dict[str, Any]:
    """What `measure` says of a fresh model, from the file if there is one.

    Parameters
    ----------
    build : callable
        Returns the model.
    seed : int
        Of its first weights.
    file : Path, optional
        Where the result is kept.
    key_of : callable
        The hash of all that decides the result, the model's first weights among it.
    measure : callable
        Trains and scores the model.
    name : str
        Of the model, as the user gave it.

    Raises
    ------
    ValueError
        For a file of another hash.
    """
    with first_seed(seed):
        model = build()
    return cached_json(file, key_of(model), lambda: measure(model), what=f"models[{name!r}]")


def fit(
    model: Model, sections: Sequence[Section], options: _training.TrainOptions, *, val: float = 0.0, target: str
) -> None:
    """Train on sections; `val` is the share of each that is held out, as blocks, to choose the epoch."""
    fitted, held = _training.hold_out_places(sections, share=val, seed=options.seed)
    names = tuple(s.name for s in sections)
    _training.fit(model, fitted, held, options, sections=names, target=target)


def predict_and_measure(
    model: Model, section: Section, genes: Sequence[str], *, device: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predicted values (n, g) of genes in a section whose counts the model is not shown, and the measured ones."""
    runtime = _inference.RuntimeOptions(device=device, precision="32", progress=False).resolve(model.output)
    unmeasured = replace(section, expression=None, genes=None)
    pred, _ = _inference.predict(model, unmeasured, genes, runtime=runtime)
    assert section.expression is not None
    return pred, section.expression
