"""PixNet as published: whether a tile fits into a card, how fast it is, and what a smaller card can do."""

from __future__ import annotations

import numpy as np
import torch
from _device_clock import bare, peak_memory
from _device_fast import end_to_end, forward_rows
from _device_parts import Row, Setting
from _device_simulated import published as build_published
from _device_simulated import slide

from stpredict import _inference
from stpredict.models import PixNet
from stpredict.models._samples import Batch
from stpredict.nn.device import free_bytes

GOAL = 0.4  # of the card's bf16 matrices


def published(s: Setting) -> list[Row]:
    genes = tuple(f"g{i}" for i in range(4 if s.small else 250))
    model = build_published(genes, small=s.small)
    n = sum(each.numel() for each in model.encoder.parameters())
    rows = [Row("parameters of the encoder", round(n / 1e6, 3), "M")]
    if s.cuda and (said := _memory(model, s, rows)):
        return [*rows, Row("too little memory", said)]
    fast = _inference.fold_batch_norms(model.to(s.device))
    batch = 1 if s.small else _batch(fast, s)
    rows += forward_rows(fast, s, (1,) if batch == 1 else (1, batch), goal=GOAL)
    side = model.config.core_px * (1 if s.small else 4)
    read = model.config.core_px + 2 * model.config.halo_px
    where = slide(side, model.mpp, pitch_um=100 if not s.small else 50, radius_um=27.5, period=read)
    return rows + end_to_end(model, where, s, batch=batch, goal=False)


def _memory(model: PixNet, s: Setting, rows: list[Row]) -> str:
    """Bring the model to the card and note what a tile takes; what is to be said where there is too little memory."""
    free = free_bytes(torch.device(s.device)) / 2**30
    weights = sum(each.numel() * each.element_size() for each in model.state_dict().values()) / 2**30
    if weights > free:
        return f"the weights alone take {weights:.1f} GiB, and {free:.1f} GiB are free"
    try:
        need = _gib_of_a_tile(model.to(s.device), s)
    except torch.OutOfMemoryError:
        window = 4 * model.encoder.block_px
        return f"not even a window of {window} px fits beside weights of {weights:.1f} GiB; {free:.1f} GiB were free"
    rows.append(Row(f"memory of one tile, weights of {weights:.1f} GiB included; {free:.1f} GiB are free", need, "GiB"))
    return what_fits(model, need, free) if need > free else ""


def _gib_of_a_tile(model: PixNet, s: Setting) -> float:
    """What the forward pass of one tile takes in bf16, from two smaller windows: all but the weights goes by area."""
    read = model.config.core_px + 2 * model.config.halo_px
    unit = model.encoder.block_px * 2
    taken = []
    for side in (unit, 2 * unit):
        image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=s.device)
        with peak_memory(s.device) as found, torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            model.latent(Batch(image, None, None, (), np.empty((0, 2), np.int64)))
        taken.append(found[0])
    return at_side(taken, (unit, 2 * unit), read)


def at_side(taken: list[float], sides: tuple[int, int], side: int) -> float:
    """Memory of a window of `side` pixels, from that of two others."""
    by_area = (taken[1] - taken[0]) / (sides[1] ** 2 - sides[0] ** 2)
    return taken[0] + by_area * (side**2 - sides[0] ** 2)


def what_fits(model: PixNet, need: float, free: float) -> str:
    """How much one tile takes and there is, in GiB, and the largest core whose tile fits, by area."""
    c = model.config
    read, unit = c.core_px + 2 * c.halo_px, model.encoder.block_px * 2
    cores = [core for core in range(unit, c.core_px, unit) if need * (core + 2 * c.halo_px) ** 2 / read**2 <= free]
    one = (
        f"one tile of {c.core_px} px ({read} px with its halo) takes about {need:.1f} GiB, and {free:.1f} GiB are free"
    )
    return f"{one}; " + (f"core_px={cores[-1]} fits" if cores else f"no core_px fits with a halo of {c.halo_px} px")


def _batch(model: PixNet, s: Setting) -> int:
    """The largest of 4, 2 and 1 tiles that fit."""
    for n in (4, 2):
        try:
            bare(model, s.device, n, 1)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return n
    return 1
