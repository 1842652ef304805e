"""Progress bars of a training: one for all epochs, in place of a bar an epoch with another inside it, and stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm.auto import tqdm


@contextmanager
def stage(name: str, *, progress: bool) -> Iterator[None]:
    """A bar of one step, for work before or after the epochs that takes its time; it goes when that is done."""
    with tqdm(desc=name, total=1, disable=not progress, leave=False, bar_format="{l_bar}{bar}| {elapsed}") as bar:
        yield
        bar.update()


class TrainingBar(Callback):
    """A bar over the steps of all epochs, which says which epoch it is and the losses of the last one."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None  # made by the process that shows it

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One bar, at the place where a resumed training goes on."""
        if trainer.is_global_zero and trainer.max_epochs is not None:
            steps = int(trainer.num_training_batches)
            self.bar = tqdm(
                desc="training", total=steps * trainer.max_epochs, initial=steps * trainer.current_epoch, unit="step"
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Which epoch it is."""
        if self.bar is not None:
            self.bar.set_description(f"training, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """A step further."""
        if self.bar is not None:
            self.bar.update()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The losses of the epoch."""
        if self.bar is not None:
            losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("_loss")}
            self.bar.set_postfix(losses)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closed; a training that ended early is at its end all the same."""
        self._close(done=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Closed where it stands."""
        self._close(done=False)

    def _close(self, *, done: bool) -> None:
        if self.bar is not None:
            if done:
                self.bar.total = self.bar.n
            self.bar.close()
            self.bar = None
