"""The training loop: options, fitting with Lightning, history, checkpoints, and the model's card."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray

from stpredict._arguments import LIMITS
from stpredict._malloc import keep_freed_memory
from stpredict._schema import check_fields
from stpredict._section import ImageView, Section
from stpredict._training._bar import TrainingBar, stage
from stpredict._training._evidence import HeldOut, held_out, mean_pcc
from stpredict._training._module import FitModule, RestoreBest, long_enough
from stpredict.models._base import Model, Recipe
from stpredict.models._samples import Samples, held_in_memory
from stpredict.nn.device import autocast, resolve_device, resolve_precision, run_after_fork

logger = logging.getLogger("stpredict")
CACHE_BYTES = 3 * 2**30  # images of the training sections held at working resolution, all together


@dataclass(frozen=True)
class TrainOptions:
    """How one training runs; None = the model's own recipe."""

    max_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1
    checkpoint_dir: str | Path | None = None
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError, which names the setting, for one with which nothing could be trained."""
        check_fields(vars(self), TrainOptions, LIMITS)

    def recipe(self, own: Recipe) -> Recipe:
        """The model's recipe with what the caller gave put in its place."""
        given: dict[str, Any] = {"max_epochs": self.max_epochs, "batch_size": self.batch_size, "lr": self.lr}
        recipe = replace(own, **{key: value for key, value in given.items() if value is not None})
        if self.lr is not None:  # the encoder's rate keeps its ratio
            recipe = replace(recipe, encoder_lr=own.encoder_lr * self.lr / own.lr)
        return recipe


def fit_model(
    model: Model, train: Sequence[Section], val: Sequence[Section], plan: TrainOptions
) -> tuple[pd.DataFrame, HeldOut | None]:
    """Train `model` in place on sections; it has no card yet.

    train, val
        Sections with expression in the order of `model.genes`; `val` may be empty (no early stopping, no evidence).

    Returns the history and what was predicted of `val`, if there is one. The history has one row an epoch: epoch,
    train_loss, and with validation val_loss; lr.

    Raises ValueError where there is no section, and for a training that diverged: the model then has no card.
    """
    if not train:
        raise ValueError("there is nothing to train on: no section was given.")
    run_after_fork()
    held = in_memory([*train, *val])
    train, val = held[: len(train)], held[len(train) :]
    device = resolve_device(plan.device)
    precision = resolve_precision(plan.precision, device)
    with keep_freed_memory():
        model.to(device)
        with autocast(precision, device):  # frozen encoders see here what they will see in the loop and in prediction
            model.prepare(train)
        model.card = model.loaded_from = None  # from here on no card and no folder has these weights
        recipe = plan.recipe(model.recipe)
        history = pd.DataFrame({"epoch": [0]})
        if any(p.requires_grad for p in model.parameters()):
            history = _loop(model, train, val, plan, recipe)
        model.to(device)  # Lightning brings it back to the CPU, and a closed form may be computed there
        with autocast(precision, device):
            has_finish = type(model).finish is not Model.finish
            with stage("closed-form part of the model", progress=plan.progress and has_finish):
                model.finish(train)
            model.eval()
            _check_finite(model, history, recipe)
            if not val:
                return history, None
            if type(model).choose is not Model.choose:
                _choose(model, val)
            return history, held_out(model, val)


def _choose(model: Model, val: Sequence[Section]) -> None:
    """Let a model settle what held-out shapes decide; nothing is predicted where it asks for nothing."""
    seen: list[HeldOut] = []

    def predict() -> NDArray[np.float32]:
        seen.append(held_out(model, val))
        return seen[-1].pred

    def score(pred: NDArray[np.float32]) -> float:
        scores = mean_pcc(replace(seen[0], pred=pred))
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else np.nan

    model.choose(predict, score)


def in_memory(sections: Sequence[Section]) -> list[Section]:
    """The sections with their images read once, as far as `CACHE_BYTES` goes; those that are there already stay."""
    share = CACHE_BYTES // max(1, len(sections))
    known: dict[tuple[Any, ...], ImageView] = {}
    held = []
    for section in sections:
        seen = id(section.image.pixels), section.image.scale, section.image.mpp
        if seen not in known:  # several scales of a tissue have one image
            known[seen] = held_in_memory(section, limit_bytes=share).image
        held.append(replace(section, image=known[seen]))
    return held


