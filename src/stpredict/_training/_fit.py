"""Training of one model, or of the members of an ensemble one after the other, and the card that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stpredict import metrics
from stpredict._section import Section
from stpredict._training._evidence import HeldOut, evidence, held_out, joined
from stpredict._training._loop import TrainOptions, fit_model
from stpredict.models import Ensemble
from stpredict.models._base import Model, new_card
from stpredict.nn.device import autocast, resolve_device, resolve_precision

Fold = tuple[Sequence[Section], Sequence[Section]]


def fit(
    model: Model, train: Sequence[Section], val: Sequence[Section], plan: TrainOptions, **card: Any
) -> pd.DataFrame:
    """Train `model` in place on sections, give it its card, and return the history.

    Parameters
    ----------
    train, val : Sequence[Section]
        Sections with expression in the order of `model.genes`; `val` may be empty (no early stopping, no evidence).
    card : Any
        Fields of the card that only the caller knows (sections, target, licence, ...).

    Returns
    -------
    DataFrame
        One row an epoch: epoch, train_loss, and with validation val_loss; lr. Of an ensemble: also member, and the
        epochs of each.

    Raises
    ------
    ValueError
        Where there is no section, and for a training that diverged: the model then has no card.
    """
    if isinstance(model, Ensemble):
        history, _ = _fit_members(model, [(train, val)] * len(model.models), plan, card)
        with autocast(*_where(plan)):
            held = held_out(model, val) if val else None
    else:
        history, held = fit_model(model, train, val, plan)
    _give_card(model, held, plan, card)
    return history


def fit_leaving_out(model: Ensemble, every: Sequence[Section], plan: TrainOptions, **card: Any) -> pd.DataFrame:
    """Train an ensemble whose members leave out one section each, in turn, and learn its errors from these.

    Parameters
    ----------
    every : Sequence[Section]
        Sections with expression, at least two. Member i is trained on all but the i-th, counted round, which validates
        it.
    card : Any
        As for `fit`.

    Returns
    -------
    DataFrame
        As `fit` returns it.

    Raises
    ------
    ValueError
        As `fit` does.
    """
    n = len(every)
    folds = [([s for j, s in enumerate(every) if j != i % n], [every[i % n]]) for i in range(len(model.models))]
    history, parts = _fit_members(model, folds, plan, card)
    _give_card(model, joined(parts), plan, card)
    return history


def _fit_members(
    model: Ensemble, folds: Sequence[Fold], plan: TrainOptions, card: dict[str, Any]
) -> tuple[pd.DataFrame, list[HeldOut]]:
    """Train every member with the seed after that of the one before; histories, and what each says of its held-out."""
    model.card = model.loaded_from = None
    histories, held = [], []
    for i, (member, (train, val)) in enumerate(zip(model.models, folds, strict=True)):
        own = _of_member(plan, i)
        history, found = fit_model(member, train, val, own)
        _give_card(member, found, own, card)
        history.insert(0, "member", i)
        histories.append(history)
        held += [] if found is None else [found]
    model.to(resolve_device(plan.device)).eval()
    return pd.concat(histories, ignore_index=True), held


def _of_member(plan: TrainOptions, i: int) -> TrainOptions:
    """The options of the i-th member: its own seed and folder; one that was not begun is not resumed."""
    folder = None if plan.checkpoint_dir is None else Path(plan.checkpoint_dir) / f"member{i}"
    begun = i == 0 or (folder is not None and (folder / "last.ckpt").is_file())
    return replace(plan, seed=plan.seed + i, checkpoint_dir=folder, resume=plan.resume and begun)


def _give_card(model: Model, held: HeldOut | None, plan: TrainOptions, card: dict[str, Any]) -> None:
    model.card = new_card(model, seed=plan.seed, protocol=metrics.PROTOCOL, **evidence(held, model.genes), **card)


def _where(plan: TrainOptions) -> tuple[Any, Any]:
    """Number format and device, as `autocast` takes them."""
    device = resolve_device(plan.device)
    return resolve_precision(plan.precision, device), device
