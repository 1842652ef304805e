"""Training on a device: that the loss falls, that a resumed run is the unbroken one, and steps a second."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from _device_clock import once, wait
from _device_parts import Row, Setting
from _device_simulated import measured, tiny

from stpredict import _training
from stpredict._section import Section
from stpredict._training import MIN_STEPS
from stpredict.models import PixNet, PixNetConfig
from stpredict.models._samples import Batch


def _plan(s: Setting, **changes: object) -> _training.TrainOptions:
    return _training.TrainOptions(
        **{"max_epochs": 2, "device": s.device, "precision": "32", "progress": False} | changes
    )


def training(s: Setting) -> list[Row]:
    sections = [measured(seed, side=320, n=16, n_genes=4) for seed in (1, 2)]
    genes = sections[0].genes or ()
    first, broken, resumed = (tiny(genes, context_rank=0) for _ in range(3))
    whole = _training.fit(first, sections, [], _plan(s, checkpoint_dir=s.folder / "whole"))
    _break_off(broken, sections, s.folder / "broken", s)
    _training.fit(resumed, sections, [], _plan(s, checkpoint_dir=s.folder / "broken", resume=True))
    losses = whole["train_loss"].tolist()
    pairs = zip(first.state_dict().values(), resumed.state_dict().values(), strict=True)
    apart = max(float((one.cpu().float() - other.cpu().float()).abs().max()) for one, other in pairs)
    return [
        Row("loss of two epochs", f"{losses[0]:.4f}, {losses[1]:.4f}", "", "falls", losses[1] < losses[0]),
        Row("resumed after an epoch against unbroken, largest difference of a weight", apart, "", "0", apart == 0),
    ]


def _break_off(model: PixNet, sections: list[Section], folder: Path, s: Setting) -> None:
    """Train until the second epoch has ended, and is not yet saved."""
    end = _training.FitModule.on_train_epoch_end

    def interrupt(task: _training.FitModule) -> None:
        end(task)
        if task.current_epoch == 1:
            raise InterruptedError

    with mock.patch.object(_training.FitModule, "on_train_epoch_end", interrupt):
        try:
            _training.fit(model, sections, [], _plan(s, checkpoint_dir=folder))
        except InterruptedError:
            return
    raise AssertionError("training was not broken off")


def steps(s: Setting) -> list[Row]:
    """Steps a second of a whole training against a plain loop of forward, backward and step over windows at hand."""
    if s.small:
        sections, epochs = [measured(1, side=320, n=16, n_genes=4)], 1
        model = tiny(sections[0].genes or (), context_rank=0)
    else:
        sections, epochs = [measured(seed, side=4096, n=600, n_genes=250, mpp=2.0) for seed in (1, 2)], 3
        model = PixNet(config=PixNetConfig(genes=sections[0].genes or (), context_rank=0))
    samples = model.samples(sections, train=True)
    size = max(1, min(model.recipe.batch_size, len(samples) // MIN_STEPS))
    n = epochs * (len(samples) // size)
    plan = _plan(s, max_epochs=epochs, precision="auto")
    took = once(lambda: _training.fit(model, sections, [], plan), s.device)
    model.to(s.device).train()
    batches = [samples.collate([samples[i] for i in range(k * size, (k + 1) * size)]).to(s.device) for k in range(2)]
    plain = _loop(model, itertools.islice(itertools.cycle(batches), n), s)
    return [
        Row(
            f"train, {n} steps of {size} windows of {model.config.window_px} px, start and end included",
            n / took,
            "steps/s",
        ),
        Row("plain loop over two batches at hand, bf16 on a card", n / plain, "steps/s"),
        Row("train / plain loop, by time", took / plain),
    ]


def _loop(model: PixNet, batches: Iterator[Batch], s: Setting) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        with torch.autocast(s.device.split(":")[0], torch.bfloat16, enabled=s.cuda):
            loss = model.loss(batch, model.query(batch.genes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    first = next(batches)
    step(first)
    wait(s.device)
    rest = list(batches)
    took = once(lambda: [step(batch) for batch in [first, *rest]], s.device)
    return took