def _loop(
    model: Model, train: Sequence[Section], val: Sequence[Section], plan: TrainOptions, recipe: Recipe
) -> pd.DataFrame:
    device = resolve_device(plan.device)
    precision = resolve_precision(plan.precision, device)
    with autocast(precision, device):  # some samples hold features of an encoder
        samples = model.samples(train, train=True, seed=plan.seed), _val_samples(model, val)
    if plan.max_epochs is None:
        recipe = long_enough(recipe, len(samples[0]))
    task = FitModule(model, recipe, *samples, seed=plan.seed, precision=precision)
    folder = Path(plan.checkpoint_dir) if plan.checkpoint_dir is not None else None
    L.seed_everything(plan.seed, verbose=False)
    model.train()  # Lightning keeps the mode it finds, and the encoder's batch norm must be told to stay as it is
    with warnings.catch_warnings(), _quiet_lightning(), _determinism_as_found():
        warnings.filterwarnings("ignore", message="GPU available but not used.*")  # the caller's choice
        trainer = _trainer(plan, recipe, device, folder, has_val=bool(val))
        warnings.filterwarnings(
            "ignore", message=".*LeafSpec.*", category=FutureWarning
        )  # Lightning 2.6 with torch 2.15
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the encoder's norms
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
        with tempfile.TemporaryDirectory() as left:
            task.kept = Path(left) / "history.json" if plan.devices * plan.num_nodes > 1 else None
            trainer.fit(task, ckpt_path=_checkpoint(folder) if plan.resume else None, weights_only=True)
            if not task.history and task.kept is not None:  # the processes that trained have ended
                task.history = json.loads(task.kept.read_text())
    if not task.history:
        raise ValueError(
            f"no step was taken: {len(task.samples)} samples make no batch. Pass fewer devices or more shapes."
        )
    return pd.DataFrame(task.history)


def _check_finite(model: Model, history: pd.DataFrame, recipe: Recipe) -> None:
    """Raise ValueError where a training left weights that are not finite, and say since when.

    Parameters
    ----------
    history : DataFrame
        What `fit` returns.
    """
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        lost = history[~np.isfinite(history["train_loss"])] if "train_loss" in history else history[:0]
        since = f" The training loss is not finite from epoch {lost['epoch'].iloc[0]:.0f} on." if len(lost) else ""
        raise ValueError(
            f"training diverged: {len(broken)} tensors hold values that are not finite, such as {broken[0]}.{since} "
            f"Pass a smaller lr (now {recipe.lr:g}), and check the measured values of the sections."
        )


def _trainer(
    plan: TrainOptions, recipe: Recipe, device: torch.device, folder: Path | None, *, has_val: bool
) -> L.Trainer:
    return L.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" and plan.devices == 1 else plan.devices,
        strategy=_strategy(plan),
        use_distributed_sampler=False,  # ours splits windows itself, and repeats none
        num_nodes=plan.num_nodes,
        precision=resolve_precision(plan.precision, device),
        max_epochs=recipe.max_epochs,
        gradient_clip_val=recipe.gradient_clip,
        callbacks=_callbacks(recipe, folder, has_val=has_val, progress=plan.progress),
        logger=_csv_log(folder) if folder is not None else False,
        enable_checkpointing=folder is not None,
        enable_model_summary=False,
        enable_progress_bar=False,  # ours is a callback
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if has_val else 0,
        log_every_n_steps=1,
        reload_dataloaders_every_n_epochs=1,
        deterministic="warn",
    )


def _strategy(plan: TrainOptions) -> str:
    """With several devices of one machine, processes that hand the trained model back to the caller."""
    several = plan.devices > 1 and plan.num_nodes == 1
    interactive = hasattr(sys, "ps1")  # there Lightning forks, and says so where it cannot
    return "ddp_spawn" if plan.strategy == "auto" and several and not interactive else plan.strategy


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on devices and products; its warnings stay."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _determinism_as_found() -> Iterator[None]:
    """Restore torch's deterministic mode on exit: Lightning sets it process-wide, which slows predictions down.

    Meanwhile new memory is not filled, which that mode does before every operation: nothing reads it unwritten.
    """
    found = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(found[0], warn_only=found[1])


def _val_samples(model: Model, val: Sequence[Section]) -> Samples | None:
    return model.samples(val, train=False) if val else None


def _checkpoint(folder: Path | None) -> Path:
    if folder is None or not (folder / "last.ckpt").is_file():
        raise FileNotFoundError(
            f"resume=True, but there is no last.ckpt in checkpoint_dir={str(folder)!r}. Name the folder of the "
            "interrupted run, or train without resume."
        )
    return folder / "last.ckpt"


def _callbacks(recipe: Recipe, folder: Path | None, *, has_val: bool, progress: bool) -> list[Callback]:
    callbacks: list[Callback] = [RestoreBest()] if has_val else []
    if has_val and recipe.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=recipe.patience))
    if folder is not None:
        callbacks.append(_checkpoints(folder))
    if progress:
        callbacks.append(TrainingBar())
    return callbacks


def _checkpoints(folder: Path) -> ModelCheckpoint:
    # at the end of the epoch, after its row of the history is written
    return ModelCheckpoint(
        folder, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )


def _csv_log(folder: Path) -> CSVLogger:
    """A log of its own for every run: log, log2, ...; a resumed run keeps what the first one wrote."""
    n = sum(1 for path in folder.glob("log*") if path.is_dir())
    return CSVLogger(folder, name="", version=f"log{n + 1}" if n else "log")
