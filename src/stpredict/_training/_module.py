"""LightningModule of a model: batches prefetched in a thread, optimiser, schedule, best weights restored."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from stpredict._prefetch import prefetch
from stpredict.models._base import Model, Recipe
from stpredict.models._samples import Batch, PatchSamples, Samples
from stpredict.nn.device import Precision, autocast

logger = logging.getLogger("stpredict")
MIN_STEPS = 4  # a batch is never so large that an epoch has fewer steps than this, where there are samples enough


class RestoreBest(Callback):
    """Remembers the weights of the epoch with the lowest validation loss, and puts them back in the end."""

    def __init__(self) -> None:
        self.loss, self.epoch = math.inf, -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch
            self.weights = {key: value.detach().clone() for key, value in pl_module.state_dict().items()}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights:
            logger.info("kept the weights of epoch %d, validation loss %.4f", self.epoch, self.loss)
            pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss, self.epoch, self.weights = (state_dict[key] for key in ("loss", "epoch", "weights"))


class EpochSampler(Sampler[int]):
    """Global indices of one epoch: epoch * n .. epoch * n + n - 1, so that every epoch draws windows of its own.

    Of several processes each takes every `world`-th of the same order: none is drawn twice, and the batches of all
    together are those of one process.
    """

    def __init__(self, n: int, epoch: int, *, rank: int = 0, world: int = 1) -> None:
        self.n, self.epoch, self.rank, self.world = n, epoch, rank, world

    def __len__(self) -> int:
        return self.n // self.world

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.epoch, self.n]).permutation(self.n)
        own = order[: len(self) * self.world][self.rank :: self.world]
        return iter((self.epoch * self.n + own).tolist())


class Batches:
    """Batches of samples, cut and collated in a thread of their own while the network is at work.

    Parameters
    ----------
    indices : Sequence[Sequence[int]]
        The samples of every batch.
    precision, device
        Of the network: samples that hold features of an encoder compute them in the same number format.
    """

    def __init__(
        self, samples: Samples, indices: Sequence[Sequence[int]], *, precision: Precision, device: torch.device
    ) -> None:
        self.samples, self.indices, self.precision, self.device = samples, indices, precision, device

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        with closing(prefetch(self._made, self.indices, depth=2)) as made:
            yield from made

    def _made(self, indices: Sequence[int]) -> Batch:
        with autocast(self.precision, self.device):
            return self.samples.collate(self.samples.__getitems__(indices))


def batch_size(recipe: Recipe, n_samples: int) -> int:
    """Samples a step, of all processes together: those of the recipe, fewer where there are few."""
    return max(1, min(recipe.batch_size, n_samples // MIN_STEPS))


def long_enough(recipe: Recipe, n_samples: int) -> Recipe:
    """The recipe in as many epochs of so many samples as make its `min_steps`."""
    steps = max(1, n_samples // batch_size(recipe, n_samples))  # an epoch
    epochs = max(recipe.max_epochs, math.ceil(recipe.min_steps / steps))
    patience = None if recipe.patience is None else round(recipe.patience * epochs / recipe.max_epochs)
    return replace(recipe, max_epochs=epochs, patience=patience)


class FitModule(L.LightningModule):
    """A model with its optimiser and its data, as Lightning wants them."""

    def __init__(
        self, model: Model, recipe: Recipe, samples: Samples, val: Samples | None, *, seed: int, precision: Precision
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.samples, self.val_samples, self.seed = model, recipe, samples, val, seed
        self.precision = precision
        self.batch_size = batch_size(recipe, len(samples))
        if recipe.encoder_lr == 0 and (encoder := getattr(model, "encoder", None)) is not None:
            encoder.requires_grad_(False)  # before other processes are told which gradients to expect
        self.history: list[dict[str, float]] = []
        self.kept: Path | None = None  # where other processes leave it
        self._seen: list[tuple[float, int]] = []

    def train_dataloader(self) -> Batches:
        """The windows of this epoch; the last batch is left out where it would be smaller."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = EpochSampler(len(self.samples), self.current_epoch, rank=rank, world=world)
        return self._batches(self.samples, list(BatchSampler(sampler, self._own_batch(), drop_last=True)))

    def _own_batch(self) -> int:
        """Of this process: the batch of the recipe is that of all processes together."""
        return max(1, self.batch_size // self.trainer.world_size)

    def val_dataloader(self) -> Batches | list:
        """Every shape of the validation sections once, in every process, so that all choose the same epoch."""
        if self.val_samples is None:
            return []
        return self._batches(self.val_samples, val_batches(self.model, self.val_samples, self.batch_size))

    def _batches(self, samples: Samples, indices: Sequence[Sequence[int]]) -> Batches:
        return Batches(samples, indices, precision=self.precision, device=self.device)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self.model.loss(batch, self.model.query(batch.genes))
        many = self.trainer.world_size > 1
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.rows), sync_dist=many
        )
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        loss = self.model.loss(batch, self.model.query(batch.genes))
        self.log("val_loss", loss, on_epoch=True, prog_bar=True, batch_size=len(batch.rows))

    def on_train_epoch_end(self) -> None:
        seen = {key: float(value) for key, value in self.trainer.callback_metrics.items()}
        rate = self.trainer.optimizers[0].param_groups[-1]["lr"]
        self.history.append({"epoch": self.current_epoch} | seen | {"lr": rate})
        if self.kept is not None and self.trainer.is_global_zero:
            self.kept.write_text(json.dumps(self.history))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stpredict_history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["stpredict_history"]

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        encoder = getattr(self.model, "encoder", None)
        slow = {id(p) for p in encoder.parameters()} if encoder is not None else set()
        groups = [
            {
                "params": [p for p in self.model.parameters() if id(p) in slow and p.requires_grad],
                "lr": recipe.encoder_lr,
            },
            {"params": [p for p in self.model.parameters() if id(p) not in slow and p.requires_grad], "lr": recipe.lr},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=recipe.weight_decay)
        together = self._own_batch() * self.trainer.world_size
        n_steps = max(1, recipe.max_epochs * (len(self.samples) // together))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps, recipe.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def val_batches(model: Model, samples: Samples, n: int) -> list[list[int]]:
    """Indices of validation batches: `n` samples each, or a whole section where the model must see one."""
    if model.context == "section":
        if not isinstance(samples, PatchSamples):
            raise TypeError(
                f"{type(model).__name__} sees a whole section, so its samples without training must be PatchSamples, "
                f"which say what lies in one section; got {type(samples).__name__}."
            )
        return samples.by_section()
    return [list(range(k, min(k + n, len(samples)))) for k in range(0, len(samples), n)]


def _rate(step: int, n_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: up along a line, down along a cosine to 1 %."""
    rise = max(1, round(warmup * n_steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, n_steps - rise))))
