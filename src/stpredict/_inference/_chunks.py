"""Chunked inference: a section in chunks that can run in any order and any process, and patches of spot models."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from stpredict import _coverage
from stpredict._partial import PartialSum
from stpredict._prefetch import prefetch
from stpredict._section import Section
from stpredict.models._base import Model
from stpredict.models._samples import Batch, Samples
from stpredict.nn.device import Precision, resolve_device, resolve_precision, same_autocast

logger = logging.getLogger("stpredict")
PATCHES = 64  # images of spot models a forward pass
CHUNK_ROWS = 1024  # shapes of spot models a chunk, about


@dataclass(frozen=True)
class Runtime:
    """Where and how the forward pass runs, decided in full: what inference takes.

    Parameters
    ----------
    device : torch.device
        It need not be one of this machine: a worker may have decided.
    precision : {"32-true", "bf16-mixed", "16-mixed"}
        Number format.
    batch_size : int
        Tiles or patches a forward pass.
    progress, compile : bool
        Progress bars; `torch.compile` of dense models.
    label : str, default ""
        What a bar says after the name of the section, such as which of several it is.
    """

    device: torch.device
    precision: Precision
    batch_size: int
    progress: bool = True
    compile: bool = False
    label: str = ""


@dataclass(frozen=True)
class RuntimeOptions:
    """What a caller asks of the forward pass, where "auto" leaves the choice to the machine; fields as of `Runtime`."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    progress: bool = True
    compile: bool = False

    def resolve(self, output: Literal["raster", "spots"]) -> Runtime:
        """Decide on this machine, for models of this output.

        Raises
        ------
        ValueError
            For a device that is not there, and an unknown precision.
        """
        device = resolve_device(self.device)
        chosen = (4 if device.type == "cuda" else 1) if output == "raster" else PATCHES
        size = chosen if self.batch_size == "auto" else int(self.batch_size)
        return Runtime(device, resolve_precision(self.precision, device), size, self.progress, self.compile)


class ChunkedInference(ABC):
    """The chunks of a section for one model: one or more forward passes each.

    The split is fixed, so that `resume` and workers agree on it.
    """

    n: int

    def __init__(self, model: Model, section: Section, runtime: Runtime) -> None:
        self.model, self.section = model, section
        self.device, self.batch_size, self.progress = runtime.device, runtime.batch_size, runtime.progress
        self._at_once = runtime.batch_size
        self._bar_name = f"{section.name}{runtime.label}"

    def bar(self, n: int) -> tqdm[Any]:
        """The one progress bar of a pass over a section, which it names and which stays; it is to be told of each."""
        return tqdm(desc=self._bar_name, total=n, disable=not self.progress)

    def in_batches[Done](self, n: int, forward: Callable[[slice], Done]) -> list[Done]:
        """`forward` on n images, as many at a time as fit into memory: half as many whenever it runs out.

        Raises MemoryError where even one does not fit.
        """
        done: list[Done] = []
        first = 0
        while first < n:
            part = slice(first, min(n, first + self._at_once))
            try:
                done.append(forward(part))
                first = part.stop
                continue
            except torch.OutOfMemoryError as error:
                if self._at_once == 1:
                    raise MemoryError(
                        f"one image of the {type(self.model).__name__} does not fit into the memory of {self.device}. "
                        'Close what else runs there, pass device="cpu", or use a model with a smaller core_px.'
                    ) from error
            self._at_once = max(1, self._at_once // 2)  # out of the handler, which holds the tensors of the attempt
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.info("out of memory on %s: going on with %d images a forward pass", self.device, self._at_once)
        return done

    @abstractmethod
    def stream(self, which: Sequence[int]) -> Generator[PartialSum]:
        """The parts of these chunks, one by one, in this order."""

    @abstractmethod
    def from_sums(self, total: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """From the sums (n, d) the latent of every shape, 0 where nothing is covered, and covered shares (n,)."""


class PatchInference(ChunkedInference):
    """Patches of a spot model: the latent of every shape. A model that sees a whole section has one chunk.

    Parameters
    ----------
    fast : Model, optional
        The model with its batch norms folded (`fold_batch_norms`), which computes the latent; None: the model itself.
    """

    def __init__(self, model: Model, section: Section, runtime: Runtime, *, fast: Model | None = None) -> None:
        super().__init__(model, section, runtime)
        self.fast = model if fast is None else fast
        self.share = _covered_share(section)
        on, size = np.flatnonzero(self.share > 0), runtime.batch_size
        step = max(len(on), 1) if model.uses_section_context else size * -(-CHUNK_ROWS // size)
        self.groups = [on[k : k + step] for k in range(0, len(on), step)]
        self.n = len(self.groups)

    def stream(self, which: Sequence[int]) -> Generator[PartialSum]:
        """Batch by batch within a chunk; while one is computed, the next is cut out of the image and collated."""
        samples = self.model.samples([self.section], train=False)
        size, groups = self.batch_size, [self.groups[i] for i in which]
        batches = [group[k : k + size] for group in groups for k in range(0, len(group), size)]

        ambient = same_autocast(self.device)  # some samples hold features of an encoder

        def cut(rows: NDArray[np.int64]) -> tuple[list[Any], Batch]:
            with torch.inference_mode(), ambient:
                patches = samples.__getitems__(rows.tolist())
                return patches, samples.collate(patches)

        with closing(prefetch(cut, batches, depth=1)) as patches, self.bar(len(batches)) as bar:
            for group in groups:
                found = []
                for _ in range(0, len(group), size):
                    cut_patches, batch = next(patches)
                    found += self.in_batches(len(cut_patches), partial(self._latent, samples, cut_patches, batch))
                    bar.update()
                yield PartialSum(
                    np.concatenate([of for _, of in found]), np.concatenate([latent for latent, _ in found])
                )

    def _latent(
        self, samples: Samples, patches: list[Any], batch: Batch, part: slice
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The latent of some samples of a batch, and their rows."""
        whole = part == slice(0, len(patches))
        batch = (batch if whole else samples.collate(patches[part])).to(self.device)
        return self.fast.latent(batch).float().cpu().numpy(), batch.rows[:, 1]

    def from_sums(self, total: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The sums are the latent: each shape belongs to exactly one chunk."""
        return total.astype(np.float32, copy=False), self.share


def _covered_share(section: Section) -> NDArray[np.float64]:
    image = shapely.box(0, 0, section.image.width, section.image.height)
    area = _coverage.areas(_coverage.clip(section.shapes, image))
    return np.clip(area / np.where(section.area > 0, section.area, np.inf), 0.0, 1.0)
